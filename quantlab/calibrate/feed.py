"""Feed samples through a model that is being calibrated, in batches that fit, with progress that is honest.

Only the body runs, not the output head: nothing is measured there when the head is not quantized, and its logits over a
vocabulary of 128,256 would take more memory than all the rest.

AWQ calls the loop twice: once to measure activations, once to search, and the search multiplies with every weight
thirteen times. Progress counts decoder layers, weighted with that, and the first pass says how long the second takes.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor, nn

from quantlab.calibrate.pictures import Pictures
from quantlab.calibrate.samples import Samples
from quantlab.records import Calibration

if TYPE_CHECKING:
    from quantlab.worker import Reporter

COSTS: dict[str, tuple[float, ...]] = {"awq_lite": (1.0, 12.0)}
"""Relative cost of each call of the loop by algorithm; one call where it is not named."""
PARALLEL = 8
"""Samples in one batch where a batch costs nothing by itself."""
SHARE = 0.5
"""Of the free memory that a batch may take."""


class Feed:
    """A forward loop as ModelOpt wants it.

    Args:
        batches: what the model takes, each for one forward pass; floating-point tensors are given in its type.
        method: ModelOpt's algorithm.
        reporter: is told how many decoder layers are done.
    """

    def __init__(self, batches: Sequence[dict[str, Tensor]], method: str, reporter: Reporter) -> None:
        self.batches = batches
        self.costs = COSTS.get(method, (1.0,))
        self.reporter = reporter
        self.calls = 0
        self.done = 0.0
        self.seconds = 0.0

    def __call__(self, model: nn.Module) -> None:
        cost = self.costs[min(self.calls, len(self.costs) - 1)]
        self.calls += 1
        blocks = decoder_layers(model)
        total = len(blocks) * len(self.batches) * sum(self.costs)
        text = "searching scales" if self.calls > 1 else "measuring activations"
        if self.calls > 1:
            about = self.seconds * cost / self.costs[0]
            self.reporter.note("calibrate", f"AWQ's search takes about {about:.0f} s, by the first pass.")
        started = time.monotonic()

        def count(*_: Any) -> None:
            self.done += cost
            self.reporter.progress("calibrate", min(self.done, total), total, text)
            give_back()

        handles = [block.register_forward_hook(count) for block in blocks]
        try:
            self._forward(model)
        finally:
            for handle in handles:
                handle.remove()
        self.seconds = time.monotonic() - started

    def _forward(self, model: nn.Module) -> None:
        run: Any = model if _head_is_quantized(model) else model.base_model
        for batch in self.batches:
            with torch.no_grad():
                run(**placed(batch, model), use_cache=False)

    def notes(self) -> list[str]:
        """For the record: a search over several batches costs more and is a slightly different one."""
        if len(self.costs) > 1 and len(self.batches) > 1:
            most = max(len(batch["input_ids"]) for batch in self.batches)
            return [f"AWQ searched in {len(self.batches)} batches of at most {most} samples"]
        return []


def placed(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A batch on the model's device, pixels in its type."""
    first = next(model.parameters())
    floating = {name: first.dtype for name, tensor in batch.items() if tensor.is_floating_point()}
    return {name: tensor.to(first.device, floating.get(name, tensor.dtype)) for name, tensor in batch.items()}


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The longest list of modules in the model."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _head_is_quantized(model: Any) -> bool:
    head = model.get_output_embeddings()
    quantizers = [getattr(head, name, None) for name in ("weight_quantizer", "input_quantizer")]
    return any(quantizer is not None and quantizer.is_enabled for quantizer in quantizers)


def fed(asked: Calibration | None, data: Samples | Pictures, model: Any) -> Calibration | None:
    """What is really fed, for the choice of a batch: a picture is one sample, as long as what the tower makes of it."""
    if asked is None or not isinstance(data, Pictures):
        return asked
    sight = model.config.vision_config
    seen = sight.max_num_tiles * ((sight.image_size // sight.patch_size) ** 2 + 1)
    length = max(seen, *(group["input_ids"].shape[1] for group in data.groups))
    return msgspec.structs.replace(asked, samples=data.count, length=int(length))


def choose_batch(
    asked: Calibration | None, model: nn.Module, *, together: bool, device: torch.device | None = None
) -> int:
    """Samples in one forward pass.

    Args:
        asked: with the user's own choice in `batch`.
        model: on its device.
        together: as many as memory allows (AWQ), instead of a handful.
        device: where it computes, of a model without weights.
    """
    if asked is None:
        return 1
    if asked.batch:
        return min(asked.batch, asked.samples)
    if not together:
        return min(PARALLEL, asked.samples)
    places = [device] if device else {parameter.device for parameter in model.parameters()}
    free = min(free_memory(place) for place in places)  # of several GPUs each has its turn with the batch
    fit = int(SHARE * free // (asked.length * bytes_a_token(model)))
    return max(1, min(asked.samples, fit))


def bytes_a_token(model: Any) -> int:
    """Activations alive at once in AWQ's search: inputs, exact and rounded outputs and their squared difference, of
    the widest layer; a few copies of the residual stream. Measured on SmolLM2: 88 KB a token, of 101 KB here."""
    config = model.config.get_text_config()
    width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return 4 * 12 * (int(width) + int(config.hidden_size))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limit = _cgroup_free()
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    else:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return available if limit is None else min(available, limit)


MMAP_THRESHOLD, LARGE = -3, 256 * 1024
"""glibc's M_MMAP_THRESHOLD, and the bytes from which a block is a mapping of its own."""


def return_large() -> None:
    """Have glibc return every large block when it is freed, for the rest of this process.

    By itself it learns from the first large block that is freed to keep those that follow (up to 32 MB each), in a heap
    that cannot shrink while a small one lies above them. Probe and export leave thousands of small ones: of 2.83 GB
    of a Llama with 0.2 billion weights 1.07 were such holes, and the same run had its peak at 1.76 GB without them.
    """
    choose = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has it
    if choose is not None:
        choose(MMAP_THRESHOLD, LARGE)


def give_back() -> None:
    """Return freed memory to the system. The small ranges that calibration keeps lie between large activations that
    come and go, and glibc then holds on to the holes: AWQ over 4,096 tokens took 2.5 to 3.3 GB, not 1.9."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def _cgroup_free() -> int | None:
    """What a container may still take: its limit counts, and /proc/meminfo shows the whole machine."""
    most, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if not most.exists() or not used.exists() or (limit := most.read_text().strip()) == "max":
        return None
    return max(0, int(limit) - int(used.read_text()))
