"""A mean with its uncertainty as a `Number`.

The interval is Student's t with one degree of freedom less than there are independent groups (clusters of
items, windows of text): with a dozen groups the normal quantile would be 10 % too narrow.
"""

from __future__ import annotations

import math
from typing import Literal

from scipy.special import stdtrit

from quantlab.records import Number

CONFIDENCE = 0.95


def estimate(
    value: float,
    error: float,
    groups: int,
    unit: str,
    n: int,
    *,
    better: Literal["higher", "lower"] = "higher",
    high: float = math.inf,
) -> Number:
    """Args:
    value: the estimate, never below 0.
    error: its standard error.
    groups: independent observations behind it, 2 at least.
    unit: as in `Number`.
    n: items or positions.
    better: which direction is good.
    high: largest possible value.
    """
    half = float(stdtrit(groups - 1, (1 + CONFIDENCE) / 2)) * error
    return Number(
        value=value,
        unit=unit,
        n=n,
        standard_error=error,
        low=max(0.0, value - half),
        high=min(high, value + half),
        confidence=CONFIDENCE,
        better=better,
    )
