"""What a task weighs in a suite's score: a group is one word of the suite, however many tasks lm-eval makes of it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from quantlab import judge
from quantlab.comparable import Items
from quantlab.headlines import _accuracy
from quantlab.records import Accuracy, Number, Policy, TaskScore
from quantlab.score.draw import Draw
from quantlab.shares import mean_score, shares

WORDS = ["mmlu", "gsm8k", "mmlu", "mmlu"]


def score(task: str, right: float, group: str = "") -> TaskScore:
    return TaskScore(task=task, metric="acc", n=50, score=Number(value=right, unit="share", n=50), group=group)


def accuracy(*rights: float) -> Accuracy:
    groups = ["mmlu", "", "mmlu", "mmlu"]
    tasks = [score(name, right, group) for name, right, group in zip("abcd", rights, groups, strict=True)]
    return Accuracy(suite="s", tasks=tuple(tasks), items="items.parquet")


def items(right: int) -> Items:
    names = [str(place) for place in range(50)]
    correct = np.array([1.0] * right + [0.0] * (50 - right))
    return Items(names, names, correct, names, names)


def test_a_group_weighs_as_much_as_a_task_and_its_tasks_share_that() -> None:
    assert shares(WORDS) == pytest.approx([1 / 6, 1 / 2, 1 / 6, 1 / 6])
    assert shares(["a", "b"]) == [0.5, 0.5]
    assert mean_score(accuracy(0.2, 0.8, 0.4, 0.6).tasks) == pytest.approx((0.4 + 0.8) / 2)
    assert mean_score([]) is None


def test_the_judge_does_not_drown_a_task_in_a_group() -> None:
    """gsm8k lost 10 points and MMLU nothing: the suite lost 5, not 2.5."""
    before, after = accuracy(0.8, 0.8, 0.8, 0.8), accuracy(0.8, 0.7, 0.8, 0.8)
    left = {name: items(40) for name in "abcd"}
    found = judge.compare(before, after, left, left | {"b": items(35)}, Policy(summary="p"))
    assert found.suite.difference is not None
    assert found.suite.difference.value == pytest.approx(-5.0)
    assert found.suite.baseline.value == pytest.approx(0.8)
    other = replace(items(40), digests=["other"] * 50)
    withheld = judge.compare(before, after, left, left | {"a": other}, Policy(summary="p")).suite
    assert withheld.difference is None
    assert withheld.candidate.value == pytest.approx((0.8 + 0.7) / 2)


def test_the_ledgers_headline_is_the_judges_score() -> None:
    assert _accuracy(accuracy(0.2, 0.8, 0.4, 0.6))["score"] == pytest.approx(0.6)


def test_an_early_run_weighs_and_draws_items_as_the_judge_weighs_tasks() -> None:
    sizes = (("a", 100), ("b", 50), ("c", 100), ("d", 20))
    plain, grouped = Draw(sizes, seed=1), Draw(sizes, seed=1, words=tuple(WORDS))
    firsts = np.cumsum([0, 100, 50, 100])
    weights = np.add.reduceat(grouped.weights, firsts) / grouped.weights.sum()
    assert weights == pytest.approx(shares(WORDS))
    difference = np.zeros(270)
    difference[100:150] = -0.1
    test = grouped.test(0.02, (0.05, 0.05))
    assert test.estimate(difference[grouped.arrival]) == pytest.approx(-0.05)
    asked = [np.isin(draw.arrival[:60], np.arange(100, 150)).sum() for draw in (plain, grouped)]
    assert asked[1] > 1.3 * asked[0]
    with pytest.raises(ValueError, match="words"):
        Draw(sizes, seed=1, words=("mmlu",))


def test_without_groups_the_order_is_what_it_was() -> None:
    sizes = (("a", 30), ("b", 7))
    assert Draw(sizes, 3).arrival.tolist() == Draw(sizes, 3, words=("a", "b")).arrival.tolist()
    assert msgspec.json.decode(b'{"suite":"s","tasks":[],"items":"i"}', type=Accuracy).words == ()
