"""Which items are named as flipped, in which order; categories against a simulation of harmless ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from quantlab.categories import categories
from quantlab.judge import Items, compare
from quantlab.pipeline.flips import flips, most_telling, weighed
from quantlab.records import Accuracy, Comparison, Flip, Number, Policy, TaskScore

POLICY = Policy(summary="")
CHOICES = ["red", "green", "blue"]


def table(*rows: dict[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """Item results of one task, as the Parquet file has them."""
    base = {"task": "t", "kind": "", "prompt": "?", "prompt_digest": "d", "choices": json.dumps(CHOICES), "right": "0"}
    full = [base | {"id": str(place)} | row for place, row in enumerate(rows)]
    return {"t": {name: [row[name] for row in full] for name in full[0]}}


def answered(values: list[float], **other: Any) -> dict[str, Any]:
    best = int(np.argmax(values))
    return {"answer": str(best), "correct": float(best == 0), "loglikelihoods": values, **other}


def test_directions_margins_and_order() -> None:
    left = table(
        answered([-1, -2, -3]),
        answered([-1, -5, -6]),
        answered([-2, -1, -4]),
        answered([-3, -1, -2]),
        answered([-1, -2, -2]),
        answered([-9, -1, -2]),
    )
    right = table(
        answered([-2.0, -1.9, -3]),
        answered([-5, -1, -6]),
        answered([-1, -2, -4]),
        answered([-3, -2, -1]),
        answered([-1, -2, -2]),
        answered([-9, -1, -2]),
    )
    found = flips(left, right, {"t": "acc"})
    assert [(one.id, one.direction) for one in found] == [
        ("1", "regressed"), ("2", "improved"), ("3", "churn"), ("0", "regressed"),
    ]  # fmt: skip
    assert [one.surprise for one in found] == pytest.approx([8, 2, 2, 1.1])
    assert (found[0].right, found[0].baseline, found[0].candidate) == ("red", "red", "green")
    assert (found[0].margin_baseline, found[0].margin_candidate) == (4, -4)
    assert (found[3].margin_baseline, found[3].margin_candidate) == (1, pytest.approx(-0.1))
    assert [one.id for one in most_telling(found, 3)] == ["1", "2", "0"]  # what changed sides before what churned
    assert most_telling(found, 9) == tuple(found)


def test_only_the_same_question_is_compared() -> None:
    left = table(answered([-1, -2, -3], id="a"), answered([-1, -2, -3], id="b"), answered([-1, -2, -3], id="c"))
    right = table(answered([-2, -1, -3], id="c"), answered([-2, -1, -3], id="a", prompt_digest="other"))
    assert [one.id for one in flips(left, right, {"t": "acc"})] == ["c"]
    assert flips(left, right, {}) == []


def test_several_right_answers_and_generated_ones() -> None:
    two = table(answered([-1, -2, -3], right="[0, 2]", correct=1.0)), table(answered([-2, -1, -3], right="[0, 2]"))
    (found,) = flips(*two, {"t": "acc"})
    assert (found.right, found.margin_baseline, found.margin_candidate) == ("red or blue", 1, -1)
    plain = {"choices": "[]", "right": "42", "loglikelihoods": []}
    said = table(plain | {"answer": "42", "correct": 1.0}), table(plain | {"answer": "7", "correct": 0.0})
    (found,) = flips(*said, {"t": "exact_match"})
    assert (found.right, found.baseline, found.candidate, found.surprise) == ("42", "42", "7", None)


def test_the_metric_decides_what_a_margin_is() -> None:
    assert weighed([-6, -10, -8], CHOICES, "acc_norm") == [-2, -2, -2]
    assert weighed([-6, -10, -8], CHOICES, "acc") == [-6, -10, -8]
    assert weighed([-4.0, -4.0], ["é", "e"], "acc_bytes") == [-2, -4]
    assert weighed([-6, -10, -8], CHOICES, "acc_mutual_info") == []
    assert weighed([-6, float("-inf"), -8], CHOICES, "acc") == []


def compared(base: np.ndarray, cand: np.ndarray) -> tuple[Comparison, dict[str, Items], dict[str, Items]]:
    ids = [str(place) for place in range(len(base))]
    sides = []
    for side in (base, cand):
        right = [str(each) for each in side]
        sides.append({"t": Items(ids=ids, digests=ids, correct=side, answers=right, clusters=ids)})
    score = TaskScore(task="t", metric="acc", n=len(base), score=Number(value=0.5, unit="share"))
    whole = Accuracy(suite="s", tasks=(score,), items="x")
    return compare(whole, whole, sides[0], sides[1], POLICY), sides[0], sides[1]


def test_a_damaged_category_is_first_and_sure() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random(1200) < 0.7).astype(float)
    kinds = [f"k{place % 6}" for place in range(1200)]
    lost = np.array([kind == "k4" for kind in kinds]) & (rng.random(1200) < 0.3)
    found = categories(*compared(base, np.where(lost, 0.0, base)), {"t": kinds}, POLICY)
    assert found[0].kind == "k4"
    assert (found[0].difference.high or 0) < 0
    assert found[0].regressed == int((base[lost] == 1).sum())
    assert all((one.difference.high or 0) >= 0 for one in found[1:])
    assert found[0].difference.confidence == pytest.approx(1 - 0.05 / 6)
    assert sum(one.n for one in found) == 1200


def test_harmless_categories_are_rarely_called_damaged() -> None:
    """Twenty categories without any true loss: a single one is "sure" in at most 5 % of the suites."""
    rng, false = np.random.default_rng(1), 0
    kinds = {"t": [f"k{place % 20}" for place in range(1000)]}
    for _ in range(200):
        base = (rng.random(1000) < 0.6).astype(float)
        flip = rng.random(1000) < 0.12
        cand = np.where(flip, (rng.random(1000) < 0.6).astype(float), base)
        false += any((one.difference.high or 0) < 0 for one in categories(*compared(base, cand), kinds, POLICY))
    assert false <= 200 * 0.05 + 3 * (200 * 0.05 * 0.95) ** 0.5


def test_without_kinds_there_is_nothing_to_rank() -> None:
    base = np.array([1.0, 0.0, 1.0, 1.0])
    assert categories(*compared(base, base), {"t": [""] * 4}, POLICY) == ()
    flat = Flip(task="t", id="1", direction="churn", prompt="", right="", baseline="", candidate="")
    assert most_telling([flat], 0) == ()
