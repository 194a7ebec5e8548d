"""Engine "ortgenai": ONNX Runtime GenAI, for laptops, desktops and servers without a server stack.

`build` writes the checkpoint as an ONNX model (quantlab/formats/onnx_llama.py), once a checkpoint and choice, and the
same file is scored and timed. INT4-AWQ goes in without loss: ModelOpt's codes and scales, and a Mul for each
`pre_quant_scale`. FP8 is emulated on the CPU, and refused elsewhere: GPUs with FP8 units have better engines here.

Two choices trade accuracy for the speed of an int4 checkpoint. Both are part of what is recorded, and what is timed is
what is scored:

    --activations keep|int8   inputs of the int4 kernel; by default int8 on a CPU, where it is twice as fast
    --head keep|int8|int4     the output head, which in a small model is half of what a decode step reads

Device words: auto, cpu, cuda, cuda:1, dml (DirectML on Windows), trt-rtx (TensorRT-RTX). Only cpu has run here.

This file imports no SDK: the plan asks it before any work starts. The session lies in ortgenai_session.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from quantlab import host as machine
from quantlab.engines import Ability, Session, sdks
from quantlab.errors import BadInput, Broken, NoAccess, Refused
from quantlab.formats.onnx_model import PROTOCOL, damage, known, placeless, write
from quantlab.records import Artifact, Checkpoint, EngineConfig, Host, OnnxJob, Provider

PROVIDERS: dict[str, Provider] = {
    "onnxruntime-genai-cuda": "cuda",
    "onnxruntime-genai-winml": "dml",
    "onnxruntime-genai-directml": "dml",
    "onnxruntime-genai": "cpu",
}
"""Package -> what `--device auto` means with it."""
FORMATS = ("bf16", "fp8", "int4_awq", "int4")
ARCHITECTURE = "LlamaForCausalLM"
DTYPE: dict[Provider, Literal["float32", "float16"]] = {
    "cpu": "float32",
    "cuda": "float16",
    "dml": "float16",
    "trt-rtx": "float16",
}
"""What `--dtype auto` means."""
INSTALL = "`quantlab engines setup ortgenai` makes its environment from environments/ortgenai.txt (docs/engines.md)."


class OrtGenaiEngine:
    """ONNX Runtime GenAI."""

    name = "ortgenai"
    abilities = Ability.GENERATE | Ability.LOGPROBS | Ability.FULL_LOGITS | Ability.TIMINGS

    def version(self) -> str:
        """Raises: NoAccess where this Python has no ONNX Runtime GenAI."""
        found = installed()
        if found is None:
            raise NoAccess("ONNX Runtime GenAI is not installed in this Python.", place="engine ortgenai", cure=INSTALL)
        return " ".join(found)

    def supports(self, checkpoint: Checkpoint, host: Host) -> str | None:
        return _package(installed()) or _model(checkpoint)

    def numerics(self, checkpoint: Checkpoint, host: Host) -> Literal["native", "emulated", "simulated"]:
        if checkpoint.simulated:
            return "simulated"
        return "emulated" if checkpoint.format == "fp8" else "native"

    def builds(self, checkpoint: Checkpoint, config: EngineConfig) -> dict[str, Any] | None:
        job = job_of(checkpoint, Path(), config)
        return {
            "protocol": PROTOCOL,
            "provider": job.provider,
            "dtype": job.dtype,
            "head": job.head,
            "activations": job.activations,
        }

    def build(self, checkpoint: Checkpoint, into: Path, config: EngineConfig, host: Host) -> Artifact:
        """Write the ONNX model `into`; one that is there, whole and the same, is taken. Needs numpy and onnx.

        Raises:
            BadInput: a device that ONNX Runtime has no provider for.
            NoAccess: the package onnx is not installed.
            Refused: a model, format or type that the graph does not compute.
            Broken: a checkpoint that is not whole.
        """
        job = job_of(checkpoint, into, config)
        model = write(job)
        return Artifact(
            engine=self.name,
            path=str(into),
            checkpoint=checkpoint,
            numerics=self.numerics(checkpoint, host),
            engine_version=f"{self.version()}, {_said(job, checkpoint)}",
            notes=model.notes,
        )

    @contextmanager
    def open(self, artifact: Artifact, config: EngineConfig) -> Iterator[Session]:
        """Raises: Refused (no such device, or built for another), Broken (a folder that is not whole)."""
        model = known(Path(artifact.path))
        if model is None:
            cure = "Delete the folder and start again."
            raise Broken("there is no ONNX model of quantlab's.", place=artifact.path, cure=cure)
        if problem := damage(Path(artifact.path), model):
            raise Broken(problem, place=artifact.path, cure="Delete the folder and start again.")
        asked = job_of(artifact.checkpoint, Path(artifact.path), config)
        if placeless(asked) != model.job:
            raise Refused(
                f"built for {model.job.provider} {model.job.dtype}, head {model.job.head}, activations "
                f"{model.job.activations}, or from another checkpoint.",
                place=artifact.path,
                cure="Build the artifact again.",
            )
        from quantlab.engines.ortgenai_session import OrtGenaiSession

        session = OrtGenaiSession(artifact, config, model)
        try:
            yield session
        finally:
            session.close()


def installed() -> tuple[str, str] | None:
    """(package, version) of the SDK in this Python, from its metadata."""
    return next(iter(machine.versions(PROVIDERS).items()), None)


def provider_of(device: str) -> Provider:
    """ "cuda:1" -> "cuda"; "auto" is what the installed package is made for.

    Raises: BadInput: no such device.
    """
    word = device.partition(":")[0]
    if word == "auto":
        return PROVIDERS[(installed() or ("onnxruntime-genai", ""))[0]]
    if word not in DTYPE or (device != word and not re.fullmatch(r"cuda:\d+", device)):
        raise BadInput(f"no device {device!r} in engine ortgenai.", cure="auto, cpu, cuda, cuda:1, dml, trt-rtx.")
    return word


def job_of(checkpoint: Checkpoint, into: Path, config: EngineConfig) -> OnnxJob:
    """What `build` writes for these choices.

    Choices about int4 do not touch other formats: the baseline stays one.

    Raises: BadInput: no such device.
    """
    provider = provider_of(config.device)
    dtype = DTYPE[provider] if config.dtype == "auto" else config.dtype
    int4 = checkpoint.format.startswith("int4") and not checkpoint.simulated
    activations = config.activations
    if activations == "auto":
        activations = "int8" if provider == "cpu" else "keep"
    return OnnxJob(
        source=checkpoint.path,
        into=str(into.absolute()),
        digest=checkpoint.digest,
        provider=provider,
        dtype=dtype,
        head=config.head if int4 else "keep",
        activations=activations if int4 else "keep",
    )


def _said(job: OnnxJob, checkpoint: Checkpoint) -> str:
    """The choices, for the record: two runs are the same measurement only if these are."""
    said = f"{job.provider} {job.dtype}"
    if checkpoint.format.startswith("int4"):
        said += f", head {job.head}, activations {job.activations}"
    return said


def _package(found: tuple[str, str] | None) -> str | None:
    if found is None:
        return f"ONNX Runtime GenAI is not installed in this Python. {INSTALL}"
    why = sdks.unfit("ortgenai", *found)
    return f"{why} {INSTALL}" if why else None


def _model(checkpoint: Checkpoint) -> str | None:
    if checkpoint.architecture.startswith("Mllama"):
        return "engine ortgenai computes text models, and Llama 3.2 Vision is none. Use engine trtllm."
    if checkpoint.architecture != ARCHITECTURE:
        return f"engine ortgenai writes the graph of {ARCHITECTURE}, and this is {checkpoint.architecture}."
    if checkpoint.layout != "modelopt":
        return f"engine ortgenai reads ModelOpt's layout, and this is {checkpoint.layout}'s. Use engine torch."
    if checkpoint.format not in FORMATS:
        return f"engine ortgenai does not compute {checkpoint.format}; it knows {', '.join(FORMATS)}."
    if checkpoint.kept:
        return "engine ortgenai computes one format at a time. Keep layers in bf16, or use engine torch."
    if checkpoint.kv_cache != "none":
        return "engine ortgenai has no FP8 key/value cache. Calibrate without kv_cache, or use engine torch."
    return None
