"""At which batch does one precision overtake another, and how sure is that?

A ranking at one batch hides the thing that decides: 4-bit weights win where reading them is the cost (small batches),
FP8 where multiplying is. Each speed is drawn from its interval many times; where the sign of the difference changes,
the batch is interpolated on logarithms. The middle 80 % of these batches is the interval, and the share of draws that
cross at all is said. An error that a prediction makes at one batch it makes at the next, so predicted speeds of one
precision move together; measured ones move alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantlab.predict.cells import Prediction
from quantlab.predict.tiers import SHARED, UNCALIBRATED_GAP

DRAWS = 2000
SIGMAS = 1.2816
"""Half width of the central 80 % of a normal distribution, in standard deviations."""


@dataclass(frozen=True, slots=True)
class Crossover:
    """Where `ahead_below` stops being the faster of the two."""

    ahead_below: str
    ahead_above: str
    batch: float
    """Of the point estimates; NaN where they do not cross."""
    low: float
    high: float
    """The middle 80 % of the draws that cross within these batches, and the point itself."""
    share: float
    """Draws that cross in this direction."""

    @property
    def crosses(self) -> bool:
        return math.isfinite(self.batch)


def crossover(
    one: str, first: Mapping[int, Prediction], other: str, second: Mapping[int, Prediction], *, seed: int = 0
) -> Crossover | None:
    """Where the faster of two precisions changes, over the batches that both have.

    Args:
        one, other: names.
        first, second: batch -> speed.
        seed: of the draws.

    Returns:
        None where fewer than two batches can be compared, or a speed cannot be ranked at all.
    """
    batches = sorted(set(first) & set(second))
    if len(batches) < 2 or not all(each[b].rankable for each in (first, second) for b in batches):
        return None
    random = np.random.default_rng(seed)
    common = random.standard_normal((DRAWS, 1))
    gaps = draw(first, batches, random, common) - draw(second, batches, random, common)
    middle = np.log([first[b].tokens_per_second / second[b].tokens_per_second for b in batches])
    point = _first_change(batches, middle)
    falling = bool(middle[0] > middle[-1])
    found = [each for row in gaps if bool(row[0] > row[-1]) == falling and (each := _first_change(batches, row))]
    low, high = (float(each) for each in np.quantile(found, [0.1, 0.9])) if found else (math.nan, math.nan)
    if point is not None and found:
        low, high = min(low, point), max(high, point)
    names = (one, other) if falling else (other, one)
    return Crossover(*names, point if point is not None else math.nan, low, high, len(found) / DRAWS)


def draw(
    speeds: Mapping[int, Prediction], batches: list[int], random: np.random.Generator, common: np.ndarray
) -> np.ndarray:
    """Logarithms of tokens a second.

    Args:
        speeds: batch -> speed, of one precision.
        batches: those to draw.
        random: this precision's own errors.
        common: [draws, 1] standard normal, the error that all precisions share where it is the GPU's (`SHARED`).

    Returns:
        [draws, batches].
    """
    draws = len(common)
    width = np.array([speeds[b].spread / SIGMAS for b in batches])
    shared = np.array([speeds[b].tier in SHARED for b in batches])
    alone = np.array([speeds[b].provenance != "predicted" for b in batches])
    own = np.where(alone, random.standard_normal((draws, len(batches))), random.standard_normal((draws, 1)))
    ratio = UNCALIBRATED_GAP / math.sqrt(2) / SIGMAS
    errors = np.where(shared, width * common + ratio * own, width * own)
    middle = np.log([math.sqrt(speeds[b].low * speeds[b].high) for b in batches])
    return np.asarray(middle + errors)


def _first_change(batches: list[int], gaps: np.ndarray) -> float | None:
    """The batch at which the sign first changes; None where it never does."""
    for index in range(len(batches) - 1):
        left, right = float(gaps[index]), float(gaps[index + 1])
        if left * right < 0:
            share = left / (left - right)
            return float(batches[index] * (batches[index + 1] / batches[index]) ** share)
    return None
