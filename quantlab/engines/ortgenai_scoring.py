"""Log-probabilities from ONNX Runtime GenAI, each token of the prefix tree computed once.

All sequences are sorted, so that those with a common beginning stand together, and go through one generator of one row:
it is rewound to where the next sequence parts from the last one, and only the rest is computed. Going through a sorted
list this way is a walk through the prefix tree, depth first: a question is computed once for all its answers, and the
examples before it once for all questions. Rewinding is exact: 0.0 between a logit computed so and otherwise (measured).

One row needs no padding. Rows of a batch would, and the SDK then masks every token that equals the padding token, even
one that the prompt itself holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantlab.engines import Score, ScoreRequest

LOGITS_AT_ONCE = 2**25
"""Numbers that one pass may hand out: 128 MB."""


@dataclass(slots=True)
class _Answer:
    """A request while it is answered."""

    request: ScoreRequest
    path: np.ndarray
    """Its tokens but the last one, which is predicted and never fed; int32."""
    logprobs: np.ndarray
    best: np.ndarray
    distribution: np.ndarray | None

    @property
    def first(self) -> int:
        """Position that predicts the first token of the continuation."""
        return len(self.request.context) - 1

    def take(self, logits: np.ndarray, start: int, reach: int) -> None:
        """Read what this request wants from `logits` [positions, vocabulary], the first at position `start`.

        Positions from `reach` on belong to another path.
        """
        low, high = max(self.first, start), min(len(self.path), reach, start + len(logits))
        if low >= high:
            return
        rows = logits[low - start : high - start]
        place = slice(low - self.first, high - self.first)
        wanted = np.asarray(self.request.continuation[place])
        largest = rows.max(-1, keepdims=True)
        total = largest + np.log(np.exp(rows - largest).sum(-1, keepdims=True))
        self.logprobs[place] = np.minimum(rows[np.arange(len(rows)), wanted] - total[:, 0], 0)
        self.best[place] = rows.argmax(-1) == wanted
        if self.distribution is not None:
            self.distribution[place] = rows - total


def score(requests: Sequence[ScoreRequest], vocabulary: int, start: Callable[[int], Any]) -> list[Score]:
    """Answer `requests`, which are known to fit.

    Args:
        requests: what is asked.
        vocabulary: number of token ids.
        start: makes a generator of one row that holds so many tokens.
    """
    answers = [_answer(request, vocabulary) for request in requests]
    asked = sorted((each for each in answers if each.request.continuation), key=lambda each: each.path.tolist())
    if asked:
        _walk(asked, max(1, LOGITS_AT_ONCE // vocabulary), start(max(len(each.path) for each in asked) + 1))
    return [Score(each.logprobs, bool(each.best.all()), each.distribution) for each in answers]


def _answer(request: ScoreRequest, vocabulary: int) -> _Answer:
    count = len(request.continuation)
    return _Answer(
        request,
        np.array((*request.context, *request.continuation[:-1]), dtype=np.int32),
        np.full(count, np.nan, dtype=np.float32),
        np.zeros(count, dtype=bool),
        np.empty((count, vocabulary), dtype=np.float32) if request.full else None,
    )


def _walk(asked: list[_Answer], most: int, generator: Any) -> None:
    """Feed the sorted paths; `most`: positions in one pass."""
    shared = [0, *(_common(one.path, next_.path) for one, next_ in itertools.pairwise(asked))]
    held = 0
    for place, answer in enumerate(asked):
        known = shared[place]
        if known == len(answer.path):
            continue  # the same path as before, whose answers were taken together
        if known < held:
            generator.rewind_to(known)
        members = _members(asked, shared, place)
        for start in range(known, len(answer.path), most):
            generator.append_tokens(answer.path[None, start : start + most])
            logits = generator.get_output("logits")[0].astype(np.float32, copy=False)
            for member, reach in members:
                member.take(logits, start, reach)
        held = len(answer.path)


def _members(asked: list[_Answer], shared: list[int], place: int) -> list[tuple[_Answer, int]]:
    """`place` and those after it that share more with it than is known already, each with how far it goes along."""
    members, reach = [(asked[place], len(asked[place].path))], len(asked[place].path)
    for next_ in range(place + 1, len(asked)):
        reach = min(reach, shared[next_])
        if reach <= shared[place]:
            break
        members.append((asked[next_], reach))
    return members


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common beginning."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
