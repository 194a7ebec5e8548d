"""The sequential verdict: exact fairness by enumeration, guarantees by simulation, independence of batches,
rubbish."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.score.betting import Units, evidence, gamblers
from quantlab.score.sequential import NonInferiority, order, share

MARGIN = 0.02


def one_by_one(items: int) -> Units:
    ones = np.ones(items)
    return Units(ones, ones, ones)


def a_suite(items: int, flips: float, drop: float, rng: np.random.Generator) -> np.ndarray:
    """Differences with exactly round(drop * items) more losses than gains."""
    net = round(drop * items)
    both = max(round(flips * items), net)
    worse = (both + net + (both - net) % 2) // 2
    return rng.permutation(np.repeat([-1.0, 1.0, 0.0], [worse, worse - net, items - 2 * worse + net]))


def expected_wealth(totals: np.ndarray, masses: np.ndarray, chances: np.ndarray, null: float) -> np.ndarray:
    """Mean wealth after each draw over *every* order of arrival, each with its own probability."""
    mean = np.zeros(len(totals))
    for arrival in map(list, itertools.permutations(range(len(totals)))):
        left = np.cumsum(chances[arrival][::-1])[::-1]
        probability = np.prod(chances[arrival] / left)
        units = Units(masses[arrival], chances[arrival], masses[arrival])
        mean += probability * np.exp(evidence(totals[arrival], units, null, MARGIN))
    return mean


def test_the_game_is_exactly_fair_at_the_boundary() -> None:
    """Six items, mean -1/6, all 720 orders: mean wealth is 1 after each draw, not merely on simulated
    average."""
    totals = np.array([-1.0, -1.0, 1.0, 0.0, 0.5, -0.5])
    assert expected_wealth(totals, np.ones(6), np.ones(6), totals.mean()) == pytest.approx(np.ones(6))


def test_the_game_is_fair_for_unequal_clusters_and_guided_draws() -> None:
    totals, masses = np.array([-3.0, 2.0, 0.0, 1.0, -1.0]), np.array([3.0, 4.0, 1.0, 2.0, 5.0])
    null = totals.sum() / masses.sum()
    for chances in (masses, np.array([5.0, 1.0, 2.0, 1.0, 0.5])):
        assert expected_wealth(totals, masses, chances, null) == pytest.approx(np.ones(5))


def test_the_game_loses_when_the_truth_is_below_the_null() -> None:
    totals = np.array([-1.0, -1.0, 1.0, 0.0, 0.0, -1.0])
    wealth = expected_wealth(totals, np.ones(6), np.ones(6), totals.mean() + 0.2)
    assert (np.diff(np.concatenate([[1.0], wealth])) <= 1e-12).all()


def test_the_capital_is_spent_once() -> None:
    for margin in (1e-4, 0.01, 0.5, 0.99):
        assert sum(capital for _, capital in gamblers(margin)) == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-0.99, 0.98), st.floats(0.0, 0.01), st.booleans())
def test_evidence_never_grows_with_the_null(seed: int, null: float, more: float, clustered: bool) -> None:
    rng = np.random.default_rng(seed)
    masses = rng.integers(1, 9, 60).astype(float) if clustered else np.ones(60)
    totals = np.round(masses * rng.uniform(-1, 1, 60))
    units = Units(masses, masses * rng.uniform(0.5, 2, 60), masses)
    low, high = (evidence(totals, units, at, MARGIN) for at in (null, null + more))
    assert not (high > low + 1e-9).any()


def accepted_at_some_look(suites: int, rng: np.random.Generator, shared: np.ndarray | None, **how: object) -> float:
    accepted = 0
    for seed in range(suites):
        differences = a_suite(400, 0.16, MARGIN, rng)
        if shared is not None:
            latent = rng.normal(size=400)[shared] + 0.7 * rng.normal(size=400)
            differences = np.sort(differences)[np.argsort(np.argsort(latent))]
        test = NonInferiority(MARGIN, 400, seed=seed, **how)  # type: ignore[arg-type]
        accepted += test.decide(differences[test.arrival]).status == "accept"
    return accepted / suites


CLUSTERS = np.repeat(np.arange(100), np.tile([1, 3, 5, 7], 25))


@pytest.mark.parametrize("kind", ["items", "correlated items", "clusters", "guided"])
def test_false_acceptance_at_the_margin_stays_below_alpha(kind: str) -> None:
    """500 suites, alpha 0.1, drop exactly at the margin, wealth looked at after every draw."""
    rng = np.random.default_rng(7)
    how: dict[str, object] = {"alpha": 0.1}
    if kind == "clusters":
        how["clusters"] = CLUSTERS
    if kind == "guided":
        how["chances"] = rng.uniform(0.5, 2, 400)
    rate = accepted_at_some_look(500, rng, None if kind in ("items", "guided") else CLUSTERS, **how)
    assert rate <= 0.1 + 2.5 * math.sqrt(0.1 * 0.9 / 500)


def test_false_regression_at_the_margin_stays_below_alpha() -> None:
    rng, early = np.random.default_rng(8), 0
    for seed in range(500):
        test = NonInferiority(MARGIN, 400, seed=seed, alpha=0.1)
        found = test.decide(a_suite(400, 0.16, MARGIN, rng)[test.arrival])
        early += found.status == "regression" and found.items_used < 400
    assert early / 500 <= 0.1 + 2.5 * math.sqrt(0.1 * 0.9 / 500)


def test_the_interval_holds_the_truth_at_every_look() -> None:
    rng, missed = np.random.default_rng(9), [0, 0]
    for seed in range(80):
        test = NonInferiority(MARGIN, 300, seed=seed, alpha=0.1)
        differences = a_suite(300, 0.2, 0.05, rng)
        arrived = differences[test.arrival]
        looks = [test.decide(arrived[:n]) for n in (25, 75, 150, 225, 299)]
        missed[0] += any(look.low > differences.mean() for look in looks)
        missed[1] += any(look.high < differences.mean() for look in looks)
        lows, highs = [look.low for look in looks], [look.high for look in looks]
        assert (np.diff(lows) > -2e-4).all()
        assert (np.diff(highs) < 2e-4).all()
    assert max(missed) / 80 < 0.1 + 2.5 * math.sqrt(0.1 * 0.9 / 80)


@pytest.mark.parametrize("clusters", [None, CLUSTERS])
def test_batches_and_repeated_looks_change_nothing(clusters: np.ndarray | None) -> None:
    rng = np.random.default_rng(10)
    test = NonInferiority(MARGIN, 400, seed=3, clusters=clusters)
    arrived = a_suite(400, 0.1, 0.12, rng)[test.arrival]
    whole = test.decide(arrived)
    assert whole.status == "regression"
    assert whole.items_used < 400
    for n in range(0, 401, 5):
        found = test.decide(arrived[:n])
        assert found.status == ("regression" if n >= whole.items_used else "undecided")
        if found.status == "regression":
            assert found == whole
        else:
            assert found.items_used <= n < found.items_used + 7


def test_the_bounds_agree_with_the_verdict() -> None:
    rng = np.random.default_rng(11)
    for seed, drop in enumerate((0.0, 0.01, 0.04, 0.1)):
        test = NonInferiority(MARGIN, 1000, seed=seed)
        found = test.decide(a_suite(1000, 0.12, drop, rng)[test.arrival])
        assert found.status == ("accept" if drop < MARGIN else "regression")
        assert found.low >= -MARGIN if found.status == "accept" else found.high <= -MARGIN
        assert found.low <= found.high


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0.01, 0.5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_finished_suite_is_known_exactly(seed: int, items: int, margin: float, clustered: bool) -> None:
    rng = np.random.default_rng(seed)
    differences = rng.choice([-1.0, 0.0, 1.0], items)
    labels = rng.integers(0, 1 + items // 3, items) if clustered else None
    test = NonInferiority(margin, items, alpha=1e-12, clusters=labels)  # too strict for bets: certainty must decide
    found = test.decide(differences[test.arrival])
    drop = -differences.mean()
    if abs(drop - margin) > 1e-6:
        assert found.status == ("accept" if drop < margin else "regression")
    if found.items_used == items:
        assert found.low == found.high == found.estimate
        assert found.estimate == pytest.approx(differences.mean())


def test_a_drop_of_exactly_the_margin_is_a_regression() -> None:
    test = NonInferiority(0.1, 10, alpha=1e-9)
    found = test.decide(np.array([-1.0] + [0.0] * 9)[test.arrival])
    assert (found.status, found.items_used) == ("regression", 10)


def test_certainty_needs_no_bets() -> None:
    """Nine of ten items gained nothing and lost nothing: whatever the last one does, the drop is at most 0.1."""
    found = NonInferiority(0.15, 10, alpha=1e-9).decide(np.zeros(9))
    assert (found.status, found.low) == ("accept", pytest.approx(-0.1, abs=2e-4))


def test_a_collapsed_candidate_is_found_within_a_few_dozen_items() -> None:
    rng = np.random.default_rng(12)
    used = []
    for seed in range(20):
        test = NonInferiority(0.01, 14_042, seed=seed)
        found = test.decide(a_suite(14_042, 0.58, 0.40, rng)[test.arrival[:400]])
        assert found.status == "regression"
        used.append(found.items_used)
    assert np.median(used) < 50


def test_an_unchanged_candidate_is_accepted_early() -> None:
    found = NonInferiority(0.01, 2000).decide(np.zeros(2000))
    assert found.status == "accept"
    assert found.items_used < 400  # no test can do with fewer than 280: 20 losses might hide, (1 - f)^20 = 0.05


def test_guided_draws_come_sooner_and_a_bad_guess_only_costs() -> None:
    rng = np.random.default_rng(13)
    used: dict[str, list[int]] = {"plain": [], "good": [], "bad": []}
    for seed in range(25):
        likely = rng.random(2000) < 0.2
        flips = np.where(likely, rng.random(2000) < 0.28, rng.random(2000) < 0.005)
        differences = np.where(flips, rng.choice([-1.0, 1.0], 2000), 0.0)
        good = np.where(likely, 2.0, 0.6)
        for name, chances in (("plain", None), ("good", good), ("bad", 1 / good)):
            test = NonInferiority(0.025, 2000, seed=seed, chances=chances)
            used[name].append(test.decide(differences[test.arrival]).items_used)
    assert np.median(used["good"]) < np.median(used["plain"]) < np.median(used["bad"])


def test_weights_decide_on_the_mean_over_tasks() -> None:
    """900 items of one task lost nothing, 100 of another 40 %: 4 points over items, 20 points over tasks."""
    rng = np.random.default_rng(14)
    differences = np.concatenate([np.zeros(900), a_suite(100, 0.4, 0.4, rng)])
    weights = np.repeat([1 / 900, 1 / 100], [900, 100])
    macro = NonInferiority(0.1, 1000, weights=weights, alpha=1e-9)
    found = macro.decide(differences[macro.arrival])
    assert found.status == "regression"
    micro = NonInferiority(0.1, 1000)
    assert micro.decide(differences[micro.arrival]).status == "accept"
    slow = NonInferiority(0.19999, 1000, weights=weights, alpha=1e-9)
    assert slow.decide(differences[slow.arrival]).estimate == pytest.approx(-0.2)


def test_the_announced_number_of_items_is_about_right() -> None:
    rng, ratios = np.random.default_rng(15), []
    for seed in range(25):
        test = NonInferiority(MARGIN, 14_042, seed=seed)
        arrived = a_suite(14_042, 0.16, 0.0, rng)[test.arrival]
        early, final = test.decide(arrived[:800]), test.decide(arrived)
        if early.status == "undecided":
            ratios.append((800 + early.items_needed_estimate) / final.items_used)
    assert len(ratios) > 10
    assert 0.5 < np.median(ratios) < 2


def test_before_any_data_the_plan_assumes_nothing_is_lost() -> None:
    plan = NonInferiority(0.01, 14_042).decide([])
    assert (plan.status, plan.items_used, plan.looks, plan.low, plan.high) == ("undecided", 0, 0, -1.0, 1.0)
    assert 1000 < plan.items_needed_estimate < 10_000
    assert NonInferiority(0.02, 14_042).decide([]).items_needed_estimate < plan.items_needed_estimate


def test_a_holm_step_changes_alpha_without_touching_the_order() -> None:
    test = NonInferiority(MARGIN, 400, alpha=share(0.05, 4))
    freed = replace(test, alpha=share(0.05, 4, accepted=2))
    assert (freed.alpha, test.alpha) == (0.025, 0.0125)
    assert (freed.arrival == test.arrival).all()


def test_order_is_a_fixed_permutation() -> None:
    found = order(1000, 7)
    assert sorted(found) == list(range(1000))
    assert (found == order(1000, 7)).all()
    assert (found != order(1000, 8)).any()
    assert order(8, 0).tolist() == order(8, 0, chances=[2.0] * 8).tolist()
    assert order(12, 2026).tolist() == [
        10,
        11,
        6,
        5,
        8,
        1,
        2,
        3,
        4,
        9,
        0,
        7,
    ]  # must never change: it is in ledgers


def test_clusters_arrive_whole_and_in_their_own_order() -> None:
    labels = np.array(list("abacabbcd"))
    arrived = order(9, 5, clusters=labels)
    runs = [list(group) for _, group in itertools.groupby(arrived, key=lambda i: labels[i])]
    assert len(runs) == 4
    assert all(run == sorted(run) for run in runs)


def test_large_clusters_and_likely_items_come_first_as_often_as_they_should() -> None:
    first = np.array([order(10, seed, clusters=[0] * 6 + [1] * 3 + [2])[0] for seed in range(3000)])
    assert np.mean(first < 6) == pytest.approx(0.6, abs=0.03)
    assert np.mean(first == 9) == pytest.approx(0.1, abs=0.02)
    second = [order(3, seed, chances=[4, 2, 2])[1] for seed in range(3000)]
    assert np.mean(np.array(second) == 0) == pytest.approx(2 * 0.25 * 4 / 6, abs=0.03)


def test_share() -> None:
    assert share(0.05, 1) == 0.05
    assert share(0.05, 6) == pytest.approx(0.05 / 6)
    assert share(0.05, 6, accepted=4) == share(0.05, 2)
    assert share(0.05, 6, accepted=6) == 0.05


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NonInferiority(0, 10), "margin must lie"),
        (lambda: NonInferiority(2, 10), "margin must lie"),
        (lambda: NonInferiority(math.nan, 10), "margin must lie"),
        (lambda: NonInferiority(0.1, 10, alpha=5), "alpha must lie"),
        (lambda: NonInferiority(0.1, 0), "at least one item"),
        (lambda: NonInferiority(0.1, 3, clusters=["a"]), "3 cluster labels"),
        (lambda: NonInferiority(0.1, 3, weights=[1, 1]), "3 weights"),
        (lambda: NonInferiority(0.1, 3, weights=[1, 0, 1]), "weights must be positive"),
        (lambda: NonInferiority(0.1, 3, chances=[1, math.inf, 1]), "chances must be positive"),
        (lambda: NonInferiority(0.1, 3).decide([0.0] * 4), "at most 3 differences"),
        (lambda: NonInferiority(0.1, 3).decide([[0.0]]), "at most 3 differences"),
        (lambda: NonInferiority(0.1, 3).decide([math.nan]), "NaN is not a score"),
        (lambda: NonInferiority(0.1, 3).decide([1.5]), r"in \[-1, 1\]"),
        (lambda: share(0.05, 0), "makes no sense"),
        (lambda: share(0.05, 2, accepted=3), "makes no sense"),
        (lambda: share(0.0, 2), "alpha must lie"),
        (lambda: order(0, 1), "at least one item"),
    ],
)
def test_rubbish_is_refused(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
