"""Do the cells of a grid differ by more than repeats of one cell do? One-way analysis of variance, in plain numbers.

Each cell is repeated with other seeds. What repeats of a cell differ by is noise; all cells together tell how large it
is (pooled, so that two repeats a cell are enough when there are a few cells). The largest difference between cell means
is then looked at twice: the F test asks whether the means differ at all, an interval says by how much each lies above
the best. That interval is for one difference; the best of many looks better than it is, so read it as a screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import fdtrc, stdtrit


@dataclass(frozen=True)
class Spread:
    """What a grid of repeats says."""

    means: tuple[float, ...]
    noise: float
    """Standard deviation of one measurement between repeats of a cell, pooled."""
    freedom: int
    """Degrees of freedom of that: repeats minus cells."""
    largest: float
    """Between the best mean and the worst."""
    p_value: float
    """Chance that equal cells show means as far apart as these."""

    def half_width(self, first: int, second: int, confidence: float) -> float:
        """Of the interval of a difference of two means over `first` and `second` repeats."""
        t = float(stdtrit(self.freedom, (1 + confidence) / 2))
        return t * self.noise * math.sqrt(1 / first + 1 / second)


def spread(cells: Sequence[Sequence[float]], taken: int = 0) -> Spread:
    """Of measurements by cell.

    Args:
        cells: measurements, cell by cell.
        taken: degrees of freedom that were spent before, on means that were taken out of the measurements.

    Raises:
        ValueError: fewer than two cells, an empty one, or no cell with a repeat.
    """
    if len(cells) < 2 or not all(cells):
        raise ValueError("at least two cells, each with a measurement, are compared")
    count = sum(map(len, cells))
    freedom = count - len(cells) - taken
    if freedom < 1:
        raise ValueError("without repeats there is no noise to compare with")
    means = tuple(sum(cell) / len(cell) for cell in cells)
    grand = sum(map(sum, cells)) / count
    within = sum((value - mean) ** 2 for cell, mean in zip(cells, means, strict=True) for value in cell)
    between = sum(len(cell) * (mean - grand) ** 2 for cell, mean in zip(cells, means, strict=True))
    pooled = within / freedom
    ratio = math.inf if pooled == 0 else between / (len(cells) - 1) / pooled
    chance = 1.0 if between == 0 else 0.0 if pooled == 0 else float(fdtrc(len(cells) - 1, freedom, ratio))
    return Spread(means, math.sqrt(pooled), freedom, max(means) - min(means), chance)
