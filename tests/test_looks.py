"""The claim about one suite: exact when it is known in full, decided at looks before, one budget for all candidates."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from quantlab import judge, looks
from quantlab.judge import Items
from quantlab.looks import Budget, Seen, next_look
from quantlab.records import Accuracy, Comparison, Number, Policy, TaskScore
from quantlab.score.draw import Draw

POLICY = Policy(summary="test", max_drop=2.0, early=True, scope="suite")
DRAW = Draw((("a", 600), ("b", 1400)), seed=1)


def seen(flips: float, drop: float, n: int, seed: int = 0) -> Seen:
    """The first n of 2,000 items in order of arrival; `drop` of the suite exactly, up to whole items."""
    rng = np.random.default_rng(seed)
    size, worse = DRAW.total, round((flips + drop) / 2 * DRAW.total)
    kind = rng.permutation(
        np.repeat([-1, 1, 0], [worse, worse - round(drop * size), size - 2 * worse + round(drop * size)])
    )
    baseline = np.where(kind == 0, rng.random(size) < 0.6, kind == -1).astype(float)
    return Seen(baseline[:n], np.clip(baseline + kind, 0, 1)[:n])


def at(n: int, drop: float, flips: float = 0.06, **policy: float) -> looks.Look:
    return looks.look(DRAW, seen(flips, drop, n), msgspec.structs.replace(POLICY, **policy), (0.05, 0.05), 1)


def test_a_harmless_precision_is_accepted_and_a_harmful_one_rejected_before_the_end() -> None:
    good, bad = at(1000, 0.0), at(400, 0.08, flips=0.16)
    assert (good.status, bad.status) == ("accept", "regression")
    for found in (good, bad):
        assert found.decided_after is not None
        assert found.decided_after < found.scored < found.items == 2000
        assert found.difference.low is not None
        assert found.difference.high is not None
        assert found.difference.low < found.difference.value < found.difference.high
        assert found.difference.confidence == pytest.approx(0.9)
    assert good.difference.low is not None
    assert good.difference.low > -2


def test_too_few_items_decide_nothing_and_say_how_many_would() -> None:
    found = at(100, 0.01)
    assert (found.status, found.decided_after) == ("undecided", None)
    assert 100 < found.needed <= 1900
    verdict = looks.verdict(found, POLICY, None)
    assert (verdict.status, verdict.items_needed, verdict.scope) == ("insufficient", found.needed, "suite")
    assert f"{found.needed:,} more items" in verdict.reason


@pytest.mark.parametrize(("points", "status"), [(-1.99, "accept"), (-2.0, "regression"), (-2.01, "regression")])
def test_a_suite_known_in_full_is_decided_by_its_own_difference(points: float, status: str) -> None:
    found = looks.exact(points, 500, POLICY)
    assert (found.status, found.difference.low, found.decided_after) == (status, None, None)
    between = Number(value=points, unit="points", low=points - 1.5, high=points + 1.5, confidence=0.95)
    verdict = looks.verdict(found, POLICY, between)
    assert verdict.status == status
    assert "on this suite" in verdict.reason
    assert "all 500 items" in verdict.reason
    assert "Beyond this suite: [" in verdict.reason


def test_all_items_known_overrule_what_was_seen_on_the_way() -> None:
    """A stretch of luck that would have been accepted is no acceptance once the truth is known."""
    kind = np.concatenate([np.zeros(1000), np.full(1000, -0.05)])
    baseline = np.ones(2000)
    found = looks.look(DRAW, Seen(baseline, baseline + kind), POLICY, (0.05, 0.05), 3)
    assert looks.look(DRAW, Seen(baseline[:1000], baseline[:1000]), POLICY, (0.05, 0.05), 2).status == "accept"
    assert found.status == "regression"
    assert found.difference.low is None


def test_a_gain_too_good_to_be_true_is_looked_into_and_then_anomalous() -> None:
    assert at(200, -0.06, max_gain=3.0).status == "undecided"
    sure = at(1800, -0.12, flips=0.13, max_gain=3.0)
    assert looks.verdict(sure, POLICY, None).status == "anomalous"
    assert looks.verdict(looks.exact(9.0, 10, POLICY), POLICY, None).status == "anomalous"


def test_candidates_share_one_budget_and_an_acceptance_leaves_its_share() -> None:
    budget = Budget(0.95, 2)
    assert budget.alphas == pytest.approx((0.025, 0.025))
    close = next(
        n
        for n in range(300, 2000, 5)
        if looks.look(DRAW, seen(0.06, 0.0, n), POLICY, (0.05, 0.05), 1).status == "accept"
    )
    alone = {"close": seen(0.06, 0.0, close)}
    assert looks.together(DRAW, alone, POLICY, Budget(0.95, 2), 1)["close"].status == "undecided"
    both = {**alone, "clear": Seen(np.ones(close), np.ones(close))}
    found = looks.together(DRAW, both, POLICY, budget, 1)
    assert {name: each.status for name, each in found.items()} == {"close": "accept", "clear": "accept"}
    assert (budget.accepted, budget.rejected) == (2, 0)


def test_values_find_their_place_in_the_order_of_arrival() -> None:
    places = DRAW.places(0, 50)
    assert looks.in_arrival(DRAW, places, places.astype(float)).tolist() == DRAW.arrival[:50].tolist()


def compared(n: int) -> Comparison:
    rng = np.random.default_rng(5)
    baseline = (rng.random(n) < 0.7).astype(float)
    candidate = np.where(rng.random(n) < 0.04, 1 - baseline, baseline)

    def items(correct: np.ndarray) -> Items:
        names = [f"i{place}" for place in range(n)]
        return Items(ids=names, digests=names, correct=correct, answers=names, clusters=names)

    def scored(correct: np.ndarray) -> Accuracy:
        score = Number(value=float(correct.mean()), unit="share", n=n)
        return Accuracy(suite="s", tasks=(TaskScore(task="t", metric="acc", n=n, score=score),), items="x")

    return judge.compare(scored(baseline), scored(candidate), {"t": items(baseline)}, {"t": items(candidate)}, POLICY)


def test_a_stopped_comparison_shows_no_interval_that_assumes_a_fixed_n() -> None:
    before = compared(400)
    found = looks.on_suite(before, at(400, 0.0), scores=(0.7, 0.69))
    assert found.population is None
    assert found.look is not None
    assert found.suite.difference == found.look.difference
    assert (found.suite.baseline.value, found.suite.candidate.value) == (0.7, 0.69)
    assert found.tasks[0].difference is not None
    assert before.tasks[0].difference is not None
    assert found.tasks[0].difference.value == before.tasks[0].difference.value
    assert found.tasks[0].difference.low is found.tasks[0].detectable_drop is None
    assert found.tasks[0].regressed == before.tasks[0].regressed


def test_a_full_comparison_keeps_the_population_beside_the_suite() -> None:
    before = compared(400)
    assert before.suite.difference is not None
    found = looks.on_suite(before, looks.exact(before.suite.difference.value, 400, POLICY))
    assert found.population == before.suite.difference
    assert found.tasks == before.tasks
    verdict = judge.verdict(POLICY, comparison=found, accuracy=Accuracy(suite="s", tasks=(), items="x"))
    assert (verdict.scope, verdict.items_used, verdict.items_total) == ("suite", 400, 400)


@pytest.mark.parametrize(
    ("place", "hopeful", "then"), [(0, 300, 1), (0, 799, 1), (0, 800, 2), (0, 1988, 2), (3, 1988, 4)]
)
def test_a_look_is_left_out_only_where_nothing_can_be_hoped_for(place: int, hopeful: int, then: int) -> None:
    assert next_look((200, 400, 800, 1600, 1988), place, hopeful) == then
