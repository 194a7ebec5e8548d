"""What a GPU must hold at once: the cells of a grid, those with pictures beside those without, or batches at a context.

A picture is no token of its sequence, and costs one as many bytes as thousands of tokens: each cell is counted with as
many as its prompts hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import msgspec

from quantlab.records import Grid, Shape
from quantlab.serving import Footprint, gb


class Load(NamedTuple):
    """Sequences that must be held at once."""

    context: int
    """Tokens of a sequence at its end."""
    prompt: int
    batch: int
    images: int


class CellFit(msgspec.Struct, frozen=True, kw_only=True):
    """One cell of the grid, or one batch at the asked context."""

    context: int
    """Tokens of a sequence at its end."""
    batch: int
    needed_bytes: int
    """On each GPU."""
    fits: bool
    images: int = 0
    """In each sequence; 0 for a model that takes none."""


def loads(shape: Shape, grid: Grid | None, context: int | None, batches: tuple[int, ...], images: int) -> list[Load]:
    """The cells of `grid`; where a context is given, or no grid, batches of sequences of it (8,192 tokens).

    Args:
        images: in each sequence of `context` tokens.
    """
    seen = images if shape.cross_layers else 0
    if context is not None or grid is None:
        length = context or 8192
        return [Load(length, length, batch, seen) for batch in batches]
    alone, pictured = sorted({*grid.batch, *grid.concurrency}), grid.images if shape.cross_layers else ()
    return [
        *(Load(isl + osl, isl, load, 0) for isl, osl, load in product(grid.isl, grid.osl, alone)),
        *(Load(isl + osl, isl, load, n) for n, isl, osl, load in product(pictured, grid.isl, grid.osl, grid.batch)),
    ]


def fitted(held: Footprint, load: Load) -> CellFit:
    """Does it fit?"""
    needed = held.needed(load.context, load.prompt, load.batch, load.images)
    fits = needed <= held.capacity
    return CellFit(context=load.context, batch=load.batch, needed_bytes=needed, fits=fits, images=load.images)


def largest(held: Footprint, asked: Sequence[Load]) -> int:
    """Sequences of the longest context and the most images that is asked; in a grid their prompts come one by one."""
    longest = max(asked, key=lambda load: (load.context, load.images))
    whole = longest.prompt == longest.context
    return held.largest_batch(longest.context, longest.context if whole else 1, max(load.images for load in asked))


def sums(held: Footprint, cells: Sequence[CellFit], gpu: str) -> Iterator[str]:
    """The arithmetic of the first cells, in words."""
    for cell in cells[:12]:
        cache = cell.batch * held.sequence(cell.context, cell.images)
        rest = cell.needed_bytes - held.weights - held.reserve - cache
        yield (
            f"Batch {cell.batch} x {described(cell)}: {gb(held.weights)} weights + {gb(cache)} cache + "
            f"{gb(rest)} activations + {gb(held.reserve)} reserve = {gb(cell.needed_bytes)} of {gb(held.capacity)} on "
            f"each {gpu}: {'fits' if cell.fits else 'does not fit'}."
        )


def described(cell: CellFit) -> str:
    """One sequence of it."""
    pictures = f" and {cell.images} image{'s' if cell.images > 1 else ''}" if cell.images else ""
    return f"{cell.context:,} tokens{pictures}"
