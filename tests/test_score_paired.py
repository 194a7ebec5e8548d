"""Paired statistics: hand-worked cases, independent references, properties, coverage, rubbish."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quantlab.score.paired import (
    Paired,
    items_for_margin,
    mean_with_error,
    paired,
    suite,
)

binary_pairs = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=60)
score = st.floats(0, 1, allow_nan=False)
score_pairs = st.lists(st.tuples(score, score), min_size=2, max_size=40)


def correlated(rng: np.random.Generator, n: int, flips: float, drop: float) -> tuple[np.ndarray, np.ndarray]:
    base = (rng.random(n) < 0.6).astype(float)
    worse, better = (flips + drop) / 2 / 0.6, (flips - drop) / 2 / 0.4
    cand = np.where(rng.random(n) < np.where(base == 1, worse, better), 1 - base, base)
    return base, cand


def test_ten_items_by_hand() -> None:
    base = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    cand = [
        1,
        1,
        1,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
    ]  # three lost, one won: mean -0.2, sum of squares 4 - 10 * 0.04 = 3.6
    found = paired(base, cand)
    assert (found.n, found.clusters, found.regressed, found.improved, found.flips) == (10, 10, 3, 1, 4)
    assert found.difference == pytest.approx(-0.2)
    assert found.standard_error == pytest.approx(math.sqrt(3.6 / 9 / 10))
    assert found.low == pytest.approx(-0.2 - 2.2621572 * 0.2)
    assert found.high == pytest.approx(-0.2 + 2.2621572 * 0.2)
    assert found.recovery == pytest.approx(0.4 / 0.6)
    assert found.minimal_detectable_drop == pytest.approx(0.2 * (1.8331129 + 0.8834039), rel=1e-5)
    assert found.churn is None


def test_clustered_error_by_hand() -> None:
    base, cand = [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]
    found = paired(base, cand, clusters=["a", "a", "b", "b", "c", "c"])
    # cluster sums of deviations from -1/6: -5/3, 1/3, 4/3; 3/2 * (25 + 1 + 16)/9 / 36
    assert found.standard_error == pytest.approx(math.sqrt(1.5 * 42 / 9 / 36))
    assert found.degrees == 2
    assert found.clusters == 3


def test_the_unclustered_interval_is_the_paired_t_interval() -> None:
    base, cand = correlated(np.random.default_rng(1), 1859, 0.059, 0.009)
    found = paired(base, cand, confidence=0.9)
    interval = stats.ttest_rel(cand, base).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_errors_agree_with_a_cluster_bootstrap() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(150), rng.integers(1, 9, 150))
    shared = rng.normal(size=150)[labels]
    base = (shared + rng.normal(size=len(labels)) > 0).astype(float)
    cand = (0.9 * shared + rng.normal(size=len(labels)) > 0.1).astype(float)
    found = paired(base, cand, clusters=labels)
    sums = np.stack([np.bincount(labels, w) for w in (base, cand, np.ones_like(base))])
    drawn = sums[:, rng.integers(0, 150, (4000, 150))].sum(axis=2)
    assert found.standard_error == pytest.approx(np.std((drawn[1] - drawn[0]) / drawn[2]), rel=0.08)
    assert found.baseline_error == pytest.approx(np.std(drawn[0] / drawn[2]), rel=0.08)
    low, high = np.quantile(drawn[1] / drawn[0], (0.025, 0.975))
    assert (found.recovery_low, found.recovery_high) == pytest.approx((low, high), abs=0.02)


def test_clusters_that_move_together_widen_the_interval() -> None:
    rng = np.random.default_rng(3)
    base = np.ones(400)
    cand = np.repeat((rng.random(40) > 0.1).astype(float), 10)
    single, clustered = paired(base, cand), paired(base, cand, clusters=np.repeat(np.arange(40), 10))
    assert clustered.standard_error == pytest.approx(math.sqrt(10) * single.standard_error, rel=0.05)


@given(score_pairs)
def test_swapping_the_models_negates_the_difference(pairs: list[tuple[float, float]]) -> None:
    base, cand = map(np.array, zip(*pairs, strict=True))
    one, other = paired(base, cand), paired(cand, base)
    assert one.difference == pytest.approx(-other.difference)
    assert one.standard_error == pytest.approx(other.standard_error, abs=1e-9)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-8)
    assert (one.regressed, one.improved) == (other.improved, other.regressed)


@given(binary_pairs, st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_matter(pairs: list[tuple[float, float]], random) -> None:
    labels = [i // 3 for i in range(len(pairs))]
    shuffled = list(zip(pairs, labels, strict=True))
    random.shuffle(shuffled)
    before = paired(*zip(*pairs, strict=True), clusters=labels)
    after = paired(*zip(*(p for p, _ in shuffled), strict=True), clusters=[c for _, c in shuffled])
    for name in ("difference", "standard_error", "low", "high", "recovery", "recovery_low"):
        # The root of a variance that cancels to rounding, 1e-17 or 0, is 3e-9 or 0.
        assert getattr(before, name) == pytest.approx(getattr(after, name), abs=1e-7), name


@given(score_pairs)
def test_clusters_of_one_item_are_no_clusters(pairs: list[tuple[float, float]]) -> None:
    base, cand = zip(*pairs, strict=True)
    assert paired(base, cand, clusters=[f"item {i}" for i in range(len(base))]) == paired(base, cand)


@given(binary_pairs)
def test_bounds_hold_the_estimate_and_stay_possible(pairs: list[tuple[float, float]]) -> None:
    found = paired(*zip(*pairs, strict=True))
    assert -1 <= found.low <= found.difference <= found.high <= 1
    if found.recovery_low is not None:
        assert found.recovery_low <= found.recovery + 1e-9
        assert found.recovery <= found.recovery_high + 1e-9


def test_no_flips_is_not_certainty() -> None:
    same = np.tile([1.0, 0.0], 150)
    found = paired(same, same)
    assert (found.difference, found.standard_error, found.flips) == (0.0, 0.0, 0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 300))  # rule of three: 3.7 / n at 97.5 %
    assert found.low == -found.high
    assert found.recovery_low < 1 < found.recovery_high


def test_the_bound_for_few_flips_holds_up() -> None:
    """P(the interval holds the truth) with a true drop of half a point, where often nothing flips in 300
    items."""
    rng, held = np.random.default_rng(4), 0
    for _ in range(600):
        cand = (rng.random(300) > 0.005).astype(float)
        found = paired(np.ones(300), cand)
        held += found.low <= -0.005 <= found.high
    assert held / 600 > 0.93


@pytest.mark.parametrize(("clusters", "floor"), [(None, 0.93), (5, 0.93)])
def test_coverage_is_near_the_stated_confidence(clusters: int | None, floor: float) -> None:
    rng, held, labels = np.random.default_rng(5), 0, None
    for _ in range(500):
        if clusters is None:
            base, cand = correlated(rng, 500, 0.16, 0.05)
        else:
            labels = np.repeat(np.arange(100), clusters)
            part_base, part_cand = correlated(rng, 100, 0.16, 0.05)
            base, cand = np.repeat(part_base, clusters), np.repeat(part_cand, clusters)
        found = paired(base, cand, clusters=labels)
        held += found.low <= -0.05 <= found.high
    assert floor < held / 500 < 0.98


def test_churn_counts_other_wrong_answers_only() -> None:
    found = paired(
        [1, 0, 0, 0, 1],
        [1, 0, 0, 1, 0],
        baseline_answers=["a", "b", "c", "d", "e"],
        candidate_answers=["x", "b", "y", "z", "w"],
    )
    assert found.churn == 1


def test_recovery_is_withheld_where_it_means_nothing() -> None:
    zero = paired([0, 0, 0, 0], [0, 1, 0, 1])
    assert (zero.recovery, zero.recovery_low, zero.recovery_high) == (None, None, None)
    rare = paired([0] * 9 + [1], [0] * 8 + [1, 1])
    assert rare.recovery == pytest.approx(2.0)
    assert rare.recovery_low is None


def test_one_item_or_one_cluster_has_no_error_and_does_not_pretend() -> None:
    for found in (paired([1], [0]), paired([1, 1, 0], [0, 1, 0], clusters=["x"] * 3)):
        assert found.standard_error is found.low is found.high is found.minimal_detectable_drop is None
        assert found.baseline_error is found.recovery_low is None


def test_a_suite_of_one_task_is_that_task() -> None:
    base, cand = correlated(np.random.default_rng(6), 300, 0.1, 0.02)
    alone = paired(base, cand)
    assert suite({"only": (base, cand, None)}, "items") == alone
    pooled = suite({"only": (base, cand, None)}, "tasks")
    assert (pooled.low, pooled.high) == (alone.low, alone.high)


def test_weights_of_a_suite() -> None:
    rng = np.random.default_rng(7)
    small, large = correlated(rng, 100, 0.2, 0.1), correlated(rng, 900, 0.05, 0.0)
    a, b = paired(*small), paired(*large)
    tasks = {"small": (*small, None), "large": (*large, None)}
    macro, micro = suite(tasks, "tasks"), suite(tasks, "items")
    assert macro.difference == pytest.approx((a.difference + b.difference) / 2)
    assert macro.standard_error == pytest.approx(math.hypot(a.standard_error, b.standard_error) / 2)
    assert micro.difference == pytest.approx(0.1 * a.difference + 0.9 * b.difference)
    assert micro.standard_error == pytest.approx(math.hypot(0.1 * a.standard_error, 0.9 * b.standard_error))
    assert min(a.degrees, b.degrees) <= macro.degrees <= a.degrees + b.degrees
    assert (macro.flips, macro.n) == (a.flips + b.flips, 1000)


def test_suite_coverage_by_simulation() -> None:
    rng, held = np.random.default_rng(8), 0
    for _ in range(400):
        tasks = {
            "a": (*correlated(rng, 80, 0.2, 0.08), None),
            "b": (*correlated(rng, 300, 0.06, 0.0), None),
            "c": (*correlated(rng, 150, 0.1, 0.04), None),
        }
        found = suite(tasks, "tasks")
        held += found.low <= -0.04 <= found.high
    assert 0.925 < held / 400 < 0.98


def test_a_small_task_without_flips_is_not_taken_for_undamaged() -> None:
    """20 items weigh as much as 1,000; that none of them flipped leaves a damage that 1,000 cannot rule out."""
    large = correlated(np.random.default_rng(3), 1000, 0.03, 0.01)
    found = suite({"large": (*large, None), "small": ([1.0] * 20, [1.0] * 20, None)})
    assert found.low is not None
    assert found.low < found.difference - 0.5 * (1 - 0.025 ** (1 / 20))
    assert found.high is not None
    assert found.high > found.difference + 0.5 * (1 - 0.025 ** (1 / 20))


def test_damage_in_a_small_task_is_falsely_accepted_no_more_often_than_said() -> None:
    rng, wrong = np.random.default_rng(4), 0
    for _ in range(400):
        small = np.ones(20), (rng.random(20) > 0.05).astype(float)
        found = suite({"large": (*correlated(rng, 1000, 0.03, 0.01), None), "small": (*small, None)})
        wrong += found.low is not None and found.low > -(0.01 + 0.05) / 2
    assert wrong / 400 <= 0.04  # 36 % with the normal interval alone: that many draws show no flip among the 20


def test_a_suite_takes_a_weight_for_each_task() -> None:
    small, large = ([1.0] * 40, [0.0] * 10 + [1.0] * 30, None), ([1.0] * 60, [0.0] * 6 + [1.0] * 54, None)
    found = suite({"small": small, "large": large}, [0.2, 0.8])
    assert found.difference == pytest.approx(-0.2 * 0.25 - 0.8 * 0.1)
    for weights in ([0.2, 0.2], [0.5, 0.5, 0.0], [1.0, 0.0], [1.0]):
        with pytest.raises(ValueError, match="weighting"):
            suite({"small": small, "large": large}, weights)


def test_a_task_without_error_leaves_the_suite_without_one() -> None:
    found = suite({"a": ([1, 0], [0, 0], None), "b": ([1], [1], None)})
    assert found.standard_error is found.low is None
    assert found.difference == pytest.approx(-0.25)


def fp8_like(n: int = 1859) -> Paired:
    base = np.array([1.0] * 1200 + [0.0] * (n - 1200))
    cand = base.copy()
    cand[:49], cand[1200:1232] = 0.0, 1.0
    return paired(base, cand)


def test_the_demo_models_fp8_figures_come_out() -> None:
    found = fp8_like()
    assert found.difference == pytest.approx(-17 / 1859)
    assert found.standard_error == pytest.approx(0.0048, abs=5e-5)


def decided(found: Paired, margin: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return not found.low <= -margin <= found.high


def needed(found: Paired, margin: float) -> int | None:
    assert found.standard_error is not None
    assert found.high is not None
    half = found.high - found.difference
    return items_for_margin(found.difference, found.standard_error, found.n, margin=margin, half_width=half)


def test_the_items_announced_really_suffice() -> None:
    """Simulate with the announced number of items: the interval leaves the margin in about 80 % of the cases."""
    rng = np.random.default_rng(9)
    found = fp8_like()
    more = needed(found, 0.015)
    assert more is not None
    n = found.n + more
    share = np.mean([decided(paired(*correlated(rng, n, 81 / 1859, 17 / 1859)), 0.015) for _ in range(300)])
    assert 0.72 < share < 0.88


def test_items_needed_at_its_edges() -> None:
    found = fp8_like()
    assert needed(found, 17 / 1859) is None  # a tie
    assert needed(found, 0.04) == 0  # decided already
    assert needed(found, 0.005) is not None  # a regression is to be confirmed
    same = np.tile([1.0, 0.0], 20)
    more = needed(paired(same, same), 0.02)
    assert more is not None
    longer = np.tile([1.0, 0.0], 20 + more // 2 + 1)
    assert decided(paired(longer, longer), 0.02)


def test_what_is_undecided_for_want_of_flips_or_clusters_needs_more_items() -> None:
    """The normal formula calls 100 items with one flip, or three clusters, enough for a margin their interval holds."""
    one_flip = paired([1.0] * 100, [0.0] + [1.0] * 99)
    base, cand = np.ones(90), np.ones(90)
    cand[[0, 30, 31, 32, 60, 61]] = 0
    three = paired(base, cand, clusters=np.repeat([0, 1, 2], 30))
    for found, margin in ((one_flip, 0.04), (three, 0.125)):
        assert not decided(found, margin)
        assert found.standard_error is not None
        assert items_for_margin(found.difference, found.standard_error, found.n, margin=margin) == 0
        assert (needed(found, margin) or 0) > 0


def test_mean_with_error() -> None:
    values = np.array([1.0, 2.0, 3.0, 6.0])
    assert mean_with_error(values) == pytest.approx((3.0, stats.sem(values)))
    assert mean_with_error(values, [0, 0, 1, 1]) == pytest.approx((3.0, math.sqrt(2 * (9 + 9) / 16)))


@pytest.mark.parametrize(
    ("base", "cand", "extra", "words"),
    [
        ([1, 0], [1], {}, "not the same items"),
        ([], [], {}, "at least one number"),
        ([[1, 0]], [[1, 0]], {}, "at least one number"),
        ([1, math.nan], [1, 0], {}, "not finite"),
        ([1, 0], [1, math.inf], {}, "not finite"),
        ([1, 0], [1, 100], {}, r"\[0, 1\]"),
        ([1, 0], [-1, 0], {}, r"\[0, 1\]"),
        ([1, 0], [1, 0], {"clusters": [1]}, "cluster labels"),
        ([1, 0], [1, 0], {"confidence": 95}, "between 0 and 1"),
        ([1, 0], [1, 0], {"confidence": math.nan}, "between 0 and 1"),
        ([1, 0], [1, 0], {"baseline_answers": ["a", "b"]}, "both models"),
        ([1, 0], [1, 0], {"baseline_answers": ["a"], "candidate_answers": ["a"]}, "answers of shapes"),
    ],
)
def test_rubbish_is_refused(base: list, cand: list, extra: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paired(base, cand, **extra)


def test_rubbish_in_a_suite_names_the_task() -> None:
    with pytest.raises(ValueError, match=r"task mmlu: .*not the same items"):
        suite({"arc": ([1, 0], [1, 0], None), "mmlu": ([1, 0], [1], None)})
    with pytest.raises(ValueError, match="needs tasks"):
        suite({})
    with pytest.raises(ValueError, match="weighting"):
        suite({"a": ([1, 0], [1, 0], None)}, "subjects")  # type: ignore[arg-type]


@settings(max_examples=30)
@given(st.integers(1, 200), st.floats(0.5001, 0.9999))
def test_a_higher_confidence_is_never_narrower(flips: int, confidence: float) -> None:
    base = np.ones(400)
    cand = np.concatenate([np.zeros(flips), np.ones(400 - flips)])
    narrow, wide = paired(base, cand, confidence=0.5), paired(base, cand, confidence=confidence)
    assert wide.low <= narrow.low
    assert wide.high >= narrow.high
