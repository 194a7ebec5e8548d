"""How a whole model lies on several GPUs while it is calibrated, from dimensions alone.

Decoder blocks run one after the other, so whole blocks are dealt out: GPU 0 holds what lies outside the blocks
(embedding, head, norms, vision tower) and the first of them, the others the rest, in order. At any moment one GPU
computes; each must have room for what one batch makes of one block, because each has its turn:

    room for weights = memory - CUDA's own - one batch's activations and AWQ's copies (costs.work) [- the look, GPU 0]
    peak             = CUDA's own + weights that lie there + the same work, with the batch that will be chosen

The blocks are dealt so that the fullest GPU, as a share of its room, is as empty as can be. accelerate's own "auto"
knows nothing of activations, and where room ends it goes on to the machine's memory and the disk without a word: AWQ
would then fetch every weight over the bus eleven times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from quantlab import costs, weights
from quantlab.formats.names import BLOCKS, SIGHT
from quantlab.records import Model, Recipe
from quantlab.sight import Eye
from quantlab.sizes import Sizes

BLOCK = re.compile(r"\blayers\.(\d+)\.")
WIDTH = 2
"""Bytes of a weight on a GPU."""
HALVINGS = 40
"""Steps of the search for the lowest level; a block is never so small a part of a GPU."""


class Parts(msgspec.Struct, frozen=True):
    """Bytes of a model's weights on GPUs."""

    outside: int
    """Of what is no decoder block."""
    blocks: tuple[int, ...]


class Spread(msgspec.Struct, frozen=True):
    """A model on several GPUs."""

    counts: tuple[int, ...]
    """Blocks on each GPU, in order."""
    held: tuple[int, ...]
    """Bytes of weights on each."""
    peaks: tuple[int, ...]
    """Predicted bytes at the peak of calibrating, on each."""

    @property
    def gpus(self) -> int:
        return len(self.counts)

    def device_of(self, block: int) -> int:
        """Index of the GPU that holds a block."""
        return next(index for index in range(self.gpus) if block < sum(self.counts[: index + 1]))

    def sentence(self) -> str:
        """For plan and record."""
        ends = [sum(self.counts[: index + 1]) for index in range(self.gpus)]
        each = (
            f"GPU {index} {_blocks(end - count, end)} ({held / 1e9:,.2f} GB of weights, peak {peak / 1e9:,.2f} GB)"
            for index, (count, end, held, peak) in enumerate(zip(self.counts, ends, self.held, self.peaks, strict=True))
        )
        return f"Spread over {self.gpus} GPUs, predicted: {'; '.join(each)}. GPU 0 also holds embedding and head."


def _blocks(first: int, end: int) -> str:
    return f"blocks {first} to {end - 1}" if end - first > 1 else f"block {first}" if end > first else "no block"


def parts(sizes: Sizes, path: Path | None) -> Parts:
    """From the headers of `path`, or from the layers that a recipe quantizes where the weights are not here."""
    counted: dict[int, int] = {}
    for name, numbers in _tensors(sizes, path):
        if not SIGHT.search(name) and (found := BLOCK.search(name)):
            counted[int(found[1])] = counted.get(int(found[1]), 0) + WIDTH * numbers
    return Parts(WIDTH * sizes.total - sum(counted.values()), tuple(counted[index] for index in sorted(counted)))


def _tensors(sizes: Sizes, path: Path | None) -> list[tuple[str, int]]:
    if path is None:
        return [(f"{layer.name}.weight", layer.outputs * layer.inputs) for layer in sizes.layers]
    shapes: Mapping[str, tuple[int, ...]] = weights.shapes(path)
    return [(name, math.prod(shape)) for name, shape in shapes.items()]


def deal(parts: Parts, rooms: Sequence[int]) -> tuple[int, ...] | None:
    """Blocks on each GPU; None where they do not all fit.

    Args:
        parts: what is to be held.
        rooms: bytes for weights on each GPU.
    """
    low, high = 0.0, 1.0
    best = _filled(parts, rooms, high)
    for _ in range(HALVINGS if best else 0):
        middle = (low + high) / 2
        found = _filled(parts, rooms, middle)
        low, high, best = (low, middle, found) if found else (middle, high, best)
    return best


