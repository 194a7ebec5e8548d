"""The claim about one finite suite: "run in full, the drop is less than max_drop points". Pure, as judge.py is.

The other claim, about all items like these (judge.py), needs an interval that holds however the suite was sampled from
the world. This one knows its population to the last item. So a suite run in full is decided by its own difference,
without any error, and before that by a test that may be looked at as often as one likes (score/sequential.py): items
come in a random order, and scoring stops as soon as the verdict is certain.

Several candidates share one error budget: the chance that *any* of them is wrongly accepted is at most 1 - confidence,
and so is the chance that any is wrongly rejected (Holm 1979, see `score.sequential.share`). How many candidates there
are is counted before the first look and does not change when one breaks down later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quantlab.records import Comparison, Look, Number, Policy, TaskComparison, Verdict

if TYPE_CHECKING:
    import numpy as np

    from quantlab.score.draw import Draw

ROUNDING = 1e-9
"""Points: a drop that equals the margin to the last item is not below it, whatever the last bit says."""


@dataclass(frozen=True)
class Seen:
    """Scores of baseline and candidate on the items known of both: [n] in order of arrival, in 0..1."""

    baseline: np.ndarray
    candidate: np.ndarray


@dataclass
class Budget:
    """One error budget for all candidates of a run."""

    confidence: float
    candidates: int
    accepted: int = 0
    rejected: int = 0

    @property
    def alphas(self) -> tuple[float, float]:
        """Chances of a wrong acceptance and of a wrong rejection that the next candidate may spend."""
        from quantlab.score.sequential import share

        alpha = 1 - self.confidence
        return share(alpha, self.candidates, self.accepted), share(alpha, self.candidates, self.rejected)

    def count(self, status: str) -> None:
        self.accepted += status == "accept"
        self.rejected += status == "regression"


def together(draw: Draw, seen: Mapping[str, Seen], policy: Policy, budget: Budget, looks: int) -> dict[str, Look]:
    """Look at all undecided candidates. An acceptance leaves its share to the others, so they are asked again.

    Args:
        draw: the suite's order.
        seen: candidate -> what is known of it.
        policy: margin and largest gain.
        budget: is charged with what is decided here.
        looks: how often was looked, this time included.
    """
    found: dict[str, Look] = {}
    while True:
        open_ = {name: each for name, each in seen.items() if name not in found or found[name].status == "undecided"}
        fresh = {name: look(draw, each, policy, budget.alphas, looks) for name, each in open_.items()}
        found |= fresh
        for each in fresh.values():
            budget.count(each.status)
        if all(each.status == "undecided" for each in fresh.values()):
            return found


def next_look(ends: Sequence[int], place: int, hopeful: int) -> int:
    """The place in `ends` of the look after `place`; one is left out where no candidate can hope for a decision at it.

    Never more than one: an estimate from few items is a guess, and opening a model costs less than scoring most of a
    suite in vain. `hopeful`: with how many items the first candidate is expected to be decided.
    """
    after = place + 2
    return after if after < len(ends) and ends[after] <= hopeful else place + 1


def look(draw: Draw, seen: Seen, policy: Policy, alphas: tuple[float, float], looks: int) -> Look:
    """Where one candidate stands. With all items known it is exact, whatever was seen on the way."""
    difference = seen.candidate - seen.baseline
    test = draw.test(policy.max_drop / 100, alphas)
    estimate = 100 * test.estimate(difference)
    if len(difference) == draw.total:
        return exact(estimate, draw.total, policy, looks)
    decided = test.decide(difference)
    low, high = (100 * each for each in test.bounds(difference))
    status: Literal["accept", "regression", "undecided"] = decided.status
    if status == "accept" and estimate > policy.max_gain >= low:
        status = "undecided"  # too good to be true, and not yet sure: that is looked into
    return Look(
        status=status,
        difference=_points(estimate, len(difference), low, high, confidence=1 - sum(alphas)),
        scored=len(difference),
        items=draw.total,
        looks=looks,
        decided_after=None if status == "undecided" else decided.items_used,
        needed=decided.items_needed_estimate if status == "undecided" else 0,
    )


def exact(points: float, items: int, policy: Policy, looks: int = 0) -> Look:
    """A suite that is known in full: the difference is what it is."""
    status: Literal["accept", "regression"] = "accept" if points > ROUNDING - policy.max_drop else "regression"
    return Look(status=status, difference=_points(points, items), scored=items, items=items, looks=looks)


def on_suite(comparison: Comparison, found: Look, scores: tuple[float, float] | None = None) -> Comparison:
    """The comparison with the suite's row as the claim about the suite has it.

    The intervals of tasks are left out where scoring stopped early: the moment of stopping depends on what was seen,
    and an interval for a number of items fixed beforehand does not know that.

    Args:
        comparison: of the items that are known.
        found: the last look.
        scores: estimates of both scores on the whole suite, as shares; None where all items are known.
    """
    import msgspec

    change = msgspec.structs.replace
    row = change(comparison.suite, difference=found.difference)
    if scores is None:
        return change(comparison, suite=row, look=found, population=comparison.suite.difference)
    both = [Number(value=value, unit="share", n=found.scored) for value in scores]
    recovery = Number(value=scores[1] / scores[0], unit="share", n=found.scored) if scores[0] > 0 else None
    row = change(row, baseline=both[0], candidate=both[1], recovery=recovery, detectable_drop=None)
    return Comparison(suite=row, tasks=tuple(_stopped(task) for task in comparison.tasks), look=found)


def _stopped(task: TaskComparison) -> TaskComparison:
    """A task's row without what assumes that the number of items was fixed beforehand."""
    import msgspec

    def bare(number: Number | None) -> Number | None:
        return number and msgspec.structs.replace(number, low=None, high=None, confidence=None, standard_error=None)

    return msgspec.structs.replace(
        task, difference=bare(task.difference), recovery=bare(task.recovery), detectable_drop=None
    )


