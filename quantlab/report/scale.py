"""Scales and round ticks for the report's charts. Horizontal places are percentages, vertical ones pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from quantlab.records import Number
from quantlab.report import figures


@dataclass(frozen=True)
class Tick:
    """A line of the grid: place and label."""

    at: float
    text: str


@dataclass(frozen=True)
class Scale:
    """A linear scale from [low, high] onto [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) within [low, high]."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(each for each in (1, 2, 5, 10) if (high - low) / (each * step) <= count + 1)
    return [round(place * step, 10) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def domain(values: Iterable[float], margin: float) -> tuple[float, float]:
    """Limits in points that hold every finite value, zero and the margin, with a little room."""
    kept = [value for value in values if math.isfinite(value)] + [0.0, -margin]
    room = 0.08 * (max(kept) - min(kept)) or 1.0
    return min(kept) - room, max(kept) + room


def labelled(low: float, high: float, place: Scale, count: int = 5) -> tuple[Tick, ...]:
    """Ticks of a difference in points, each with its sign."""
    found = ticks(low, high, count)
    digits = 0 if all(value == round(value) for value in found) else 1
    return tuple(Tick(place(value), figures.fixed(value, digits, sign=True)) for value in found)


def ends(number: Number | None) -> list[float]:
    """The finite ones of an interval's lower end, its middle and its upper end."""
    found = (number.low, number.value, number.high) if number is not None else ()
    return [end for end in found if end is not None and math.isfinite(end)]
