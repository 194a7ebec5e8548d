"""The paired difference of two models on the same items, with an uncertainty one can sign.

Two accuracies with their own standard errors hide what quantization did: the items are the same, so most of
the noise is shared and cancels in the difference d = candidate - baseline of each item (Miller, "Adding Error
Bars to Evals", arXiv 2411.00640). On the demo model FP8 moves accuracy by 0.9 points: 0.6 sigma unpaired, 1.9
sigma paired.

The trap of few flips: with none seen, mean and standard error say "0 +- 0", a certainty nobody has, and where all
flips are losses both are low together. Few flips and few clusters have exact bounds (few.py). In a suite that holds
of each task: 20 items without a flip leave 17 % possible, and where they are half of a suite's score, that is 8
points, however many items the other task has.

Units: scores are fractions in [0, 1], so are differences: 0.01 is one point. scipy.special, not scipy.stats:
the latter takes longer to import than all of this takes to run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from quantlab.score.few import Part, half_widths, part
from quantlab.score.moments import (
    Floats,
    Ints,
    Moments,
    codes_of,
    fieller,
    mean_with_error,
    moments,
    pool,
    row,
)

__all__ = ["Paired", "Part", "items_for_margin", "mean_with_error", "paired", "suite"]

Task = tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike | None]
POWER = 0.8
TIE = 1e-9  # rounding alone puts a difference that equals the margin this far from it


@dataclass(frozen=True)
class Paired:
    """Candidate against baseline on the same items. Errors and bounds are None below two clusters."""

    n: int  # items
    clusters: int  # independent units: clusters, or items where none were named
    confidence: float
    baseline_score: float
    baseline_error: float | None
    candidate_score: float
    candidate_error: float | None
    difference: float  # candidate - baseline
    standard_error: float | None  # of the difference, paired
    degrees: float  # of freedom of the t interval: clusters - 1
    low: float | None  # two-sided interval of the difference at `confidence`
    high: float | None
    regressed: int  # items that got worse (right -> wrong)
    improved: int  # items that got better (wrong -> right)
    recovery: float | None  # candidate / baseline; None where the baseline scores 0
    recovery_low: float | None  # Fieller's interval; None where the baseline's score is not separated from 0
    recovery_high: float | None
    minimal_detectable_drop: float | None  # found with power 0.8 by a one-sided test at alpha = 1 - confidence
    churn: int | None  # items with a different answer, equally wrong; None without answers
    parts: tuple[Part, ...]  # the tasks; one where there is no suite

    @property
    def flips(self) -> int:
        """Items whose score changed, in either direction."""
        return self.regressed + self.improved


def paired(
    baseline: npt.ArrayLike,
    candidate: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    clusters: npt.ArrayLike | None = None,
    baseline_answers: npt.ArrayLike | None = None,
    candidate_answers: npt.ArrayLike | None = None,
) -> Paired:
    """Compare scores [n] in [0, 1] of the same items in the same order; clusters: [n] labels; answers: [n]
    each.

    ValueError on unequal lengths, no items, NaN, scores outside [0, 1].
    """
    base, cand, codes = _task(baseline, candidate, clusters)
    churn = _churn(base, cand, baseline_answers, candidate_answers)
    found = moments(base, cand, codes)
    return _result(found, (part(1.0, found, base, cand),), base, cand, confidence, churn)


def suite(
    tasks: Mapping[str, Task],
    weighting: Literal["items", "tasks"] | Sequence[float] = "tasks",
    *,
    confidence: float = 0.95,
) -> Paired:
    """Pool {task: (baseline [n], candidate [n], clusters [n] or None)}: mean over tasks (macro), over items
    (micro), or with a weight for each task, which sum to 1.

    Tasks are a fixed choice, not a sample of tasks: the variance is the sum of weight^2 * variance within
    tasks. ValueError as in `paired`, naming the task.
    """
    if not tasks:
        raise ValueError("a suite needs tasks, got none")
    checked = {}
    for name, task in tasks.items():
        try:
            checked[name] = _task(*task)
        except ValueError as error:
            raise ValueError(f"task {name}: {error}") from error
    every = [moments(*task) for task in checked.values()]
    weights = _weights(weighting, [one.items for one in every])
    base, cand = (np.concatenate([task[side] for task in checked.values()]) for side in (0, 1))
    shares = [
        part(float(weight), one, *task[:2]) for weight, one, task in zip(weights, every, checked.values(), strict=True)
    ]
    return _result(pool(every, weights), shares, base, cand, confidence, None)


def _weights(weighting: str | Sequence[float], sizes: Sequence[int]) -> Floats:
    """[tasks] summing to 1."""
    if weighting == "items":
        return np.asarray(sizes) / sum(sizes)
    if weighting == "tasks":
        return np.full(len(sizes), 1 / len(sizes))
    given = np.zeros(0) if isinstance(weighting, str) else np.asarray(weighting, dtype=np.float64)
    if given.shape != (len(sizes),) or not (given > 0).all() or abs(given.sum() - 1) > 1e-9:
        raise ValueError(f'weighting must be "items", "tasks" or {len(sizes)} shares of 1, got {weighting!r}')
    return given


def items_for_margin(
    difference: float,
    standard_error: float,
    n: int,
    *,
    margin: float,
    confidence: float = 0.95,
    power: float = POWER,
    half_width: float = 0.0,
) -> int | None:
    """More items until the two-sided interval at `confidence` lies on one side of -margin, with `power`.

    n_total = (z_(1 + confidence)/2 + z_power)^2 * n * standard_error^2 / (difference + margin)^2: the
    variance per item carries the clusters' design effect. Without any spread, the exact binomial bound sets
    the number. None at a tie, which no number of items decides; 0 when n is enough already.

    half_width: of the present interval. Few flips or few clusters make it wider than the formula knows; then
    it must at least shrink to the distance, as the root of n.
    """
    distance, tail = abs(difference + margin), (1 - _fraction(confidence)) / 2
    if distance < TIE:
        return None
    quantiles = float(ndtri(1 - tail) + ndtri(_fraction(power)))
    total = n * (quantiles * standard_error / distance) ** 2
    if standard_error == 0:
        total = math.log(tail) / math.log1p(-min(distance, 0.999))
    elif half_width > distance:
        total = max(total, n * (half_width / distance) ** 2)
    return max(0, math.ceil(total - n))


def _result(
    found: Moments,
    parts: Sequence[Part],
    base: Floats,
    cand: Floats,
    confidence: float,
    churn: int | None,
) -> Paired:
    first, second = float(found.mean[0]), float(found.mean[1])
    regressed, improved = int((cand < base).sum()), int((cand > base).sum())
    error = None if found.variance is None else math.sqrt(found.variance)
    two_sided = (1 + _fraction(confidence)) / 2
    halves = half_widths(error, found.degrees, two_sided, parts)
    drop = half_widths(error, found.degrees, confidence, parts)
    low, high = (None, None) if halves is None else _around(second - first, *halves)
    ratio = _ratio(found, two_sided, halves)
    errors = [None, None] if found.covariance is None else np.sqrt(np.diag(found.covariance)).tolist()
    return Paired(
        n=found.items,
        clusters=found.clusters,
        confidence=confidence,
        baseline_score=first,
        baseline_error=errors[0],
        candidate_score=second,
        candidate_error=errors[1],
        difference=second - first,
        standard_error=error,
        degrees=found.degrees,
        low=low,
        high=high,
        regressed=regressed,
        improved=improved,
        recovery=second / first if first > 0 else None,
        recovery_low=ratio[0] if ratio else None,
        recovery_high=ratio[1] if ratio else None,
        minimal_detectable_drop=None if drop is None else min(1.0, drop[0] + _power_width(error, found.degrees)),
        churn=churn,
        parts=tuple(parts),
    )


def _power_width(error: float | None, degrees: float) -> float:
    return float(stdtrit(degrees, POWER)) * error if error else 0.0


def _around(difference: float, down: float, up: float) -> tuple[float, float]:
    return max(-1.0, difference - down), min(1.0, difference + up)


def _ratio(found: Moments, level: float, halves: tuple[float, float] | None) -> tuple[float, float] | None:
    """Interval of the recovery; where an exact bound widened that of the difference, this one widens too."""
    if halves is None or (bounds := fieller(found, quantile := float(stdtrit(found.degrees, level)))) is None:
        return None
    (low, high), (down, up) = bounds, halves
    base, ratio = float(found.mean[0]), float(found.mean[1] / found.mean[0])
    usual = quantile * math.sqrt(found.variance or 0.0)
    return (
        max(0.0, min(low, ratio - down / base)) if down > usual else low,
        max(high, ratio + up / base) if up > usual else high,
    )


def _churn(base: Floats, cand: Floats, ours: npt.ArrayLike | None, theirs: npt.ArrayLike | None) -> int | None:
    if ours is None and theirs is None:
        return None
    if ours is None or theirs is None:
        raise ValueError("churn needs the answers of both models")
    first, second = np.asarray(ours), np.asarray(theirs)
    if first.shape != base.shape or second.shape != base.shape:
        raise ValueError(f"{len(base)} items but answers of shapes {first.shape} and {second.shape}")
    return int(((base == cand) & (base < 1) & (first != second)).sum())


def _task(
    baseline: npt.ArrayLike, candidate: npt.ArrayLike, clusters: npt.ArrayLike | None
) -> tuple[Floats, Floats, Ints]:
    base, cand = row(baseline, "baseline scores"), row(candidate, "candidate scores")
    if len(base) != len(cand):
        raise ValueError(f"{len(base)} baseline scores but {len(cand)} candidate scores: not the same items")
    for name, scores in (("baseline", base), ("candidate", cand)):
        if scores.min() < 0 or scores.max() > 1:
            raise ValueError(f"{name} scores must lie in [0, 1], found {scores.min():g} to {scores.max():g}")
    return base, cand, codes_of(clusters, len(base))


def _fraction(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"a confidence or power must lie between 0 and 1, got {value}")
    return value
