"""Engine "trtllm": TensorRT-LLM, the engine that NVIDIA GPUs are served with.

Two lines, chosen by the installed version and written into every artifact's `engine_version`: up to 1.2.x a TensorRT
engine is built from ModelOpt's unified checkpoint (`_tensorrt_engine.LLM(model=..., build_config=...).save(...)`), from
1.3 on the PyTorch flow loads the checkpoint. `--flow pytorch` takes the latter on 1.2.x, too.

`build` makes the folder that TensorRT-LLM's transformers 4 reads right, holds it against what the loader requires, and
in the engine flow builds the TensorRT engine inside it. That needs the GPU and the SDK, so it happens in a child of its
own, and what is measured later begins with the memory free. A session of other sizes builds its engine beside it when
it is opened.

This file imports no SDK. Nothing of it has run against the real one: docs/engines.md says what did run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec

from quantlab import weights
from quantlab.engines import Ability, Session, Timed, sdks, trtllm_run
from quantlab.engines.serving import Server
from quantlab.engines.trtllm_arguments import flow_of, parse_version
from quantlab.engines.trtllm_sdk import engine_folder, room_of
from quantlab.errors import Broken, Refused
from quantlab.formats.lint import lint_trtllm, said
from quantlab.formats.transformers4 import as_transformers4
from quantlab.records import FORMATS, Artifact, Checkpoint, EngineConfig, Gpu, Host

PACKAGE = "tensorrt-llm"
ARCHITECTURES = ("LlamaForCausalLM", "MllamaForConditionalGeneration", "MistralForCausalLM", "Qwen2ForCausalLM")
"""Of those its PyTorch flow lists, what quantlab can quantize."""
SEEING, SEEING_FORMATS = "MllamaForConditionalGeneration", ("bf16", "fp8")
"""Of a model with images it lists fewer precisions: no INT4-AWQ."""
GPUS: dict[str, tuple[str, ...]] = {
    capability: (*(word for word, each in FORMATS.items() if capability in each.trtllm), "fp8 cache")
    for capability in FORMATS["bf16"].trtllm
}
"""Compute capability -> what it computes: the table in TensorRT-LLM 1.2.1's documentation, features/quantization."""


class TrtllmEngine:
    """TensorRT-LLM."""

    name = "trtllm"
    abilities = Ability.GENERATE | Ability.LOGPROBS | Ability.FULL_LOGITS | Ability.TIMINGS

    def version(self) -> str:
        return f"{PACKAGE} {_installed() or 'not installed'}"

    def supports(self, checkpoint: Checkpoint, host: Host) -> str | None:
        return _no_sdk() or _no_model(checkpoint) or _no_gpu(checkpoint, host.gpus)

    def serves(self, checkpoint: Checkpoint, host: Host) -> str | None:
        """`supports` without the question whether it is installed here: for planning another machine."""
        return _no_model(checkpoint) or _no_gpu(checkpoint, host.gpus)

    def numerics(self, checkpoint: Checkpoint, host: Host) -> Literal["native", "emulated", "simulated"]:
        """What it cannot compute natively it does not compute at all: see `supports`."""
        return "simulated" if checkpoint.simulated else "native"

    def builds(self, checkpoint: Checkpoint, config: EngineConfig) -> dict[str, Any]:
        shaped: dict[str, Any] = msgspec.to_builtins(config)
        return shaped

    def build(self, checkpoint: Checkpoint, into: Path, config: EngineConfig, host: Host) -> Artifact:
        """The checkpoint as TensorRT-LLM's own transformers reads it, in `into` (small files, links to the weights),
        and in the engine flow the TensorRT engine.

        Raises:
            Refused: this version has no such flow, or the layers cannot be divided among the GPUs.
            Broken: the loader would refuse the checkpoint or compute something else; the text lists the findings.
        """
        version = _installed()
        if version is None:
            raise Refused(_no_sdk() or "", place="engine trtllm")
        flow = flow_of(checkpoint, config, version)
        _require_divisible(Path(checkpoint.path), config)
        folder = as_transformers4(Path(checkpoint.path), into)
        checks = lint_trtllm(folder)
        faults = [check.finding for check in checks if not check.passed]
        if faults:
            raise Broken(
                f"TensorRT-LLM cannot take this checkpoint: {' '.join(faults)}",
                place=checkpoint.path,
                cure="Export it again, or use another engine.",
            )
        artifact = Artifact(
            engine=self.name,
            path=str(folder),
            checkpoint=checkpoint,
            numerics=self.numerics(checkpoint, host),
            engine_version=f"{PACKAGE} {version}, {flow} flow",
            notes=tuple(f"TensorRT-LLM: {check.finding}" for check in checks if "untested" in check.finding),
        )
        if flow == "engine":
            engine_folder(artifact, config, room_of(artifact, config))
        return artifact

    def bench_missing(self) -> str | None:
        return None if trtllm_run.program() else "trtllm-bench is neither beside this Python nor on the PATH."

    def bench_source(self, batch: int) -> str:
        return trtllm_run.source(batch)

    def bench(
        self,
        artifact: Artifact,
        config: EngineConfig,
        cell: tuple[int, int, int],
        *,
        vocabulary: Sequence[int],
        folder: Path,
        seed: int,
    ) -> Timed | str:
        """One cell through trtllm-bench; see trtllm_run.py."""
        flow = flow_of(artifact.checkpoint, config, _installed() or "")
        return trtllm_run.run(artifact, config, flow, cell, vocabulary, folder, seed)

    def server(self, artifact: Artifact, config: EngineConfig, *, name: str, port: int, folder: Path) -> Server:
        """As `Serving.server`. Its command has never run: it is held against the contract."""
        flow = flow_of(artifact.checkpoint, config, _installed() or "")
        return trtllm_run.server(artifact, config, flow, port, folder)

    @contextmanager
    def open(self, artifact: Artifact, config: EngineConfig) -> Iterator[Session]:
        """Raises: Refused (a device that is no GPU of its own, another version than it was built with)."""
        from quantlab.engines.trtllm_session import TrtllmSession

        version = _installed()
        flow = flow_of(artifact.checkpoint, config, version or "")
        if artifact.engine_version != f"{PACKAGE} {version}, {flow} flow":
            raise Refused(
                f"made for {artifact.engine_version}, and here is {version} in its {flow} flow.",
                place=artifact.path,
                cure="Build the artifact again.",
            )
        if config.device not in ("auto", "cuda"):
            cure = "Use --device auto, and choose GPUs with CUDA_VISIBLE_DEVICES."
            raise Refused(f"TensorRT-LLM does not compute on {config.device!r}.", cure=cure)
        session = TrtllmSession(artifact, config, flow)
        try:
            yield session
        finally:
            session.close()


