"""Items whose answer changed, out of two tables of item results.

Two precisions with equal scores can disagree on many items (Dutta et al. 2024, arXiv:2407.09141), and a list of what
changed shows what kind of thing was forgotten. The most surprising come first: the baseline was sure of one answer and
the candidate is sure of another. For choices that is measured by their log-likelihoods as the task's metric weighs
them; with a the baseline's answer and b the candidate's,

    surprise = (L(a) - L(b) under the baseline) + (L(b) - L(a) under the candidate)

Both terms are at least zero. A coin that fell to the other side has a surprise near zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from quantlab.records import Flip

LENGTHS: dict[str, Callable[[str], int]] = {
    "acc": lambda choice: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}
"""Metric -> by what it divides a choice's log-likelihood."""

Columns = Mapping[str, Sequence[Any]]
"""Of the Parquet file of item results, the rows of one task."""


def flips(left: Mapping[str, Columns], right: Mapping[str, Columns], metrics: Mapping[str, str]) -> list[Flip]:
    """Every item of the tasks in `metrics` that the candidate answers otherwise, the most surprising first.

    Items are paired by their id, and only where both were asked the very same tokens.

    Args:
        left: the baseline's item results by task.
        right: the candidate's.
        metrics: task -> metric, of the tasks that are comparable.
    """
    found = [one for task in sorted(metrics) if task in left and task in right
             for one in _of_task(left[task], right[task], metrics[task])]  # fmt: skip
    return sorted(found, key=lambda one: -1.0 if one.surprise is None else one.surprise, reverse=True)


def most_telling(found: Sequence[Flip], most: int) -> tuple[Flip, ...]:
    """At most `most` of them in their order: what changed sides before what is merely wrong in another way."""
    sides = [place for place, one in enumerate(found) if one.direction != "churn"]
    churn = [place for place, one in enumerate(found) if one.direction == "churn"]
    return tuple(found[place] for place in sorted((sides + churn)[:most]))


def _of_task(a: Columns, b: Columns, metric: str) -> Iterator[Flip]:
    places = {name: place for place, name in enumerate(b["id"])}
    for first, name in enumerate(a["id"]):
        second = places.get(name)
        if second is None or a["prompt_digest"][first] != b["prompt_digest"][second]:
            continue
        before, after = a["correct"][first] > 0.5, b["correct"][second] > 0.5
        same = a["answer"][first] == b["answer"][second]
        if before != after:
            yield _flip(a, b, first, second, metric, "regressed" if before else "improved")
        elif not before and not same:
            yield _flip(a, b, first, second, metric, "churn")


def _flip(a: Columns, b: Columns, first: int, second: int, metric: str, way: Any) -> Flip:
    choices = json.loads(a["choices"][first] or "[]")
    before, after = (weighed(one["loglikelihoods"][place], choices, metric) for one, place in ((a, first), (b, second)))
    right = _indices(a["right"][first])
    return Flip(
        task=str(a["task"][first]),
        id=str(a["id"][first]),
        kind=str(a["kind"][first]),
        direction=way,
        prompt=str(a["prompt"][first]),
        right=_words(str(a["right"][first]), choices),
        baseline=_words(str(a["answer"][first]), choices),
        candidate=_words(str(b["answer"][second]), choices),
        margin_baseline=_margin(before, right),
        margin_candidate=_margin(after, right),
        surprise=_surprise(before, after, str(a["answer"][first]), str(b["answer"][second])),
    )


def weighed(likelihoods: Sequence[float], choices: Sequence[str], metric: str) -> list[float]:
    """Log-likelihoods as `metric` compares them; empty where there is no choice or a number is missing.

    acc: nats. acc_norm: nats a character. acc_bytes: nats a byte. Others do not choose by these numbers alone.
    """
    rule = LENGTHS.get(metric)
    if rule is None or len(choices) < 2 or len(likelihoods) != len(choices) or not all(map(math.isfinite, likelihoods)):
        return []
    return [value / max(1, rule(choice)) for value, choice in zip(likelihoods, choices, strict=True)]


def _margin(values: Sequence[float], right: Sequence[int]) -> float | None:
    good = [value for place, value in enumerate(values) if place in right]
    bad = [value for place, value in enumerate(values) if place not in right]
    return round(max(good) - max(bad), 4) if good and bad else None


def _surprise(before: Sequence[float], after: Sequence[float], ours: str, theirs: str) -> float | None:
    if not before or not after or not (ours.isdigit() and theirs.isdigit()):
        return None
    a, b = int(ours), int(theirs)
    return round(before[a] - before[b] + after[b] - after[a], 4)


def _indices(right: str) -> list[int]:
    """Places of the right choices: one number, or a JSON list of them."""
    if right.isdigit():
        return [int(right)]
    try:
        found = json.loads(right)
    except ValueError:
        return []
    return [int(each) for each in found if isinstance(each, int)] if isinstance(found, list) else []


def _words(answer: str, choices: Sequence[str]) -> str:
    """An answer as a reader knows it: the text of the choice, not its number."""
    places = _indices(answer) if choices else []
    if not places or any(place >= len(choices) for place in places):
        return answer
    return " or ".join(str(choices[place]).strip() for place in places)
