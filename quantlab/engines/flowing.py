"""In-flight batching: requests join and leave between two forward passes, as on a server.

A static batch (`Session.generate`) begins and ends together. Real load does not: a sequence that ends makes room for
the next prompt at once, so prefill and decode mix, and a decoding sequence waits while a prompt is computed. That
changes throughput and both latencies, so it is measured apart (quantlab/measure/inflight.py). An engine that can do it
says so with Ability.IN_FLIGHT and hands out a `Flow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from quantlab.engines import GenerateRequest


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that is complete. Seconds of time.monotonic."""

    key: int
    tokens: tuple[int, ...]
    scheduled: float
    """The engine took it up; before, it waited in the engine's queue."""
    first: float
    """Its first token was made."""
    last: float
    arrivals: tuple[float, ...] = ()
    """When each token came out; empty where the request was not streamed."""


class Flow(Protocol):
    """The engine's queue. One user at a time; the session's other calls wait until `leave`."""

    def enter(self, key: int, request: GenerateRequest, *, streamed: bool) -> None:
        """Put a request into the queue.

        Args:
            key: not in the queue already.
            streamed: note when each token comes out. That costs a little a token, so under heavy load only some are.

        Raises:
            BadInput: as `Session.generate`.
        """
        ...

    def step(self) -> list[Finished]:
        """One forward pass for all sequences that the engine holds; those that ended with it."""
        ...

    def leave(self) -> None:
        """Forget every request that is still under way."""
        ...


@runtime_checkable
class InFlight(Protocol):
    """A session with Ability.IN_FLIGHT."""

    def flow(self) -> Flow: ...
