"""Engine "torch": the exported checkpoint in plain PyTorch, the reference for accuracy on any device.

It computes with the numbers that were written (see quantlab/formats), not with the model that was calibrated. On a GPU
with FP8 units (compute capability 8.9: Ada, Hopper, Blackwell) FP8 runs on them; everywhere else, and INT4 always, the
rounding is the same and the kernels are not, so the record says "emulated" and its speed is nobody's.

This file imports no SDK: the plan asks it before any work starts. The session lies in torch_session.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Literal

from quantlab.engines import Ability, Session
from quantlab.records import FORMATS, Artifact, Checkpoint, EngineConfig, Host
from quantlab.records.finished import OTHER

SEEING = ("MllamaForConditionalGeneration",)
"""Architectures with images: Llama 3.2 Vision."""
FP8_CAPABILITY = (8, 9)
"""First compute capability with FP8 tensor cores."""


class TorchEngine:
    """PyTorch and transformers."""

    name = "torch"
    abilities = Ability.GENERATE | Ability.LOGPROBS | Ability.FULL_LOGITS | Ability.IMAGES | Ability.TIMINGS

    def version(self) -> str:
        return f"torch {metadata.version('torch')}, transformers {metadata.version('transformers')}"

    def supports(self, checkpoint: Checkpoint, host: Host) -> str | None:
        if checkpoint.format == OTHER:
            return f"engine torch does not compute what {checkpoint.layout} says here. Use --engine vllm."
        if checkpoint.format not in FORMATS:
            return f"engine torch does not compute {checkpoint.format}; it knows {', '.join(FORMATS)}."
        if not checkpoint.architecture.endswith("ForCausalLM") and checkpoint.architecture not in SEEING:
            known = f"text models (...ForCausalLM) and {', '.join(SEEING)}"
            return f"engine torch reads {known}, and this is {checkpoint.architecture}."
        return None

    def numerics(self, checkpoint: Checkpoint, host: Host) -> Literal["native", "emulated", "simulated"]:
        return _numerics(checkpoint, fp8_units=_has_fp8_units(host))

    def builds(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        return None

    def build(self, checkpoint: Checkpoint, into: Path, config: EngineConfig, host: Host) -> Artifact:
        """Nothing to build: the artifact is the checkpoint."""
        units = config.device != "cpu" and _has_fp8_units(host)
        return Artifact(
            engine=self.name,
            path=checkpoint.path,
            checkpoint=checkpoint,
            numerics=_numerics(checkpoint, fp8_units=units),
            engine_version=self.version(),
        )

    @contextmanager
    def open(self, artifact: Artifact, config: EngineConfig) -> Iterator[Session]:
        """Raises: Refused (device missing, algorithm unknown, too little memory), Broken (a faulty checkpoint)."""
        from quantlab.engines.torch_session import TorchSession

        session = TorchSession(artifact, config)
        try:
            yield session
        finally:
            session.close()


def _has_fp8_units(host: Host) -> bool:
    capabilities = (gpu.compute_capability.split(".") for gpu in host.gpus if gpu.compute_capability)
    return any((int(parts[0]), int(parts[-1])) >= FP8_CAPABILITY for parts in capabilities)


def _numerics(checkpoint: Checkpoint, *, fp8_units: bool) -> Literal["native", "emulated", "simulated"]:
    if checkpoint.simulated:
        return "simulated"
    if checkpoint.kv_cache != "none":  # the cache is rounded in 16-bit attention, whatever the weights do
        return "emulated"
    native = checkpoint.format == "bf16" or (checkpoint.format == "fp8" and fp8_units)
    return "native" if native else "emulated"
