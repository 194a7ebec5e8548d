"""How far a candidate's predictions moved from the baseline's: KL, top-1 agreement, perplexity ratio.

KL sees damage long before accuracy does, from a few thousand positions; it is a screen and an explanation,
never the verdict. A full dump of log-probabilities is tens of gigabytes (128,256 tokens a position for Llama
3.2), so the baseline keeps its k likeliest tokens and lumps all others into one *tail*. By the
data-processing inequality the KL of lumped distributions is never above the true KL: what is reported is a
lower bound. How tight: on SmolLM2-135M (1,023 positions of prose) k = 64 keeps 84-88 % of the true mean KL,
256 keeps 93 %, 1024 keeps 97-98 %, nearly the same share for FP8 (0.015 nats) and for 3-bit weights (2.6
nats): comparisons at one k are fair, comparisons across different k are not.

Everything is computed in float64: KL is a small difference of large sums, and bf16 or float32 sums would
drown it. Positions of one window share a context, so windows are the clusters of every standard error.
Natural logarithms (nats).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, stdtrit

from quantlab.score.moments import mean_with_error

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MASS_TOLERANCE = 0.01  # bf16 log-probabilities sum to 1 within about 0.004; more is a mistake (logits, wrong base)


@dataclass(frozen=True)
class Summary:
    """Distribution of a divergence over positions, in nats."""

    n: int
    mean: float
    standard_error: float  # windows as clusters
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class Ratio:
    """Perplexity of the candidate over that of the baseline: 1 is no loss."""

    ratio: float
    standard_error: float  # delta method, paired
    low: float  # interval at the asked confidence, symmetric in the logarithm
    high: float


def log_softmax(logits: npt.ArrayLike) -> Floats:
    """[..., V] logits -> log-probabilities in float64. ValueError on NaN, +inf, or a row of -inf."""
    values = np.asarray(logits, dtype=np.float64)
    peak = values.max(axis=-1, keepdims=True)
    if not np.isfinite(peak).all():
        raise ValueError("logits hold NaN, +inf or a row with nothing finite")
    shifted = values - peak
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def topk_tail(logprobs: npt.ArrayLike, k: int) -> tuple[Ints, Floats, Floats]:
    """[T, V] -> ids [T, k] likeliest first, their log-probabilities [T, k], that of all others [T].

    Equal ones come by id; which of several equal ones makes the cut at k is left open. The tail is summed
    from its own terms: 1 - (sum of the rest) would lose it to rounding.
    """
    values = _matrix(logprobs)
    if not 1 <= k <= values.shape[1]:
        raise ValueError(f"k must lie between 1 and {values.shape[1]}, got {k}")
    ids = np.sort(np.argpartition(-values, k - 1, axis=1)[:, :k], axis=1)
    likeliest = np.argsort(-np.take_along_axis(values, ids, axis=1), axis=1, kind="stable")
    ids = np.take_along_axis(ids, likeliest, axis=1).astype(np.int64)
    kept, tail = at_ids(values, ids)
    return ids, kept, tail


def at_ids(logprobs: npt.ArrayLike, ids: npt.ArrayLike) -> tuple[Floats, Floats]:
    """[T, V], [T, k] -> log-probabilities at the ids [T, k] and of all other tokens together [T]."""
    values, chosen = _matrix(logprobs), np.asarray(ids, dtype=np.int64)
    if chosen.ndim != 2 or len(chosen) != len(values):
        raise ValueError(f"ids of shape {chosen.shape} do not fit log-probabilities of shape {values.shape}")
    rest = values.copy()
    np.put_along_axis(rest, chosen, -np.inf, axis=1)
    peak = rest.max(axis=1)
    safe = np.where(np.isfinite(peak), peak, 0.0)
    with np.errstate(divide="ignore"):  # nothing left over: the tail is log 0
        tail = safe + np.log(np.exp(rest - safe[:, None]).sum(axis=1))
    return np.take_along_axis(values, chosen, axis=1), tail


def kl_topk(
    base_ids: npt.ArrayLike,
    base_lp: npt.ArrayLike,
    base_tail: npt.ArrayLike,
    cand_lp_at_ids: npt.ArrayLike,
    cand_tail: npt.ArrayLike,
) -> Floats:
    """KL(baseline || candidate) [T] in nats over the baseline's top k tokens and one tail: a lower bound.

    base_ids, base_lp, cand_lp_at_ids: [T, k]; tails: [T]. Infinite where the candidate gives no chance to
    what the baseline deems possible. ValueError if shapes differ or a side does not sum to 1.
    """
    base = np.column_stack([np.asarray(base_lp, dtype=np.float64), np.asarray(base_tail, dtype=np.float64)])
    cand = np.column_stack([np.asarray(cand_lp_at_ids, dtype=np.float64), np.asarray(cand_tail, dtype=np.float64)])
    if base.shape != cand.shape or np.asarray(base_ids).shape != (base.shape[0], base.shape[1] - 1):
        raise ValueError(f"shapes differ: ids {np.shape(base_ids)}, baseline {base.shape}, candidate {cand.shape}")
    for name, side in (("baseline", base), ("candidate", cand)):
        mass = np.exp(logsumexp(side, axis=1))
        if not (np.abs(mass - 1) < MASS_TOLERANCE).all():
            raise ValueError(f"{name} probabilities sum to {mass.min():g} .. {mass.max():g}, not to 1")
    return kl(base, cand)


def kl(base: npt.ArrayLike, cand: npt.ArrayLike) -> Floats:
    """KL(baseline || candidate) of whole distributions [..., V] of log-probabilities -> [...] nats, >= 0."""
    p, q = np.asarray(base, dtype=np.float64), np.asarray(cand, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # -inf minus -inf where both give no chance: those terms are zero
        terms = np.exp(p) * (p - q)
    result: Floats = np.maximum(np.where(np.isneginf(p), 0.0, terms).sum(axis=-1), 0.0)
    return result


def summary(values: npt.ArrayLike, windows: npt.ArrayLike | None = None) -> Summary:
    """Mean with clustered standard error and percentiles of KL values [T]; windows: [T] labels."""
    given = np.asarray(values, dtype=np.float64)
    mean, error = mean_with_error(given, windows)
    p50, p90, p95, p99 = (float(p) for p in np.percentile(given, (50, 90, 95, 99)))
    return Summary(len(given), mean, error, p50, p90, p95, p99, float(given.max()))


def top1_agreement(
    base_ids: npt.ArrayLike, cand_ids: npt.ArrayLike, windows: npt.ArrayLike | None = None
) -> tuple[float, float]:
    """Share of positions [T] where both deem the same token likeliest, and its clustered standard error."""
    ours, theirs = np.asarray(base_ids), np.asarray(cand_ids)
    if ours.shape != theirs.shape:
        raise ValueError(f"{ours.shape} baseline tokens but {theirs.shape} candidate tokens: not the same positions")
    return mean_with_error(ours == theirs, windows)


def perplexity_ratio(
    base_nll: npt.ArrayLike,
    cand_nll: npt.ArrayLike,
    windows: npt.ArrayLike | None = None,
    confidence: float = 0.95,
) -> Ratio:
    """exp(mean(candidate - baseline)) of negative log-likelihoods [T] of the same tokens, in nats.

    Delta method: the ratio's standard error is the ratio times that of the mean difference. The interval is
    exp(mean +- t * error): it cannot go below zero.
    """
    base, cand = np.asarray(base_nll, dtype=np.float64), np.asarray(cand_nll, dtype=np.float64)
    if base.shape != cand.shape:
        raise ValueError(f"{base.shape} baseline tokens but {cand.shape} candidate tokens: not the same positions")
    mean, error = mean_with_error(cand - base, windows)
    groups = len(base) if windows is None else len(np.unique(np.asarray(windows)))
    half = float(stdtrit(groups - 1, (1 + confidence) / 2)) * error
    return Ratio(math.exp(mean), math.exp(mean) * error, math.exp(mean - half), math.exp(mean + half))


def _matrix(logprobs: npt.ArrayLike) -> Floats:
    values = np.asarray(logprobs, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"log-probabilities must be [T, V], got shape {values.shape}")
    if np.isnan(values).any() or values.max() > 1e-6:
        raise ValueError("log-probabilities must be numbers not above 0: these look like logits or hold NaN")
    return values
