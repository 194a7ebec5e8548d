"""Where more load stops paying: the knee of throughput over requests in flight.

In a closed loop Little's law ties the two: requests in flight = rate x latency. So when the load doubles and the rate
gains only a share g, every request takes 2 / (1 + g) times as long; there is no third way. Below the knee decoding is
bound by memory, one pass over the weights serves twice as many sequences, and g is near 1. Above it g tends to 0, and
all of the doubling is paid by those who wait.

The knee is the first load from which a doubling gains less than LEAST_GAIN. Steps that are no doublings are scaled:
the gain over a step is taken as so many equal gains as it has doublings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

LEAST_GAIN = 0.2
"""Less than a fifth more tokens for twice the load: each request then takes 1.67 times as long."""


@dataclass(frozen=True)
class Point:
    """One measured load."""

    concurrency: int
    rate: float
    """Tokens a second of all requests."""
    latency: float
    """Seconds of a request, median; for the words only."""


@dataclass(frozen=True)
class Found:
    """The knee and why."""

    concurrency: int | None
    text: str


def knee(points: Sequence[Point], least_gain: float = LEAST_GAIN) -> Found:
    """The first load that is not worth doubling.

    Args:
        points: valid ones; the order does not matter.
    """
    ordered = sorted(points, key=lambda point: point.concurrency)
    rule = f"a doubling of the load must bring {least_gain:.0%} more tokens"
    if len(ordered) < 2:
        return Found(None, f"{rule}; fewer than two loads were measured")
    for one, more in pairwise(ordered):
        gained = gain(one, more)
        if gained < least_gain:
            slower = more.latency / one.latency
            return Found(
                one.concurrency,
                f"{rule}; from {one.concurrency} to {more.concurrency} requests in flight it brings {gained:.0%}, "
                f"and a request takes {slower:.2f} times as long",
            )
    most = ordered[-1].concurrency
    return Found(None, f"{rule}, and up to {most} requests in flight it does: the knee lies beyond the sweep")


def gain(one: Point, more: Point) -> float:
    """Share of throughput that each doubling between two loads brings; negative where it falls."""
    doublings = math.log2(more.concurrency / one.concurrency)
    return float((more.rate / one.rate) ** (1 / doublings)) - 1
