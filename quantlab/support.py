"""Which formats a GPU computes, and which engines serve them there: asked of tables, not of an installed SDK.

Hardware first: FP8 matrix units came with compute capability 8.9 (Ada), NVFP4 ones with 10.0 (Blackwell). INT4
weights need no units of their own, they are unpacked to 16 bit. Then software: TensorRT-LLM 1.2 has no AWQ kernels
for 12.0 (RTX Blackwell) although INT4 would run there, and lists neither Jetson nor DGX Spark. Each engine's own
tables are asked, so that the plan and the run say the same.
"""

from __future__ import annotations

import msgspec

from quantlab.catalog import Datasheet
from quantlab.engines import ENGINES, engine
from quantlab.records import Checkpoint, Gpu, Host

FIRST = {"bf16": (8, 0), "int4": (8, 0), "int4_awq": (8, 0), "fp8": (8, 9), "nvfp4": (10, 0), "mxfp8": (10, 0)}
"""Format -> first compute capability whose tensor cores compute it."""
LINES = {"trtllm": "1.2", "vllm": "0.24"}
"""Engine -> the line whose tables are asked."""

ELSEWHERE = {"ortgenai-directml": ("bf16", "int4", "int4_awq")}
"""Engines of published tables that are none of ours -> formats they compute."""


class Serves(msgspec.Struct, frozen=True, kw_only=True):
    """One engine's answer."""

    engine: str
    line: str
    """Version that the answer is for."""
    refusal: str
    """Why not, with what to do; empty: it serves it."""


def hardware(form: str, gpu: Datasheet) -> str:
    """Why the GPU's own units cannot compute `form`; empty where they can."""
    first = FIRST.get(form)
    if first is None or gpu.capability >= first:
        return ""
    what = {"fp8": "FP8", "nvfp4": "NVFP4", "mxfp8": "MXFP8"}.get(form, form)
    return (
        f"{what} needs compute capability {first[0]}.{first[1]} and {gpu.word} has {gpu.compute_capability}. "
        "Take int4_awq or bf16 there, or a newer GPU."
    )


def engines(architecture: str, form: str, kv_cache: str, gpu: Datasheet) -> tuple[Serves, ...]:
    """Every engine's answer for a checkpoint that does not exist yet, on a GPU that is not here."""
    checkpoint = Checkpoint(path="", digest="", recipe=form, format=form, architecture=architecture, kv_cache=kv_cache)
    return tuple(
        Serves(engine=name, line=LINES.get(name, ""), refusal=_refusal(name, checkpoint, gpu))
        for name in ENGINES
        if name != "fake"
    )


def host_with(gpu: Datasheet, count: int = 1) -> Host:
    """A machine that has nothing but `count` of this GPU and memory enough."""
    card = Gpu(name=gpu.word, memory_bytes=gpu.memory_bytes * count, compute_capability=gpu.compute_capability)
    return Host(system="", python="", cpu="", cores=0, memory_bytes=gpu.memory_bytes * 8 * count, gpus=(card,))


def _refusal(name: str, checkpoint: Checkpoint, gpu: Datasheet) -> str:
    """The engine's `serves` leaves out whether its SDK is installed here; where it has none, `supports` is asked."""
    asked = engine(name)
    answer = getattr(asked, "serves", asked.supports)(checkpoint, host_with(gpu))
    native = hardware(checkpoint.format, gpu)
    return str(answer or (f"Only emulated: {native}" if native else ""))