def verdict(found: Look, policy: Policy, population: Number | None) -> Verdict:
    """The verdict about the suite. A gain that is surely larger than the policy's is a mistake to be found."""
    reason, status = in_words(found, policy, population), found.status
    surely = found.difference.value if found.difference.low is None else found.difference.low
    odd = surely > policy.max_gain
    return Verdict(
        status="anomalous" if odd else "insufficient" if status == "undecided" else status,
        reason=f"{reason} A gain too good to be true: look for the mistake." if odd else reason,
        items_needed=found.needed or None,
        scope="suite",
        rung="accuracy",
        items_used=found.scored,
        items_total=found.items,
    )


def in_words(found: Look, policy: Policy, population: Number | None) -> str:
    """The reason of that verdict."""
    value = f"{found.difference.value:+.1f} points"
    if found.difference.low is None or found.difference.high is None:
        words = f"on this suite: {value}, all {found.items:,} items scored: {_drop(found, policy)}."
        return words + _beyond(population)
    span = f"on this suite: {value} [{found.difference.low:+.1f}, {found.difference.high:+.1f}]"
    sure = f"{policy.confidence:.0%} sure at every look"
    if found.status == "undecided":
        return (
            f"{span} after {found.scored:,} of {found.items:,} items holds {-policy.max_drop:g} points ({sure}); "
            f"about {found.needed:,} more items would decide it."
        )
    where = f"decided after {found.decided_after:,} of {found.items:,} items, {found.scored:,} scored"
    return f"{span}: {_drop(found, policy)} ({sure}; {where})."


def _drop(found: Look, policy: Policy) -> str:
    return f"the drop is {'below' if found.status == 'accept' else 'not below'} {policy.max_drop:g} points"


def _beyond(population: Number | None) -> str:
    if population is None or population.low is None or population.high is None:
        return ""
    level = f"{population.confidence:.0%} interval" if population.confidence else "interval"
    return f" Beyond this suite: [{population.low:+.1f}, {population.high:+.1f}] ({level})."


def _points(
    value: float, n: int, low: float | None = None, high: float | None = None, confidence: float | None = None
) -> Number:
    return Number(value=value, unit="points", n=n, low=low, high=high, confidence=confidence)


def in_arrival(draw: Draw, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values given at ascending places of the suite, in order of arrival. The places are the first that arrive."""
    import numpy as np

    first = draw.arrival[: len(places)]
    return np.asarray(values)[np.searchsorted(places, first)]
