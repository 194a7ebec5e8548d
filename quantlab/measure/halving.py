"""A batch that does not fit into memory is halved, and the record says so.

How much fits is known to nobody beforehand: it depends on what else is on the GPU, on fragments, on the SDK's own
plans. Losing a night's evaluation to the one block that is a little too large would be absurd, and shrinking every
block would slow down everyone. So a call that fails for memory is repeated in two halves, and no later call is larger
than what failed. A single request that does not fit is an error like any other.

Only where batching is the session's own affair: scores and answers are those of any other batching, up to the order of
summation. A throughput cell is never split, because its batch is what is measured: it is invalid, with the reason.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from quantlab.engines import Completion, GenerateRequest, Score, ScoreRequest, Session
from quantlab.measure.doubts import tells_of_memory

Request = TypeVar("Request", GenerateRequest, ScoreRequest)


class Halving:
    """A Session that makes two calls of one that does not fit."""

    def __init__(self, session: Session, tell: Callable[[str], None]) -> None:
        """Args:
        tell: gets one sentence each time a batch is halved.
        """
        self._session, self._tell = session, tell
        self.max_length, self.device = session.max_length, session.device
        self.notes: list[str] = []
        self._most: int | None = None
        """Requests of one call, once something did not fit."""

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        return self._answered(requests, self._session.generate)

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        return self._answered(requests, self._session.logprobs)

    def _answered(self, requests: Sequence[Request], compute: Callable[[Sequence[Request]], list[Any]]) -> list[Any]:
        answers: list[Any] = []
        while len(answers) < len(requests):
            some = requests[len(answers) : len(answers) + (self._most or len(requests))]
            found = self._tried(some, compute)
            if found is None:
                self._halve(len(some))
            else:
                answers += found
        return answers if requests else compute(requests)

    def _tried(self, some: Sequence[Request], compute: Callable[[Sequence[Request]], list[Any]]) -> list[Any] | None:
        """The answers, or None: these do not fit together."""
        try:
            return compute(some)
        except Exception as error:
            if len(some) == 1 or not tells_of_memory(error):
                raise
        return None

    def _halve(self, failed: int) -> None:
        self._most = -(-failed // 2)
        note = f"out of memory with {failed} requests at once; went on with {self._most}."
        self.notes.append(note)
        self._tell(note)
        gc.collect()  # the failed call's tensors hang on its traceback
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
