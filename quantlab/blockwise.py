"""What calibrating costs: its time, and its memory when one decoder block is held at a time instead of the whole model.

    whole        imports + all weights + the export + one batch's activations
    block wise   imports + one block (weights, what quantizing and exporting add) + hidden states + one batch

Hidden states are samples x length x hidden size numbers, held twice: what goes into a block and what comes out. Without
the weights of the whole model in it, the second sum is nearly the same for 8 and for 90 billion weights.
"""

from __future__ import annotations

import re
from collections import Counter

import msgspec

from quantlab.records import Recipe
from quantlab.sizes import Layer, Sizes

IMPORTS_BYTES = 700_000_000
"""Resident memory of a child with torch, transformers and ModelOpt before it has read a weight: 0.66 GB measured."""
COPIES = 3.5
"""Blocks in memory at the worst moment: weights, their copy with the scales of AWQ's search or the rounded weights
while they are packed, and the temporaries of rounding the largest layer. Measured: see docs/calibration.md."""
FLOPS_A_CORE = 4e10
"""float32 operations a second of one x86 core: 171 tokens/s of SmolLM2-135M with AVX2, 250 with AVX-512."""
PASSES = {"fp8": 1.3, "int8_sq": 1.3, "nvfp4": 1.3, "int4_awq": 12.0, "w4a8_awq": 12.0, "nvfp4_awq": 12.0}
"""Cost of calibrating in forward passes: fake quantization, and AWQ's search over 11 strengths."""
HEAD_ROWS = 16384
"""Rows of the output head that are in memory at once for the probe."""
BLOCK = re.compile(r"\blayers\.(\d+)\.")
AFTER = "So one block at a time. Scoring it then needs a machine that holds the checkpoint."


class Blockwise(msgspec.Struct, frozen=True):
    """Of calibrating one block at a time."""

    peak_bytes: int
    hidden_bytes: int
    """Hidden states, also written to the disk after each block."""
    text: str
    """The arithmetic."""


def blockwise(recipe: Recipe, sizes: Sizes, architecture: str | None, activations: int, width: int) -> Blockwise | None:
    """Memory of calibrating `recipe` block by block; None where that cannot be done or the sizes are not known.

    Args:
        recipe: the recipe.
        sizes: its layers.
        architecture: `architectures[0]`.
        activations: bytes that one batch takes.
        width: bytes a weight while calibrating.
    """
    blocks = _blocks(sizes.layers)
    if recipe.preset is None or recipe.export == "folded" or architecture != "LlamaForCausalLM" or not blocks:
        return None
    hidden = min(layer.inputs for layer in sizes.layers)
    asked = recipe.calibration
    states = 2 * asked.samples * asked.length * hidden * width if asked else 0
    largest = max(blocks.values()) * width
    held = int(COPIES * largest)
    head = 2 * HEAD_ROWS * hidden * width
    peak = IMPORTS_BYTES + max(held + activations, head) + states
    text = (
        f"Memory, one block at a time (--layerwise): about {peak / 1e9:,.2f} GB ({IMPORTS_BYTES / 1e9:.1f} GB of "
        f"libraries, {COPIES:g} x {largest / 1e6:,.0f} MB of block, {states / 1e6:,.0f} MB of hidden states)."
    )
    return Blockwise(peak, states, text)


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


def seconds(recipe: Recipe, sizes: Sizes, cores: int) -> tuple[float, str] | None:
    """Time of calibrating on `cores` CPU cores, and its sentence; None on a GPU (0 cores) or where nothing is fed."""
    passes = PASSES.get(recipe.format)
    if not (cores and passes and recipe.calibration):
        return None
    tokens = recipe.calibration.samples * recipe.calibration.length
    linear = sum(each.outputs * each.inputs for each in sizes.layers)
    found = passes * 2 * linear * tokens / (FLOPS_A_CORE * cores)
    return found, (
        f"Time to calibrate: 2 x {linear:,} x {tokens:,} tokens x {passes:g} passes = about {found:.0f} s on {cores} "
        "idle cores in float32 (40 GFLOP/s each); less with bf16 units, several times as much on busy cores."
    )
