"""In-flight batching of engine "fake": one token a step for each of at most `places` sequences; the others wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from quantlab.engines import GenerateRequest
from quantlab.engines.flowing import Finished


@dataclass
class _Sequence:
    request: GenerateRequest
    scheduled: float = 0.0
    tokens: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)


class FakeFlow:
    """See quantlab/engines/flowing.py. An end-of-sequence token or a stop string ends nothing here."""

    def __init__(
        self, next_token: Callable[[Sequence[int]], int], check: Callable[[GenerateRequest], None], places: int
    ) -> None:
        self._next, self._check, self._places = next_token, check, places
        self._held: dict[int, _Sequence] = {}

    def enter(self, key: int, request: GenerateRequest, *, streamed: bool) -> None:
        self._check(request)
        self._held[key] = _Sequence(request)

    def step(self) -> list[Finished]:
        ended = []
        for key, one in list(self._held.items())[: self._places]:
            one.scheduled = one.scheduled or time.monotonic()
            one.tokens.append(self._next((*one.request.prompt, *one.tokens)))
            one.arrivals.append(time.monotonic())
            if len(one.tokens) == one.request.max_tokens:
                del self._held[key]
                times = (one.scheduled, one.arrivals[0], one.arrivals[-1])
                ended.append(Finished(key, tuple(one.tokens), *times, tuple(one.arrivals)))
        return ended

    def leave(self) -> None:
        self._held.clear()
