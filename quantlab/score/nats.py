"""What the right answer costs, before and after: the mean change of -log p over the same items.

An answer flips only when damage exceeds its margin, so a task that a model nearly solves shows nothing in accuracy. The
likelihood of the right answer moves with every bit of damage: 3-bit rounding of a model at 99.7 % cost 0.05 points and
two thirds more nats. It explains and never decides: nats are no loss that anybody pays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from quantlab.score.paired import mean_with_error


@dataclass(frozen=True, slots=True)
class Change:
    """Mean of after - before, in nats."""

    mean: float
    error: float
    """Standard error over clusters."""
    low: float
    high: float


def change(
    before: npt.ArrayLike, after: npt.ArrayLike, clusters: npt.ArrayLike | None = None, confidence: float = 0.95
) -> Change | None:
    """Paired mean with its Student interval; None with fewer than two independent groups, or where something is not
    finite.

    Args:
        before, after: -log p of the right answer, [n], of the same items in the same order.
        clusters: [n] labels of items that belong together.
    """
    a, b = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} values before and {b.shape} after")
    labels = np.arange(len(a)) if clusters is None else np.asarray(clusters)
    groups = len(np.unique(labels))
    if groups < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    mean, error = mean_with_error(b - a, labels)
    half = float(stdtrit(groups - 1, (1 + confidence) / 2)) * error
    return Change(mean, error, mean - half, mean + half)