def _filled(parts: Parts, rooms: Sequence[int], level: float) -> tuple[int, ...] | None:
    """Each GPU takes the next blocks up to `level` of its room; None where some are left."""
    if not rooms or parts.outside > rooms[0]:
        return None
    counts, left, load = [], list(parts.blocks), parts.outside
    for room in rooms:
        taken = 0
        while left and load + left[0] <= level * room:
            load += left.pop(0)
            taken += 1
        counts.append(taken)
        load = 0
    return None if left else tuple(counts)


def spread(recipe: Recipe, sizes: Sizes, eye: Eye | None, parts: Parts, memory: Sequence[int]) -> Spread | None:
    """The model on all GPUs of `memory`; None where the prediction says that it does not fit.

    Args:
        recipe: what is calibrated.
        sizes: its layers.
        eye: of the vision tower; None for text.
        parts: the same weights, as they are dealt out.
        memory: bytes of each GPU that may be taken.
    """
    work, look = _work(recipe, sizes, eye, 0)
    counts = deal(parts, _rooms(memory, work, look))
    if counts is None:
        return None
    held = _held(parts, counts)
    free = min(one - costs.GPU_LIBRARIES_BYTES - each for one, each in zip(memory, held, strict=True))
    work, look = _work(recipe, sizes, eye, free)
    peaks = [costs.GPU_LIBRARIES_BYTES + each + work for each in held]
    peaks[0] += max(0, look - work)
    return Spread(counts, held, tuple(peaks))


def fewest(
    recipe: Recipe, sizes: Sizes, eye: Eye | None, parts: Parts, memory: Sequence[int], least: int = 1
) -> Spread | None:
    """On as few of the GPUs as hold it, the first ones; at least `least`. A hidden state that stays is the fastest."""
    tried = (spread(recipe, sizes, eye, parts, memory[:count]) for count in range(max(least, 1), len(memory) + 1))
    return next((found for found in tried if found is not None), None)


def several(
    model: Model,
    recipe: Recipe,
    sizes: Sizes,
    eye: Eye | None,
    path: Path | None,
    memory: Sequence[int],
    asked: int,
    peak: int | None,
) -> Spread | str | None:
    """What a plan says: the model on several GPUs where it must be or is asked for; a refusal; None for one device.

    Args:
        model: whose blocks must be known.
        recipe, sizes, eye: as `spread`.
        path: the weights, where they are here.
        memory: bytes of each GPU of the machine; none where the calibration computes on a CPU.
        asked: GPUs; 0: as few as hold it.
        peak: predicted bytes on one GPU.
    """
    if recipe.preset is None:
        return None
    if asked > max(len(memory), 1):
        return f"--gpus {asked}: there are {len(memory)} GPUs to calibrate on."
    if asked == 1 or len(memory) < 2 or (not asked and (peak or 0) <= memory[0]):
        return None
    if model.architecture not in BLOCKS:
        return f"--gpus {asked}: decoder blocks of {model.architecture} are not known here." if asked else None
    found = fewest(recipe, sizes, eye, parts(sizes, path), memory[: asked or None], asked or 2)
    if found is None and asked:
        cure = "Calibrate one block at a time (--layerwise)."
        return f"--gpus {asked}: they do not hold the model and what calibrating makes beside it. {cure}"
    return found


def _rooms(memory: Sequence[int], work: int, look: int) -> list[int]:
    rooms = [one - costs.GPU_LIBRARIES_BYTES - work for one in memory]
    rooms[0] -= max(0, look - work)
    return [max(room, 0) for room in rooms]


def _held(parts: Parts, counts: Sequence[int]) -> tuple[int, ...]:
    ends = [sum(counts[: index + 1]) for index in range(len(counts))]
    held = [sum(parts.blocks[end - count : end]) for count, end in zip(counts, ends, strict=True)]
    held[0] += parts.outside
    return tuple(held)


def _work(recipe: Recipe, sizes: Sizes, eye: Eye | None, free: int) -> tuple[int, int]:
    """Bytes of one batch's work in a block, and of its look; `free`: what AWQ's batch may be chosen by."""
    batch = costs.batch_of(recipe, sizes.shape, eye, max(free, 0))
    look = eye.looking(WIDTH) * batch.samples if eye and batch else 0
    return costs.work(recipe, sizes, batch, WIDTH), look
