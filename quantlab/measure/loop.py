"""A closed loop: a fixed number of requests in flight, each that ends followed at once by the next.

Requests of one length that begin together also end together, and then in-flight batching is a static batch in disguise:
everybody prefills, everybody decodes. So the first wave is given lengths from one token to the full one, spread evenly;
its ends are spread, and so is all that follows. That wave and the grid's warm-up waves are not counted. Repeats are
windows of one running load, back to back (batch means): nothing is started and nothing drains while it is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from quantlab.engines import GenerateRequest
from quantlab.engines.flowing import Flow

STREAMED = 32
"""Requests in flight whose single tokens are watched, at most."""


@dataclass(frozen=True)
class Took:
    """One request. Seconds of time.monotonic."""

    entered: float
    scheduled: float
    first: float
    last: float
    tokens: int
    arrivals: tuple[float, ...]


@dataclass(frozen=True)
class Window:
    """One repeat: requests that ended in it, in order, and how long it took."""

    seconds: float
    took: tuple[Took, ...]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.took) / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return sum(one.tokens for one in self.took) / self.seconds

    @property
    def computed(self) -> float:
        """Requests that were computed at once, on average: Little's law."""
        return sum(one.last - one.scheduled for one in self.took) / self.seconds

    @property
    def waiting(self) -> float:
        """Requests in the engine's queue, on average."""
        return sum(one.scheduled - one.entered for one in self.took) / self.seconds


class Loop:
    """One load on one engine."""

    def __init__(self, flow: Flow, make: Callable[[int], GenerateRequest], concurrency: int, osl: int) -> None:
        """Args:
        make: a new request for so many tokens; each call another prompt.
        """
        self._flow, self._make, self._concurrency, self._osl = flow, make, concurrency, osl
        self._every = -(-concurrency // STREAMED)
        self._entered: dict[int, float] = {}
        self._asked: dict[int, int] = {}
        self._keys = 0

    def warm(self, waves: int) -> None:
        """Begin, and run until the load is steady: the spread wave and `waves` whole ones have ended."""
        for place in range(self._concurrency):
            self._enter(max(1, round(self._osl * (place + 1) / self._concurrency)))
        self.window((1 + waves) * self._concurrency)

    def window(self, requests: int) -> Window:
        """Go on until `requests` have ended; those that end in the same step are among them.

        Raises:
            ValueError: a request came back with another length than was asked.
        """
        began = time.monotonic()
        took: list[Took] = []
        while len(took) < requests:
            for done in self._flow.step():
                asked = self._asked.pop(done.key)
                if len(done.tokens) != asked:
                    raise ValueError(f"asked for {asked} tokens, got {len(done.tokens)}")
                times = (done.scheduled, done.first, done.last)
                took.append(Took(self._entered.pop(done.key), *times, asked, done.arrivals))
                self._enter(self._osl)
        return Window(time.monotonic() - began, tuple(took))

    def _enter(self, tokens: int) -> None:
        key, self._keys = self._keys, self._keys + 1
        self._asked[key] = tokens
        self._entered[key] = time.monotonic()
        self._flow.enter(key, self._make(tokens), streamed=key % self._every == 0)
