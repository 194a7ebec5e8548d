"""Timed batches that may be believed: steady, whole, and really in flight together.

A first counted run that is slower than those after it was still warm-up (a kernel compiled for this shape, a graph
captured, memory that grew): it is set aside and another run is made. What then still varies is said as the coefficient
of variation. And a batch is only a batch if all its sequences were being decoded at one moment: a scheduler that takes
fewer at once serves the rest afterwards, and the speed is that of another batch size.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quantlab.measure.power import Meter
from quantlab.records import Number, Percentiles, Power

SLOWER = 1.1
"""A first run slower than the median of the others by this factor was warm-up."""
MOST_DISCARDED = 3
"""Afterwards the cell is measured as it is, and its variation tells."""


@dataclass(frozen=True)
class Timed:
    """One static batch: seconds from the call to each sequence's first and last token."""

    first: tuple[float, ...]
    last: tuple[float, ...]

    @property
    def ttft(self) -> float:
        """Every sequence has its first token."""
        return max(self.first)

    @property
    def total(self) -> float:
        """Every sequence is complete."""
        return max(self.last)

    @property
    def in_flight(self) -> int:
        """Most sequences between their first and last token at one moment."""
        begins, ends = sorted(self.first), sorted(self.last)
        return max(place + 1 - sum(end <= begin for end in ends) for place, begin in enumerate(begins))


@dataclass(frozen=True)
class Counted:
    """The counted runs of one cell."""

    runs: tuple[Timed, ...]
    discarded: int
    power: Power | None

    @property
    def variation(self) -> float | None:
        """Coefficient of variation of the total time; None for a single run."""
        return variation([run.total for run in self.runs])


def counted(run: Callable[[], Timed], repeats: int, tokens: int, gpus: int) -> Counted:
    """`repeats` runs after those that were still warm-up.

    Args:
        run: makes one batch.
        repeats: counted runs.
        tokens: output tokens of one run, for the energy.
        gpus: cards whose energy is counted.
    """
    runs: list[Timed] = []
    discarded = 0
    with Meter(gpus) as meter:
        while len(runs) < repeats:
            runs.append(run())
            if len(runs) == repeats > 1 and discarded < MOST_DISCARDED and _was_warmup(runs):
                del runs[0]
                discarded += 1
    return Counted(tuple(runs), discarded, meter.power(tokens * (repeats + discarded)))


def _was_warmup(runs: Sequence[Timed]) -> bool:
    return runs[0].total > SLOWER * statistics.median(run.total for run in runs[1:])


def variation(values: Sequence[float]) -> float | None:
    """Coefficient of variation; None for a single value."""
    return statistics.stdev(values) / statistics.mean(values) if len(values) > 1 else None


def median(values: Sequence[float], unit: str, numerics: str, better: Literal["higher", "lower"] = "higher") -> Number:
    """The median of the repeats with the least and the most. `numerics`: of the artifact that was timed."""
    return Number(
        value=statistics.median(values),
        unit=unit,
        n=len(values),
        low=min(values),
        high=max(values),
        better=better,
        provenance="measured" if numerics == "native" else "emulated",
    )


def percentiles(values: Sequence[float]) -> Percentiles:
    """p50, p90 and p99 of seconds."""
    p50, p90, p99 = (float(each) for each in np.percentile(np.asarray(values), (50, 90, 99)))
    return Percentiles(p50=p50, p90=p90, p99=p99)
