"""What calibrating takes when one decoder block is held at a time instead of the whole model.

    block    libraries + hidden states + one block + what working on it takes (costs.py)
    look     libraries + one layer of the vision tower and its tables + one picture on its way + the batch's states
    head     libraries + hidden states + some rows of the output head

Hidden states are samples x length x hidden size numbers, held twice: what goes into a block and what comes out. Without
the weights of the whole model in it, the sum is nearly the same for 8 and for 90 billion weights. What the tower saw
waits on the disk, and a batch of it is read when a block looks at it.
"""

from __future__ import annotations

import re
from collections import Counter

import msgspec

from quantlab import costs
from quantlab.formats.names import BLOCKS
from quantlab.records import Recipe
from quantlab.sight import Eye
from quantlab.sizes import Layer, Sizes

HEAD_ROWS = 16384
"""Rows of the output head that are in memory at once for the probe."""
BLOCK = re.compile(r"\blayers\.(\d+)\.")
AFTER = "So one block at a time. Scoring it then needs a machine that holds the checkpoint."
PROBED = 2
"""Samples of the probe, whose states lie on the disk beside those of the batches."""


class Blockwise(msgspec.Struct, frozen=True):
    """Of calibrating one block at a time."""

    peak_bytes: int
    hidden_bytes: int
    """Hidden states, also written to the disk after each block."""
    seen_bytes: int
    """What the vision tower made of all pictures: on the disk until the calibration is finished."""
    text: str
    """The arithmetic."""


def blockwise(
    recipe: Recipe, sizes: Sizes, architecture: str | None, eye: Eye | None, memory: int, *, cpu: bool
) -> Blockwise | None:
    """Memory of calibrating `recipe` block by block; None where that cannot be done or the sizes are not known.

    Args:
        recipe: the recipe.
        sizes: its layers.
        architecture: `architectures[0]`.
        eye: of the vision tower; None for text.
        memory: of the machine or the GPU, for the batch that AWQ chooses.
        cpu: float32 in the machine's memory, instead of 16 bit on a GPU.
    """
    blocks = _blocks(sizes.layers)
    whole = recipe.keep or recipe.export == "folded" or recipe.rounding == "compensated"
    if recipe.preset is None or whole or architecture not in BLOCKS or not blocks:
        return None
    width, libraries = (4, costs.LIBRARIES_BYTES) if cpu else (2, costs.GPU_LIBRARIES_BYTES)
    batch = costs.batch_of(recipe, sizes.shape, eye, max(memory - libraries, 0))
    fed = (recipe.calibration.images if eye else recipe.calibration.samples) if recipe.calibration else 0
    hidden = sizes.shape.hidden if sizes.shape else min(layer.inputs for layer in sizes.layers)
    states = 2 * fed * batch.tokens * hidden * width if batch and cpu else 0  # beside a GPU: in the machine's memory
    largest = max(blocks.values()) * width
    block = largest + costs.work(recipe, sizes, batch, width)
    look = _look(eye, batch.samples if batch else PROBED, width)
    peak = libraries + max(block + states, look, 2 * HEAD_ROWS * hidden * width + states)
    seen = eye.states(width) * (fed + PROBED) if eye else 0
    text = (
        f"Memory, one block at a time (--layerwise): about {peak / 1e9:,.2f} GB ({libraries / 1e9:.2f} GB of "
        f"libraries, {largest / 1e6:,.0f} MB of block, {(block - largest) / 1e6:,.0f} MB to work on it, "
        f"{states / 1e6:,.0f} MB of hidden states"
    )
    if eye:
        text += f"; the vision tower before it {look / 1e6:,.0f} MB; {seen / 1e9:,.2f} GB of what it saw on the disk"
    return Blockwise(peak, states, seen, f"{text}).")


def _look(eye: Eye | None, samples: int, width: int) -> int:
    """The tower: its tables, one layer, one picture, and the states of the batch that is being made."""
    if eye is None:
        return 0
    return width * (eye.kept() + eye.layer()) + eye.looking(width) + samples * eye.states(width)


def instead(whole: int) -> str:
    """The first half of the plan's sentence when memory decides."""
    return f"calibrating the whole model would need {whole / 1e9:,.2f} GB and"


def _blocks(layers: tuple[Layer, ...]) -> Counter[str]:
    """Weights of each decoder block that the recipe quantizes."""
    count: Counter[str] = Counter()
    for layer in layers:
        if found := BLOCK.search(layer.name):
            count[found[1]] += layer.outputs * layer.inputs
    return count
