"""Divergence: hand-worked cases, scipy as reference, the lower bound and how tight it is, extremes, rubbish."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from quantlab.score.divergence import (
    at_ids,
    kl,
    kl_topk,
    log_softmax,
    perplexity_ratio,
    summary,
    top1_agreement,
    topk_tail,
)


def realistic(rng: np.random.Generator, positions: int, vocabulary: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Zipf-like next-token distributions, some sharp and some flat as a language model's; a perturbed copy."""
    rank = np.argsort(rng.random((positions, vocabulary)), axis=1).argsort(axis=1) + 1
    base = -rng.uniform(1.2, 4.0, (positions, 1)) * np.log(rank) + 0.5 * rng.standard_normal(rank.shape)
    return log_softmax(base), log_softmax(base + noise * rng.standard_normal(rank.shape))


def lumped(base: np.ndarray, cand: np.ndarray, k: int) -> np.ndarray:
    ids, kept, tail = topk_tail(base, k)
    return kl_topk(ids, kept, tail, *at_ids(cand, ids))


def test_top_two_of_four_by_hand() -> None:
    base, cand = np.log([[0.1, 0.5, 0.3, 0.1]]), np.log([[0.2, 0.4, 0.2, 0.2]])
    ids, kept, tail = topk_tail(base, 2)
    assert ids.tolist() == [[1, 2]]
    assert np.exp(kept) == pytest.approx(np.array([[0.5, 0.3]]))
    assert np.exp(tail) == pytest.approx([0.2])
    expected = 0.5 * math.log(5 / 4) + 0.3 * math.log(3 / 2) + 0.2 * math.log(1 / 2)
    assert lumped(base, cand, 2) == pytest.approx([expected])
    assert kl(base, cand) == pytest.approx([expected])  # both lumped tokens double: nothing is lost


def test_log_softmax_agrees_with_scipy_and_survives_large_logits() -> None:
    logits = np.random.default_rng(0).normal(scale=30, size=(5, 1000)).astype(np.float32)
    assert log_softmax(logits) == pytest.approx(special.log_softmax(logits.astype(np.float64), axis=1))
    assert log_softmax([[1e30, 0.0]]).tolist() == [[0.0, -1e30]]
    assert log_softmax([[0.0, -math.inf]]).tolist() == [[0.0, -math.inf]]
    assert log_softmax(np.zeros((1, 4), dtype=np.float16)).dtype == np.float64


def test_full_kl_agrees_with_scipy() -> None:
    base, cand = realistic(np.random.default_rng(1), 20, 500, 0.5)
    reference = special.rel_entr(np.exp(base), np.exp(cand)).sum(axis=1)
    assert kl(base, cand) == pytest.approx(reference, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.floats(0, 3))
def test_lumping_never_overstates_and_more_tokens_never_lose(seed: int, vocabulary: int, noise: float) -> None:
    base, cand = realistic(np.random.default_rng(seed), 4, vocabulary, noise)
    true = kl(base, cand)
    before = np.zeros(4)
    for k in range(1, vocabulary + 1):
        now = lumped(base, cand, k)
        assert (now <= true + 1e-12).all()
        assert (now >= before - 1e-12).all()
        before = now
    assert before == pytest.approx(true, abs=1e-12)  # k = V: the tail is empty


def test_how_tight_the_bound_is() -> None:
    base, cand = realistic(np.random.default_rng(2), 64, 8000, 0.3)
    true = kl(base, cand).mean()
    kept = [lumped(base, cand, k).mean() / true for k in (16, 64, 256)]
    assert kept[0] < kept[1] < kept[2] < 1
    assert kept[1] > 0.90
    assert kept[2] > 0.95


def test_a_distribution_has_no_distance_from_itself() -> None:
    base, _ = realistic(np.random.default_rng(3), 30, 2000, 0)
    assert lumped(base, base, 16).tolist() == [0.0] * 30


def test_a_tail_of_a_millionth_of_a_billionth_is_not_lost() -> None:
    base = np.array([[math.log1p(-1e-15), math.log(1e-15)]])
    assert topk_tail(base, 1)[2][0] == pytest.approx(math.log(1e-15))


