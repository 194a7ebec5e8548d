"""A plan on the GPU: is it right, and how long does a batch take?"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file

from quantlab.encoder.check import difference
from quantlab.encoder.kept import CHECK, INPUTS
from quantlab.encoder.running import OpenedPlan
from quantlab.encoder.shape import STATES
from quantlab.records.encoder import EncoderPlan, Latency

WARMUP, REPEATS = 3, 10


def timed(trt: Any, record: EncoderPlan, plan: bytes, folder: Path) -> EncoderPlan:
    """`record` with difference to torch and latency. Raises StageFailed where the GPU does not take the plan."""
    opened, held = OpenedPlan(trt, plan), load_file(folder / CHECK)
    pixels, ids, mask = (held[name].cuda() for name in INPUTS)
    given = (pixels.to(opened.dtype), ids, mask)
    found = opened(*given).float().cpu().numpy()
    latency = tuple(_latency(opened, given, size) for size in record.batches)
    return msgspec.structs.replace(
        record,
        state="run",
        device=torch.cuda.get_device_name(),
        differences=(difference(held[STATES].numpy(), found),),
        latency=latency,
    )


def _latency(opened: OpenedPlan, given: tuple[torch.Tensor, ...], size: int) -> Latency:
    batch = [one.repeat(size, *[1] * (one.dim() - 1)) for one in given]
    times = []
    for at in range(WARMUP + REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        opened(*batch)
        end.record()
        end.synchronize()
        times += [begin.elapsed_time(end)] if at >= WARMUP else []
    return Latency(batch=size, median_ms=statistics.median(times), fastest_ms=min(times), slowest_ms=max(times))
