"""The random order of a suite of several tasks: the same everywhere, every item once, each task weighing the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.score.draw import Draw, ends

DRAW = Draw((("a", 40), ("b", 10), ("c", 150)), seed=3)


@given(begin=st.integers(0, 199), more=st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_slices_partition_the_suite(begin: int, more: int) -> None:
    pieces = [DRAW.documents(*ends_) for ends_ in ((0, begin), (begin, begin + more), (begin + more, DRAW.total))]
    for task, size in DRAW.sizes:
        numbers = [number for piece in pieces for number in piece.get(task, [])]
        assert sorted(numbers) == list(range(size))
    assert all(numbers == sorted(numbers) and numbers for piece in pieces for numbers in piece.values())


def test_documents_are_the_places_of_their_task() -> None:
    first = {"a": 0, "b": 40, "c": 50}
    there = [first[task] + number for task, numbers in DRAW.documents(20, 90).items() for number in numbers]
    assert there == DRAW.places(20, 90).tolist() == sorted(DRAW.arrival[20:90].tolist())


def test_the_seed_alone_fixes_the_order() -> None:
    assert (
        DRAW.arrival.tolist() == Draw(DRAW.sizes, 3).arrival.tolist() == DRAW.test(0.02, (0.05, 0.05)).arrival.tolist()
    )
    assert DRAW.arrival.tolist() != Draw(DRAW.sizes, 4).arrival.tolist()


def test_the_estimate_weighs_each_task_the_same() -> None:
    values = np.concatenate([np.full(40, 1.0), np.full(10, 0.5), np.full(150, 0.0)])
    assert DRAW.test(0.02, (0.05, 0.05)).estimate(values[DRAW.arrival]) == pytest.approx(0.5)


def test_bounds_of_all_that_is_known_hold_the_decision_and_a_finished_suite_has_none() -> None:
    rng = np.random.default_rng(0)
    values = rng.choice([-1.0, 0.0, 1.0], size=200, p=[0.3, 0.68, 0.02])
    test = DRAW.test(0.02, (0.025, 0.05))
    decision = test.decide(values[:150])
    assert decision.status == "regression"
    low, high = test.bounds(values[:150])
    assert low < test.estimate(values[:150]) < high <= decision.high
    assert high <= -0.02
    assert test.bounds(values) == (test.estimate(values), test.estimate(values))


def test_the_two_sides_spend_their_own_alpha() -> None:
    worse = np.tile([-1.0, 0.0, 0.0, 0.0], 50)
    strict, loose = DRAW.test(0.02, (0.05, 1e-6)).decide(worse), DRAW.test(0.02, (1e-6, 0.05)).decide(worse)
    assert loose.status == strict.status == "regression"
    assert loose.items_used < strict.items_used
    with pytest.raises(ValueError, match="alpha_regression"):
        DRAW.test(0.02, (0.05, 0.0))


@pytest.mark.parametrize(
    ("first", "growth", "total", "looks"),
    [
        (200, 2.0, 1988, [200, 400, 800, 1600, 1988]),
        (200, 2.0, 96, [96]),
        (200, 2.0, 200, [200]),
        (1, 1.1, 4, [1, 2, 3, 4]),
        (100, 3.0, 900, [100, 300, 900]),
    ],
)
def test_looks_grow_and_end_with_the_suite(first: int, growth: float, total: int, looks: list[int]) -> None:
    assert list(ends(first, growth, total)) == looks


def test_rubbish_is_refused() -> None:
    for sizes in ((), (("a", 0),)):
        with pytest.raises(ValueError, match="items"):
            Draw(sizes, 0)
    for first, growth in ((0, 2.0), (10, 1.0), (10, float("nan"))):
        with pytest.raises(ValueError, match="looks"):
            ends(first, growth, 100)
