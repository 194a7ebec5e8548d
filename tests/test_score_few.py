"""Few flips, one-way flips, few clusters: exact bounds against a reference, and wrong acceptances counted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from quantlab.score.paired import Paired, paired, suite


def one_way(lost: int, n: int) -> Paired:
    return paired(np.ones(n), np.arange(n) >= lost)


@pytest.mark.parametrize(("lost", "n"), [(0, 20), (1, 20), (3, 100), (7, 1000), (20, 20)])
def test_one_way_flips_are_bounded_as_clopper_and_pearson_bound_a_share(lost: int, n: int) -> None:
    """Items are independent, so the effective number is n."""
    found = one_way(lost, n)
    exact = stats.binomtest(lost, n).proportion_ci(0.95, method="exact")
    t_interval = lost / n + stats.t.ppf(0.975, n - 1) * np.sqrt(lost / n * (1 - lost / n) / (n - 1))
    assert found.low is not None
    assert -found.low == pytest.approx(max(exact.high, t_interval), abs=1e-9)
    turned = paired(np.arange(n) >= lost, np.ones(n))
    assert turned.high == pytest.approx(-found.low), "gains are bounded as losses are"
    assert turned.low == pytest.approx(-(found.high or 0.0))


def test_few_clusters_are_few_items() -> None:
    """Korn and Graubard by hand: 5 clusters of 100 with 2 losses each: no spread, so the design effect counts as 1."""
    cand = np.ones(500)
    cand[[0, 1, 100, 101, 200, 201, 300, 301, 400, 401]] = 0.0
    found = paired(np.ones(500), cand, clusters=np.repeat(np.arange(5), 100))
    assert found.standard_error == pytest.approx(0.0, abs=1e-12)
    count = 500 * (stats.t.ppf(0.975, 499) / stats.t.ppf(0.975, 4)) ** 2
    assert found.low == pytest.approx(-stats.beta.ppf(0.975, 0.02 * count + 1, 0.98 * count))
    assert found.high == pytest.approx(-0.02 + stats.beta.ppf(0.975, 1, count))


def test_losses_that_lie_together_count_as_fewer_items() -> None:
    """Ten losses of 1,000 items: in ten clusters of ten, or all in one. Every cluster has 10 items."""
    labels, spread, heaped = np.repeat(np.arange(100), 10), np.ones(1000), np.ones(1000)
    spread[:100:10], heaped[:10] = 0.0, 0.0
    apart, together = (paired(np.ones(1000), cand, clusters=labels) for cand in (spread, heaped))
    design = (together.standard_error or 0) ** 2 / (0.01 * 0.99 / 999)
    assert design == pytest.approx(10, rel=0.02)
    count = 1000 / design * (stats.t.ppf(0.975, 999) / stats.t.ppf(0.975, 99)) ** 2
    assert together.low == pytest.approx(-stats.beta.ppf(0.975, 0.01 * count + 1, 0.99 * count))
    assert together.low is not None
    assert apart.low is not None
    assert together.low < 2 * apart.low < 0


def test_flips_both_ways_keep_the_t_interval() -> None:
    base, cand = np.ones(400), np.ones(400)
    cand[:12], base[12:20] = 0.0, 0.0
    found, t = paired(base, cand), stats.ttest_rel(cand, base).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((t.low, t.high))


def test_a_suite_of_many_sparse_tasks_is_known_as_one_large_task_is() -> None:
    """Fifty tasks with one loss in 40 items each: the bound of one task more is small beside the error of all."""
    cand = np.ones(40)
    cand[0] = 0.0
    found = suite({f"task {place}": (np.ones(40), cand, None) for place in range(50)})
    assert found.low is not None
    assert found.standard_error is not None
    assert found.difference - found.low < 1.1 * stats.t.ppf(0.975, found.degrees) * found.standard_error


@pytest.mark.parametrize(("clusters", "size", "most"), [(5, 100, 0.04), (8, 100, 0.05), (20, 20, 0.04)])
def test_one_way_losses_in_few_clusters_are_accepted_no_more_often_than_said(
    clusters: int, size: int, most: float
) -> None:
    """The drop is the margin, 2 points; clusters' rates vary (correlation 0.02). The t interval alone: 10 to 12 %."""
    rng, wrong, naive, labels = np.random.default_rng(0), 0, 0, np.repeat(np.arange(clusters), size)
    for _ in range(600):
        rates = np.repeat(rng.beta(0.02 * 49, 0.98 * 49, clusters), size)
        found = paired(np.ones(clusters * size), rng.random(clusters * size) >= rates, clusters=labels)
        assert found.low is not None
        wrong += found.low > -0.02
        naive += found.difference - stats.t.ppf(0.975, clusters - 1) * found.standard_error > -0.02
    assert wrong / 600 <= most
    assert naive / 600 > 0.08
