"""Stop an evaluation as soon as its verdict is certain, and stay honest at every look.

A fixed-n test may be looked at once. Whoever looks after each batch and stops at the first good moment
accepts a bad candidate far more often than the stated alpha. Here two gamblers bet, item by item, against
"the drop is at least the margin" (win: accept) and "the drop is at most the margin" (win: regression);
`betting` says why looking at their wealth is always allowed and how sharp it is. Each of the two wrong
verdicts has probability at most alpha, and since only one hypothesis can be true, so has a wrong verdict
altogether (unless the drop is the margin to the last item).

Three traps.
1. The randomness is the *order*, not the items. With single items in random order the verdict holds for the
   suite's own mean however strongly items are correlated: no cluster correction is needed. Name clusters when
   whole clusters arrive together (one passage or image, scored once).
2. Large clusters are dear: nothing rules out that all damage sits in a few of them, so a sound test must see
   many. Never make MMLU's 57 subjects the unit of sampling; draw its questions.
3. The claim is about *this suite*, had it been run in full. For questions beyond it report the clustered
   interval of `paired` on a full run (Miller 2024, arXiv 2411.00640).

Sharper still: `chances`. A candidate's answer flips mostly where the baseline was unsure. Draw such items
first, with a chance that grows with the expected flip rate (and a floor: half of it equal for all), and the
verdict comes sooner. A bad guess costs items, never validity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from quantlab.score.betting import Floats, Units, draws_needed, evidence, lower_bound
from quantlab.score.moments import codes_of

Ints = npt.NDArray[np.int64]
Status = Literal["accept", "regression", "undecided"]


@dataclass(frozen=True)
class Decision:
    """Where a sequential comparison stands. Differences are fractions (candidate - baseline), not points."""

    status: Status
    estimate: float  # of the whole suite's mean difference; a little extreme when stopped early, the bounds are not
    low: float  # at all looks together, P(the suite's mean < low) <= alpha
    high: float  # likewise P(the suite's mean > high) <= alpha, so [low, high] holds at 1 - 2 alpha
    items_used: int  # up to and with the unit that decided; items of an unfinished cluster do not count
    looks: int  # units (items or clusters) after which wealth was checked
    items_needed_estimate: int  # more items until a decision, if the present estimate holds; 0 when decided


def order(
    items: int, seed: int, *, clusters: npt.ArrayLike | None = None, chances: npt.ArrayLike | None = None
) -> Ints:
    """Random order of arrival: a permutation of range(items), the same on every machine.

    clusters: [items] labels; a cluster arrives whole, in its own order, when the first of its items is drawn.
    chances: [items] positive relative chances to be drawn next (default equal). Each unit waits an
    exponential time with its summed chance as rate (Efraimidis & Spirakis 2006). Built on raw PCG64 output,
    which numpy keeps stable across versions (its `permutation` is not promised to be). ValueError on rubbish.
    """
    if items < 1:
        raise ValueError(f"an order needs at least one item, got {items}")
    codes = codes_of(clusters, items)
    rate = np.bincount(codes, weights=_positive(chances, items, "chances"))
    raw = np.asarray(np.random.PCG64(seed).random_raw(len(rate)), dtype=np.uint64)
    waiting = -np.log(((raw >> np.uint64(11)) + 0.5) * 2.0**-53) / rate
    return np.lexsort((np.arange(items), codes, waiting[codes])).astype(np.int64)


def share(alpha: float, comparisons: int, accepted: int = 0) -> float:
    """Error budget of one comparison when `comparisons` (tasks x precisions) share `alpha`: Holm's step-down.

    Starts as Bonferroni, alpha / comparisons. Each accepted comparison leaves its share to the others: alpha
    / (comparisons - accepted). The chance that *any* comparison is wrongly accepted stays <= alpha, under any
    dependence and at every look: 1 / (largest wealth) is a p-value valid at all times, and Holm (1979) needs
    no more. A regression frees no budget. Counted apart, the same rule serves wrongly declared regressions.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    if comparisons < 1 or not 0 <= accepted <= comparisons:
        raise ValueError(f"{accepted} accepted out of {comparisons} comparisons makes no sense")
    return alpha / max(1, comparisons - accepted)


