"""What a card drew while something was timed, and how times are summed up."""

from __future__ import annotations

from quantlab.records.numbers import Number
from quantlab.records.results import Result


class Power(Result, frozen=True, kw_only=True):
    """What the GPUs of an artifact drew while a cell was timed, from the driver's own counters (NVML)."""

    joules_per_token: Number | None = None
    """Energy of the counted runs over the tokens that came out; None where it is not valid."""
    watts: float = 0.0
    """Mean draw over the counted runs, all GPUs of the artifact."""
    clock_mhz: float | None = None
    """Median clock of the multiprocessors."""
    clock_low_mhz: float | None = None
    """Lowest clock that was seen."""
    throttled: tuple[str, ...] = ()
    """Why the driver held the clock down at some moment: "power cap", "heat", "hardware slowdown"."""
    seconds: float = 0.0
    """How long was measured."""
    valid: bool = True
    """False: too short for the counter, or somebody else worked on the same GPU."""
    reason: str = ""


class Percentiles(Result, frozen=True, kw_only=True):
    """Seconds over all sequences of all counted runs."""

    p50: float
    p90: float
    p99: float