def _installed() -> str | None:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def _no_sdk() -> str | None:
    version = _installed()
    if version is None:
        return (
            "TensorRT-LLM is not installed for this Python. `quantlab engines setup trtllm` makes its environment from "
            "environments/trtllm.txt (Python 3.12, Linux, OpenMPI), or name a container in engines.toml."
        )
    parse_version(version)
    why = sdks.unfit("trtllm", PACKAGE, version)
    return f"{why} Install tensorrt-llm 1.2.1." if why else None


def _no_model(checkpoint: Checkpoint) -> str | None:
    if checkpoint.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        return f"engine trtllm serves {known} here, and this is {checkpoint.architecture}. Use engine torch."
    if checkpoint.architecture == SEEING and checkpoint.format not in SEEING_FORMATS and not checkpoint.simulated:
        listed = " and ".join(SEEING_FORMATS)
        return f"TensorRT-LLM lists {listed} for {SEEING}, not {checkpoint.format}. Use fp8, or engine torch."
    if checkpoint.layout != "modelopt":
        return f"TensorRT-LLM is given ModelOpt's layout here, and this is {checkpoint.layout}'s. Use engine vllm."
    if checkpoint.format == "int4" and not checkpoint.simulated:
        return (
            f"TensorRT-LLM loads {checkpoint.format} as W4A16_AWQ and reads a pre_quant_scale that only AWQ writes. "
            "Use int4_awq, or engine torch."
        )
    if not FORMATS[checkpoint.format].trtllm and not checkpoint.simulated:
        return f"TensorRT-LLM does not load ModelOpt's {checkpoint.format}. Use engine torch, which scores it."
    return None


def _no_gpu(checkpoint: Checkpoint, gpus: tuple[Gpu, ...]) -> str | None:
    if not gpus:
        return "TensorRT-LLM needs an NVIDIA GPU, and the driver shows none. Use engine torch here."
    wanted = ["bf16" if checkpoint.simulated else checkpoint.format, *checkpoint.kept]
    wanted += ["fp8 cache"] if checkpoint.kv_cache == "fp8" else []
    for gpu in gpus:
        able = GPUS.get(gpu.compute_capability)
        where = f"{gpu.name} (compute capability {gpu.compute_capability or 'unknown'})"
        if able is None:
            return f"{where} is not in TensorRT-LLM's table of GPUs ({', '.join(GPUS)}). Use engine vllm or torch."
        for word in wanted:
            if word not in able:
                others = ", ".join(capability for capability, words in GPUS.items() if word in words)
                return f"TensorRT-LLM has no {word} kernels for {where}. It has for {others}; or take another recipe."
    return None


def _require_divisible(folder: Path, config: EngineConfig) -> None:
    """Each GPU takes whole heads and whole groups of int4 weights; key/value heads may be copied.

    Only o_proj and down_proj are cut along their input, where the groups lie.
    """
    shape = weights.config(folder)
    shape = shape.get("text_config", shape)
    tp, pp, group = config.tensor_parallel, config.pipeline_parallel, said(folder).get("group_size") or 1
    heads = int(shape["num_attention_heads"])
    kv_heads = int(shape.get("num_key_value_heads") or heads)
    width = heads * int(shape.get("head_dim") or shape["hidden_size"] // heads)
    bad = [
        f"{name} {size} by {by}"
        for name, size, by in (
            ("query heads", heads, tp),
            ("key/value heads", max(kv_heads, tp), min(kv_heads, tp)),
            ("input of o_proj", width, tp * group),
            ("input of down_proj", int(shape["intermediate_size"]), tp * group),
        )
        if size % by
    ]
    bad += [f"{shape['num_hidden_layers']} layers by {pp}"] if pp > int(shape["num_hidden_layers"]) else []
    if bad:
        raise Refused(
            f"the model cannot be divided: {'; '.join(bad)}.",
            place=f"tensor parallel {tp}, pipeline parallel {pp}, groups of {group}",
            cure="Choose other --tp and --pp, or a smaller group size.",
        )