def test_certainty_and_impossibility() -> None:
    sure = np.array([[0.0, -np.inf, -np.inf]])
    spread = np.log([[0.5, 0.25, 0.25]])
    with np.errstate(all="raise"):
        assert lumped(sure, spread, 1) == pytest.approx([math.log(2)])
        assert lumped(sure, sure, 1).tolist() == [0.0]
        assert lumped(sure, sure, 3).tolist() == [0.0]
        assert lumped(spread, sure, 2).tolist() == [math.inf]
        assert topk_tail(sure, 3)[2].tolist() == [-math.inf]


def test_equal_tokens_come_by_id() -> None:
    assert topk_tail(np.log([[0.25, 0.25, 0.25, 0.25]]), 4)[0].tolist() == [[0, 1, 2, 3]]


def test_half_precision_storage_is_accepted_and_logits_are_not() -> None:
    base, cand = realistic(np.random.default_rng(4), 16, 4000, 0.3)
    ids, kept, tail = topk_tail(base, 64)
    stored = kl_topk(ids, kept.astype(np.float16), tail.astype(np.float16), *at_ids(cand, ids))
    assert stored == pytest.approx(lumped(base, cand, 64), abs=5e-3)
    with pytest.raises(ValueError, match="baseline probabilities sum to"):
        kl_topk(ids, kept + 0.1, tail, *at_ids(cand, ids))
    with pytest.raises(ValueError, match="candidate probabilities sum to"):
        kl_topk(ids, kept, tail, kept, tail - 3)


def test_summary_of_known_values() -> None:
    found = summary(np.arange(101.0))
    assert (found.n, found.mean, found.p50, found.p90, found.p99, found.max) == (101, 50, 50, 90, 99, 100)
    assert found.standard_error == pytest.approx(np.arange(101).std(ddof=1) / math.sqrt(101))


def test_windows_are_clusters() -> None:
    values = np.repeat(np.random.default_rng(5).gamma(1, size=20), 50)
    alone = summary(values).standard_error
    assert summary(values, np.repeat(np.arange(20), 50)).standard_error == pytest.approx(
        alone * math.sqrt(50 * 999 / 1000 * 20 / 19), rel=1e-6
    )


def test_top1_agreement() -> None:
    share, error = top1_agreement([1, 2, 3, 4], [1, 2, 3, 5])
    assert share == 0.75
    assert error == pytest.approx(math.sqrt(0.75 / 3 / 4))
    with pytest.raises(ValueError, match="not the same positions"):
        top1_agreement([1, 2], [1])


def test_perplexity_ratio_by_hand_and_by_bootstrap() -> None:
    rng = np.random.default_rng(6)
    base = rng.gamma(2, size=3000)
    cand = base + rng.normal(0.05, 0.4, 3000)
    found = perplexity_ratio(base, cand)
    assert found.ratio == pytest.approx(math.exp(cand.mean()) / math.exp(base.mean()))
    drawn = np.exp((cand - base)[rng.integers(0, 3000, (2000, 3000))].mean(axis=1))
    assert found.standard_error == pytest.approx(drawn.std(), rel=0.08)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=2e-3)
    same = perplexity_ratio(base, base)
    assert (same.ratio, same.standard_error, same.low, same.high) == (1.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[0.5, -0.5]], "not above 0"),
        ([[math.nan, -1.0]], "NaN"),
        ([0.0, -1.0], "must be"),
        (np.zeros((0, 4)), "must be"),
    ],
)
def test_rubbish_log_probabilities(values: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        topk_tail(values, 1)


def test_other_rubbish() -> None:
    base = np.log([[0.5, 0.5]])
    for k in (0, 3):
        with pytest.raises(ValueError, match="k must lie"):
            topk_tail(base, k)
    with pytest.raises(ValueError, match="do not fit"):
        at_ids(base, [[0], [1]])
    with pytest.raises(ValueError, match="shapes differ"):
        kl_topk([[0]], [[-0.7]], [-0.7], [[-0.7, -0.7]], [-0.7])
    for logits in ([[math.nan, 0.0]], [[math.inf, 0.0]], [[-math.inf, -math.inf]]):
        with pytest.raises(ValueError, match="logits hold"):
            log_softmax(logits)
    with pytest.raises(ValueError, match="not finite"):
        summary([0.1, math.inf])
    with pytest.raises(ValueError, match="not the same positions"):
        perplexity_ratio([1.0, 2.0], [1.0])