@dataclass(frozen=True, eq=False)
class NonInferiority:
    """Candidate against baseline on one finite suite. Arrays are in the suite's own order.

    Score the items in the order `arrival` and hand all differences so far to `decide` after each batch.
    """

    margin: float  # largest acceptable drop, a fraction: 0.01 is one point
    items: int  # N, size of the whole suite
    alpha: float = 0.05  # chance of each wrong verdict; see `share` for several comparisons
    alpha_regression: float | None = None  # of a wrong regression, where that is not `alpha` too
    seed: int = 0  # fixes the order of arrival
    clusters: npt.ArrayLike | None = None  # [N] labels of items that arrive together
    weights: npt.ArrayLike | None = None  # [N] weight of each item in the mean; 1 / task size for a mean over tasks
    chances: npt.ArrayLike | None = None  # [N] relative chance to be drawn next; default: the weights

    def __post_init__(self) -> None:
        for name, value in (("margin", self.margin), ("alpha", self.alpha), ("alpha_regression", self._regression)):
            if not 0 < value < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")
        _positive(self.weights, self.items, "weights")
        _ = self.units  # refuses bad clusters and chances now rather than after the first batch

    @cached_property
    def arrival(self) -> Ints:
        """[N] suite indices in order of arrival."""
        chances = self.weights if self.chances is None else self.chances
        return order(self.items, self.seed, clusters=self.clusters, chances=chances)

    @cached_property
    def units(self) -> Units:
        """Masses (they sum to N), chances and item counts of the sampling units, in order of arrival."""
        counts = np.diff(self._ends, prepend=0)
        weights = self._weights_in_order
        given = self.weights if self.chances is None else self.chances
        chances = _positive(given, self.items, "chances")[self.arrival]
        starts = self._ends - counts
        chances = np.add.reduceat(chances / chances.mean(), starts)
        return Units(np.add.reduceat(weights, starts), chances, counts.astype(np.float64))

    @cached_property
    def _weights_in_order(self) -> Floats:
        weights = _positive(self.weights, self.items, "weights")
        return np.asarray((weights / weights.mean())[self.arrival])

    @cached_property
    def _ends(self) -> Ints:
        """[units] number of items that have arrived when each unit is complete."""
        codes = codes_of(self.clusters, self.items)[self.arrival]
        return np.append(np.flatnonzero(np.diff(codes)) + 1, self.items).astype(np.int64)

    def decide(self, differences: npt.ArrayLike) -> Decision:
        """Verdict from the differences (candidate - baseline, in [-1, 1]) of the first n items of `arrival`.

        Pure: give all differences from the start each time, in any batch size; the answer depends on neither
        batches nor how often it was asked. Accept is a drop below the margin, regression a drop that reaches
        it. A finished suite is always decided. ValueError on NaN, on |difference| > 1, on more differences
        than items.
        """
        totals = self._totals(_differences(differences, self.items))
        accept = evidence(totals, self.units, -self.margin, self.margin) >= -math.log(self.alpha)
        regress = evidence(-totals, self.units, self.margin, self.margin) >= -math.log(self._regression)
        decided = np.flatnonzero(accept | regress)
        if len(decided):
            drawn = int(decided[0]) + 1
            return self._report("accept" if accept[drawn - 1] else "regression", totals[:drawn])
        return self._report("regression" if len(totals) == len(self._ends) else "undecided", totals)

    def bounds(self, differences: npt.ArrayLike) -> tuple[float, float]:
        """(low, high) of the suite's mean from *all* the differences given, also those after a decision: sharper
        than the decision's own and as valid, because a confidence sequence may go on after one has stopped
        looking."""
        given = _differences(differences, self.items)
        if len(given) == self.items:
            return self.estimate(given), self.estimate(given)
        return self._bounds(self._totals(given))

    def estimate(self, values: npt.ArrayLike) -> float:
        """The whole suite's mean of `values` (scores or differences, in order of arrival), as `Decision.estimate`.
        Linear: the estimate of a difference is the difference of the estimates."""
        return _estimate(self._totals(_differences(values, self.items)), self.units)

    @property
    def _regression(self) -> float:
        return self.alpha if self.alpha_regression is None else self.alpha_regression

    def _bounds(self, totals: Floats) -> tuple[float, float]:
        low = lower_bound(totals, self.units, self.alpha, self.margin, pivot=-self.margin)
        return low, -lower_bound(-totals, self.units, self._regression, self.margin, pivot=self.margin)

    def _totals(self, differences: Floats) -> Floats:
        """Weighted sum of differences of each *complete* unit."""
        complete = int(np.searchsorted(self._ends, len(differences), side="right"))
        if not complete:
            return np.zeros(0)
        used = self._ends[complete - 1]
        starts = np.concatenate([[0], self._ends[: complete - 1]])
        return np.add.reduceat(differences[:used] * self._weights_in_order[:used], starts)

    def _report(self, status: Status, totals: Floats) -> Decision:
        drawn = len(totals)
        used = int(self._ends[drawn - 1]) if drawn else 0
        estimate = _estimate(totals, self.units)
        low = high = estimate
        if used < self.items:
            low, high = self._bounds(totals)
        more = self._items_needed(totals, estimate) if status == "undecided" else 0
        return Decision(status, estimate, low, high, used, drawn, more)

    def _items_needed(self, totals: Floats, estimate: float) -> int:
        sign = 1.0 if estimate > -self.margin else -1.0
        alpha = self.alpha if sign > 0 else self._regression
        draws = draws_needed(sign * totals, self.units, alpha, self.margin, -sign * self.margin, sign * estimate)
        used = self._ends[len(totals) - 1] if len(totals) else 0
        return int(self._ends[len(totals) + draws - 1] - used)


def _estimate(totals: Floats, units: Units) -> float:
    """What is seen, plus for the mass left the ratio of inverse-chance weighted sums (Hajek); 0 before any
    data.

    For single items with equal chances this is the plain mean; for a finished suite it is exact.
    """
    drawn = len(totals)
    if not drawn:
        return 0.0
    masses, chances = units.masses[:drawn], units.chances[:drawn]
    ratio = (totals / chances).sum() / (masses / chances).sum()
    return float((totals.sum() + ratio * units.masses[drawn:].sum()) / units.masses.sum())


def _positive(values: npt.ArrayLike | None, items: int, name: str) -> Floats:
    if values is None:
        return np.ones(items)
    given = np.asarray(values, dtype=np.float64)
    if given.shape != (items,):
        raise ValueError(f"{items} items need {items} {name}, got an array of shape {given.shape}")
    if not (np.isfinite(given).all() and (given > 0).all()):
        raise ValueError(f"{name} must be positive and finite")
    return given


def _differences(values: npt.ArrayLike, items: int) -> Floats:
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or len(given) > items:
        raise ValueError(f"expected at most {items} differences in one row, got an array of shape {given.shape}")
    if not (np.abs(given) <= 1).all():
        raise ValueError("every difference must be a number in [-1, 1] (scores lie in [0, 1]); NaN is not a score")
    return given
