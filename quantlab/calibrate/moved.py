"""Scales that a program moved between layers, found again from the weights alone.

AWQ and SmoothQuant multiply a layer's columns and divide whatever comes before. What is divided is a norm (q, k, v and
gate, up), or the rows of another linear layer: up_proj before down_proj, v_proj before o_proj. A checkpoint that was
made elsewhere does not say what was moved where. But the best multiple of each row, <w, q> / <q, q>, and of each column
shows it: where something was moved, the rows of the one and the columns of the other are reciprocal, up to the noise of
rounding (relative error of a weight over the root of their number, below 1 %). A multiple is also too small by the
square of that error (6 % for a pair in int4), alike for all, so both sides are taken relative to their median.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PAIRS = (("mlp.up_proj", "mlp.down_proj"), ("self_attn.v_proj", "self_attn.o_proj"))
"""(rows divided, columns multiplied) in one block."""
MOVED = 0.03
"""Median distance of a multiple from the median one above which something was moved; rounding alone: below 0.01."""
ALIKE = 0.1
"""The same where all were moved by nearly the same factor."""
RECIPROCAL = 0.05
"""Largest median distance of row times column from 1, both relative."""
TOGETHER = (0.8, 1.25)
"""Product of the two medians: a wrong scale of a whole layer was not moved."""


@dataclass(frozen=True)
class Fit:
    """How one layer lies to its 16-bit weights, both float32 [outputs, inputs], a norm's change undone."""

    plain: float
    """|Wq - W| / |W|."""
    rows: Tensor
    """[outputs]: best multiple of each row."""
    columns: Tensor
    """[inputs]."""
    by_rows: float
    """The error with these multiples."""
    by_columns: float
    gain: float
    """Best multiple of the whole matrix; 1 where a scale is right."""


def fit(source: Tensor, made: Tensor) -> Fit:
    """Raises nothing: what is not finite comes out as an infinite error."""
    rows = (source * made).sum(1) / made.square().sum(1).clamp_min(1e-30)
    columns = (source * made).sum(0) / made.square().sum(0).clamp_min(1e-30)
    gain = float((source * made).sum() / made.square().sum().clamp_min(1e-30))
    errors = (_off(source, each) for each in (made, made * rows.unsqueeze(1), made * columns))
    plain, by_rows, by_columns = errors
    return Fit(plain, rows, columns, by_rows, by_columns, gain)


def _off(source: Tensor, made: Tensor) -> float:
    found = float((made - source).norm() / source.norm().clamp_min(1e-30))
    return found if found == found else float("inf")


def explained(first: Fit, second: Fit) -> bool:
    """The columns of `second` undo what was done to the rows of `first`."""
    size = second.columns.numel()
    repeat = size // max(1, first.rows.numel())
    if (
        first.rows.numel() * repeat != size
        or not TOGETHER[0] < _middle(first.rows) * _middle(second.columns) < (TOGETHER[1])
    ):
        return False
    columns, rows = second.columns / _middle(second.columns), first.rows / _middle(first.rows)
    # Grouped-query attention: a value head's rows serve several query heads, whose channels lie side by side.
    rows = rows if repeat == 1 else _shared(rows, columns, repeat)
    apart = (rows * columns - 1).abs().median()
    uneven, whole = float((columns - 1).abs().median()), abs(_middle(second.columns) - 1)
    return bool((uneven > MOVED or whole > ALIKE) and apart < RECIPROCAL)


def _middle(values: Tensor) -> float:
    return float(values.median()) or 1.0


def _shared(rows: Tensor, columns: Tensor, repeat: int) -> Tensor:
    """[inputs]: the row that feeds each input channel. The width of a head is not known here; the one of the usual
    widths that fits best is taken."""
    options = [
        rows.view(-1, width).repeat_interleave(repeat, 0).reshape(-1)
        for width in (16, 32, 64, 80, 96, 128, 256)
        if rows.numel() % width == 0
    ]
    best = min(options, key=lambda each: float((each * columns - 1).abs().median()), default=torch.ones_like(columns))
    return best
