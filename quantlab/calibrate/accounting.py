"""What was made and what it cost: checkpoint and calibration records, from the files that were written."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from quantlab import kept
from quantlab import weights as folders
from quantlab.calibrate import probe
from quantlab.formats import names
from quantlab.records import Calibrated, CalibrateJob, Checkpoint

if TYPE_CHECKING:
    from quantlab.calibrate.pictures import Pictures
    from quantlab.calibrate.samples import Samples

PARTS = ("weight", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")
"""Tensors of a quantized layer that replace its 16-bit weight."""


class Clock:
    """Wall time, and the CPU time of all threads: what a step cost however busy the machine was."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.monotonic(), time.process_time()

    def seconds(self) -> float:
        return time.monotonic() - self.wall

    def cpu_seconds(self) -> float:
        return time.process_time() - self.cpu


def baseline(spec: CalibrateJob, clock: Clock) -> Calibrated:
    """Nothing is quantized: the checkpoint is the weights' own folder."""
    count = sum(torch.Size(shape).numel() for shape in folders.shapes(spec.weights.path).values())
    checkpoint = Checkpoint(
        path=spec.weights.path,
        digest=spec.weights.digest,
        recipe=spec.recipe_name,
        format=spec.recipe.format,
        architecture=spec.weights.architecture,
        bytes=spec.weights.bytes,
        source_bytes=spec.weights.bytes,
        bits_per_weight=round(8 * spec.weights.bytes / count, 2),
    )
    return Calibrated(checkpoint=checkpoint, seconds=round(clock.seconds(), 3), peak_bytes=peak_bytes())


def calibrated(
    made: Checkpoint,
    layers: Sequence[str],
    data: Samples | Pictures | None,
    clock: Clock,
    calibrate_seconds: float,
    device: str,
    notes: Sequence[str],
) -> Calibrated:
    """The record of an export that lies beside its probe. `calibrate_seconds`: of ModelOpt's own step."""
    return Calibrated(
        checkpoint=made,
        layers=tuple(layers),
        calibration_digest=data.digest if data else None,
        samples=data.count if data else 0,
        tokens=data.tokens if data else 0,
        seconds=round(clock.seconds(), 3),
        cpu_seconds=round(clock.cpu_seconds(), 3),
        calibrate_seconds=round(calibrate_seconds, 3),
        peak_bytes=peak_bytes(),
        peak_gpu_bytes=sum(peak_by_gpu().values()),
        peak_by_gpu=peak_by_gpu(),
        device=device,
        probe=probe.FILE,
        notes=tuple(notes),
    )


def checkpoint(spec: CalibrateJob, folder: Path, layers: Iterable[str]) -> Checkpoint:
    """Of a finished export; `path` is where it will lie."""
    simulated = spec.recipe.export == "folded"
    return Checkpoint(
        path=spec.into,
        digest=folders.digest_folder(folder),
        recipe=spec.recipe_name,
        format=spec.recipe.format,
        architecture=spec.weights.architecture,
        group_size=spec.group_size,
        kept=() if simulated else kept.others(spec.recipe),
        kv_cache=spec.recipe.kv_cache,
        simulated=simulated,
        bytes=folders.weight_bytes(folder),
        source_bytes=spec.weights.bytes,
        bits_per_weight=round(bits_per_weight(folder, spec.weights.path, {*layers, *_in_16_bit(spec)}), 3),
    )


def _in_16_bit(spec: CalibrateJob) -> set[str]:
    """Layers that the preset would quantize and the recipe keeps as they are: they cost bits like the others."""
    if not any(each.format == "bf16" for each in spec.recipe.keep):
        return set()
    found = {name.removesuffix(".weight") for name in names.headers(spec.weights.path) if name.endswith(".weight")}
    return {name for name in found if spec.recipe.format_of(name) == "bf16"}


def bits_per_weight(folder: str | Path, source: str | Path, layers: Iterable[str]) -> float:
    """Stored bits of the quantized layers, scales included, over their number of weights, from headers."""
    made, original = names.headers(folder), names.headers(source)
    bits = count = 0
    for layer in layers:
        parts = (made.get(f"{layer}.{part}") for part in PARTS)
        bits += sum(bits_of(part) for part in parts if part is not None)
        count += torch.Size(original[f"{layer}.weight"]["shape"]).numel()
    return bits / max(count, 1)


def bits_of(tensor: dict[str, Any]) -> int:
    """Bits of one tensor of a safetensors header."""
    return int(folders.BITS[tensor["dtype"]] * torch.Size(tensor["shape"]).numel())


def peak_bytes() -> int:
    """Peak resident memory of this process, since `forget_peak`. Linux counts in KiB, macOS in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> bool:
    """Count peaks from now on. False where the system has no way to (Linux: 5 into clear_refs, see proc(5))."""
    if torch.cuda.is_available():
        torch.cuda.init()
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_by_gpu() -> dict[str, int]:
    """GPU -> peak allocated memory of this process since `forget_peak`; GPUs on which it allocated something."""
    if not torch.cuda.is_available():
        return {}
    peaks = {index: torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())}
    return {f"cuda:{index} {torch.cuda.get_device_name(index)}": peak for index, peak in peaks.items() if peak}


def device_name(device: torch.device) -> str:
    """ "cpu", or the GPU's name."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else "cpu"
