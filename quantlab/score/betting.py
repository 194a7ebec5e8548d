"""Evidence at every look: the wealth of a gambler who bets that a suite's mean difference is above a value.

A *test martingale* is the wealth of a gambler who bets against a hypothesis at odds that are fair if it is
true. Fair games make nobody rich: by Ville's inequality wealth ever reaches 1/alpha with probability at most
alpha, whenever and however often one looks.

What is bet on. A suite of N items is met in a random order, without replacement. A draw brings one item or a
whole cluster. The paired difference d = candidate - baseline of an item lies in [-1, 1]. A unit has a mass m
(its number of items, or their weights) and is drawn next with a chance in proportion to q (default: its mass,
so the next unit is the cluster of the next item). Masses and chances of *all* units are known before anything
is scored. So against "mean difference <= null" the excess e = sum of weight * (d - null) over a unit obeys,
at the boundary and *exactly*, whatever the cluster sizes and however effects go with size,
    E[e / q | past] = -(excess so far) / (chances left)
    wealth *= 1 + bet * (e / q - that)
Any bet chosen before the draw, and small enough that wealth cannot go below zero, keeps wealth a
supermartingale for every mean at or below the null. Sources: Waudby-Smith & Ramdas, "Estimating means of
bounded random variables by betting" (JRSSB 2024, also without replacement) and "Confidence sequences for
sampling without replacement" (NeurIPS 2020); unequal chances: Shekhar, Xu, Lipton, Liang & Ramdas,
"Risk-limiting financial audits via weighted sampling without replacement" (UAI 2023).

What makes it sharp. If the truth lies `distance` above the null, the next draw's expected gain is distance *
N / (chances left): it *grows* as the suite is used up. The bet follows it, divided by the second moment seen
so far (Kelly's rule to second order). The distance is unknown, so the capital is split over a few values,
most of it on "the candidate lost nothing" (method of mixtures; Howard, Ramdas, McAuliffe & Sekhon, Annals of
Statistics 2021). Any split is valid; this one was chosen by simulation and costs little against knowing the
distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MULTIPLES = (
    (0.5, 0.15),
    (1.0, 0.40),
    (2.0, 0.20),
    (4.0, 0.10),
    (8.0, 0.10),
)  # distance in margins, capital on it
COLLAPSE = (0.3, 0.05)  # an absolute distance: a destroyed model is found within a few dozen items
PRIOR_FLIPS, PRIOR_ITEMS = (
    0.1,
    20.0,
)  # second moment before any data: as if 20 items with 10 % flips had been seen
LARGEST_STAKE = 0.9  # share of the wealth one unit may cost at worst
RESOLUTION = 1e-4  # of a bound: a hundredth of a point
EXACT = 1e-9  # rounding allowance when sums of excesses are compared, as a share of the suite


@dataclass(frozen=True)
class Units:
    """What is known of all units before they are scored, in order of arrival: [..., units]."""

    masses: Floats
    chances: Floats
    items: Floats  # number of items of each unit; only scales the imagined start of the second moment

    @property
    def total(self) -> Floats:
        """[..., 1] mass of the suite."""
        return np.asarray(self.masses.sum(axis=-1, keepdims=True))

    @property
    def chances_left(self) -> Floats:
        """[..., units] chances of the units not yet drawn, the next one included."""
        return np.cumsum(self.chances[..., ::-1], axis=-1)[..., ::-1]

    @property
    def largest_left(self) -> Floats:
        """[..., units] largest mass / chance of the units not yet drawn: bounds what the next draw brings."""
        return np.maximum.accumulate((self.masses / self.chances)[..., ::-1], axis=-1)[..., ::-1]


def gamblers(margin: float) -> list[tuple[float, float]]:
    """(assumed distance from the null, share of the capital) of each part of the mixture; shares sum to 1."""
    return [(min(multiple * margin, 1.0), capital) for multiple, capital in MULTIPLES] + [COLLAPSE]


def second_moment(totals: Floats, units: Units) -> Floats:
    """[..., drawn + 1] mean of (total / chance)^2 as known *before* each draw, the draw to come included.

    Starts from PRIOR_ITEMS imagined, independent items, so that the first bets are neither wild nor timid.
    """
    drawn = totals.shape[-1]
    squares = np.cumsum((totals / units.chances[..., :drawn]) ** 2, axis=-1)
    squares = np.concatenate([np.zeros((*squares.shape[:-1], 1)), squares], axis=-1)
    count = units.items.shape[-1]
    per_unit = units.items.sum(axis=-1, keepdims=True) / count
    scale = units.total / units.chances.sum(axis=-1, keepdims=True)
    imagined = PRIOR_ITEMS / per_unit
    return np.asarray((imagined * PRIOR_FLIPS / per_unit * scale**2 + squares) / (imagined + np.arange(drawn + 1)))


def evidence(totals: Floats, units: Units, null: float, margin: float) -> Floats:
    """Log wealth against "mean difference <= null" after each draw. [..., drawn] -> [..., drawn].

    totals: sum of weight * difference of each drawn unit, in order of arrival. `margin` only sets the bets.
    Infinite once the units left cannot bring the mean down to the null. Never increasing in `null`: uncapped
    bets do not depend on it, and a capped one loses by a larger null too, because |total| <= mass. So
    `lower_bound` may bisect.
    """
    drawn = totals.shape[-1]
    masses, chances, left = (a[..., :drawn] for a in (units.masses, units.chances, units.chances_left))
    excess = totals - null * masses
    so_far = np.cumsum(excess, axis=-1)
    expected = -(so_far - excess) / left
    surprise = excess / chances - expected
    worst = np.maximum(expected + (1 + null) * units.largest_left[..., :drawn], np.finfo(float).tiny)
    moment = second_moment(totals, units)[..., :drawn]
    wealth = np.zeros_like(excess)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):  # the broke stay at 0, the rich at inf
        for distance, capital in gamblers(margin):
            gain = distance * units.total / left
            bet = np.minimum(gain / (moment + gain * gain), LARGEST_STAKE / worst)
            wealth += capital * np.cumprod(1 + np.maximum(bet * surprise, -LARGEST_STAKE), axis=-1)
        wealth = np.log(wealth)
    mass_left = units.total - np.cumsum(masses, axis=-1)
    certain = so_far > (1 + null) * mass_left + EXACT * units.total
    return np.where(np.maximum.accumulate(certain, axis=-1), np.inf, wealth)


def lower_bound(totals: Floats, units: Units, alpha: float, margin: float, pivot: float) -> float:
    """Largest null rejected at any look so far: a lower confidence sequence at 1 - alpha. totals: [drawn].

    `pivot` is tried first, so the bound lies on the same side of it as the test's own verdict.
    """
    low, high, middle = -1.0, 1.0, pivot
    while high - low > RESOLUTION:
        if evidence(totals, units, middle, margin).max(initial=-np.inf) >= -math.log(alpha):
            low = middle
        else:
            high = middle
        middle = (low + high) / 2
    return low


def draws_needed(totals: Floats, units: Units, alpha: float, margin: float, null: float, mean: float) -> int:
    """More draws until the null falls, if the mean is `mean` (> null) and the second moment stays.

    totals: [drawn]. Adds up the expected growth of log wealth of the draws to come, whose masses and chances
    are known. Never more than the draws left: then the mean is known exactly.
    """
    drawn = totals.shape[-1]
    have = float(evidence(totals, units, null, margin)[-1]) if drawn else 0.0
    gain = (mean - null) * units.total / units.chances_left[drawn:]
    square = second_moment(totals, units)[-1] + gain * gain
    bet = np.minimum(gain / square, LARGEST_STAKE / ((1 + null) * units.largest_left[drawn:]))
    reached = have + np.cumsum(bet * gain - bet * bet * square / 2) >= -math.log(alpha)
    return int(reached.argmax()) + 1 if reached.any() else len(gain)
