"""The sweep over requests in flight: what the engine does, how long a user waits, where more load stops paying."""

from __future__ import annotations

from typing import Literal

from quantlab.records.numbers import Number
from quantlab.records.power import Percentiles, Power
from quantlab.records.results import Result

Mode = Literal["offline", "served"]


class LoadCell(Result, frozen=True, kw_only=True):
    """One concurrency. A cell that fails a check keeps its place, with the reason."""

    isl: int
    osl: int
    concurrency: int
    """Requests in flight, kept so by the client: each that ends is followed by the next."""
    mode: Mode
    """offline: inside the engine's process. served: through its HTTP server, by a load generator."""
    source: str = ""
    """Who took the times, where it was not quantlab: "aiperf 0.13.0", "trtllm-bench throughput"."""
    valid: bool = True
    reason: str = ""
    requests: int = 0
    """Counted, each with exactly `osl` tokens."""
    computed: float | None = None
    """Requests that the engine computed at once, on average: rate times time from being taken up to the last token
    (Little's law). None where only the client could be watched."""
    waiting: float | None = None
    """Requests that stood in the engine's queue, on average; None where that could not be watched."""
    tokens_per_second: Number | None = None
    """Output tokens of all requests."""
    requests_per_second: Number | None = None
    ttft: Percentiles | None = None
    """Time to the first token, from the moment the request was sent: waiting included."""
    tpot: Percentiles | None = None
    """Mean time per further token, a request."""
    itl: Percentiles | None = None
    """Time between two tokens of one request, of the requests that were streamed."""
    latency: Percentiles | None = None
    """From sending a request to its last token."""
    variation: float | None = None
    """Coefficient of variation of the repeats' tokens a second."""
    power: Power | None = None

    @property
    def saturated(self) -> bool:
        """Requests waited in the engine's queue: it had no room or no time for more."""
        return self.waiting is not None and self.waiting >= 0.05 * self.concurrency

    @property
    def p90(self) -> tuple[float | None, float | None]:
        """Seconds to the first token and per further token that nine requests of ten kept; None: not written down."""
        return (None if self.ttft is None else self.ttft.p90, None if self.tpot is None else self.tpot.p90)


class Knee(Result, frozen=True, kw_only=True):
    """What one sweep says, for one pair of lengths."""

    isl: int
    osl: int
    mode: Mode
    concurrency: int | None
    """From here on a doubling of the load brings less than `least_gain`; None: not reached by the sweep."""
    saturated: int | None
    """First concurrency at which requests waited in the engine's queue."""
    least_gain: float
    """Share of throughput that a doubling must bring to be worth it."""
    text: str
    """The rule and its result, in words."""
