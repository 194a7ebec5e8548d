"""What each task weighs in a suite's score. Pure, and light enough for everybody who forms that mean.

Every task that a suite names weighs the same. A group is one of them: MMLU is 57 tasks to lm-eval, and were each of
these to weigh as much as GSM8K, a suite of five would be 93 % MMLU. The tasks of a group share its weight equally,
which is the macro average that Meta publishes of MMLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Valued(Protocol):
    """A number."""

    @property
    def value(self) -> float: ...


class Scored(Protocol):
    """A task's score, as records.TaskScore has it."""

    @property
    def task(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def score(self) -> Valued: ...


def shares(words: Sequence[str]) -> list[float]:
    """Weight of each task, summing to 1. `words`: the suite's word for each task; those of a group have the same."""
    return [1 / (len(set(words)) * words.count(word)) for word in words]


def words_of(scores: Sequence[Scored]) -> list[str]:
    """The suite's word for each task."""
    return [score.group or score.task for score in scores]


def mean_score(scores: Sequence[Scored]) -> float | None:
    """The suite's score, in 0..1; None without tasks."""
    weights = shares(words_of(scores))
    return sum(w * score.score.value for w, score in zip(weights, scores, strict=True)) if scores else None
