"""Means of paired scores and their covariance, with clusters respected: what every interval of `paired` is
made of.

Items that share a passage, an image or a subject are not independent. The standard error sums the deviations
within each cluster before squaring (Liang & Zeger 1986; Miller 2024, arXiv 2411.00640), times G / (G - 1) for
G clusters, so that clusters of one item give exactly the ordinary formula with n - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Moments:
    """Means of (baseline, candidate) and the covariance of these two means."""

    mean: Floats  # [2]
    covariance: Floats | None  # [2, 2]; None with fewer than two independent units: then nothing is known of the error
    degrees: float  # of freedom
    items: int
    clusters: int

    @property
    def variance(self) -> float | None:
        """Of candidate - baseline: never below zero, where rounding would put it."""
        if self.covariance is None:
            return None
        (base, cross), (_, cand) = self.covariance
        return max(0.0, float(base + cand - 2 * cross))


def moments(baseline: Floats, candidate: Floats, codes: Ints) -> Moments:
    """Of one task: scores [n] and cluster codes [n]."""
    both = np.stack([baseline, candidate], axis=1)
    groups = int(codes.max()) + 1
    return Moments(both.mean(axis=0), covariance(both, codes), float(groups - 1), len(both), groups)


def pool(parts: Sequence[Moments], weights: Floats) -> Moments:
    """Weighted sum of independent tasks; weights [tasks] sum to 1. Degrees of freedom by Welch and
    Satterthwaite."""
    mean = np.sum([w * part.mean for w, part in zip(weights, parts, strict=True)], axis=0)
    items, clusters = sum(part.items for part in parts), sum(part.clusters for part in parts)
    known = [part.covariance for part in parts if part.covariance is not None]
    if len(known) < len(parts):
        return Moments(mean, None, 0.0, items, clusters)
    total = np.sum([w * w * cov for w, cov in zip(weights, known, strict=True)], axis=0)
    variances = np.array([w * w * (part.variance or 0.0) for w, part in zip(weights, parts, strict=True)])
    free = np.array([part.degrees for part in parts])
    degrees = variances.sum() ** 2 / (variances**2 / free).sum() if variances.any() else free.sum()
    return Moments(mean, total, float(degrees), items, clusters)


def covariance(values: Floats, codes: Ints) -> Floats | None:
    """[n, k], [n] -> [k, k] covariance of the mean: G/(G-1) * sum over clusters of (summed deviations)^2 /
    n^2."""
    n, groups = len(values), int(codes.max()) + 1
    if groups < 2:
        return None
    deviations = values - values.mean(axis=0)
    sums = np.stack([np.bincount(codes, weights=column, minlength=groups) for column in deviations.T])
    return np.asarray(sums @ sums.T * groups / (groups - 1) / n**2)


def mean_with_error(values: npt.ArrayLike, clusters: npt.ArrayLike | None = None) -> tuple[float, float]:
    """Mean of [n] finite values and its (clustered) standard error.

    ValueError on no values, NaN, labels that do not fit, and fewer than two independent values or clusters.
    """
    given = row(values, "values")
    spread = covariance(given[:, None], codes_of(clusters, len(given)))
    if spread is None:
        raise ValueError("a standard error needs at least two independent values or clusters, got one")
    return float(given.mean()), math.sqrt(spread[0, 0])


def fieller(found: Moments, quantile: float) -> tuple[float, float] | None:
    """Interval of candidate / baseline: all r with (c - r b)^2 <= t^2 Var(c - r b) (Fieller 1954).

    None where it is unbounded, because the baseline's own score is not separated from zero.
    """
    if found.covariance is None:
        return None
    (base, cand), spread = found.mean, quantile**2 * found.covariance
    square, cross, rest = base**2 - spread[0, 0], base * cand - spread[0, 1], cand**2 - spread[1, 1]
    if square <= 0:
        return None
    root = math.sqrt(max(0.0, cross**2 - square * rest))
    return max(0.0, float((cross - root) / square)), float((cross + root) / square)


def row(values: npt.ArrayLike, name: str) -> Floats:
    """[n] floats; ValueError with the name when there are none or they are not finite numbers."""
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or not len(given):
        raise ValueError(f"{name} must be a row of at least one number, got an array of shape {given.shape}")
    if bad := int((~np.isfinite(given)).sum()):
        raise ValueError(f"{name} holds {bad} values that are not finite numbers")
    return given


def codes_of(labels: npt.ArrayLike | None, items: int) -> Ints:
    """[items] labels of any kind -> 0, 1, 2, ... by first appearance; without labels each item is its own."""
    if labels is None:
        return np.arange(items, dtype=np.int64)
    given = np.asarray(labels)
    if given.shape != (items,):
        raise ValueError(f"{items} items need {items} cluster labels, got an array of shape {given.shape}")
    _, first, inverse = np.unique(given, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse.reshape(-1)].astype(np.int64)
