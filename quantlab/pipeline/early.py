"""An early run: look by look until every candidate is decided, and only then time what may be shipped.

The ladder of a candidate, each rung cheaper than the next: load, canary, fidelity screen, looks, throughput. What falls
off a rung costs nothing more. At a look the baseline scores the new slice first, then every candidate that is still
undecided scores the same slice, then looks.py decides; so the baseline too is scored only as far as it is needed.

Each slice is an entry of the ledger with an identity of its own. A killed run, a second call, or another candidate a
week later takes the slices that are there and comes to the same looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quantlab import judge, looks
from quantlab.pipeline.assemble import Table
from quantlab.pipeline.slices import Known
from quantlab.pipeline.walk import Walk
from quantlab.pipeline.walker import Walker
from quantlab.records import Comparison, Look
from quantlab.shares import words_of

if TYPE_CHECKING:
    from quantlab.score.draw import Draw

Tables = dict[str, Table]


def look_by_look(walker: Walker, walks: Sequence[Walk]) -> None:
    """Decide the walks against the first of them, then measure the throughput of what was not rejected."""
    baseline, candidates = walks[0], [walk for walk in walks[1:] if walk.parts and _alive(walker, walk)]
    if baseline.parts:
        race = _race(walker, baseline, candidates)
        race.run()
        race.close()
    if "throughput" in walker.resolved.ask.stages and baseline.failure is None:
        worth = [walk for walk in walks[1:] if _worth_timing(walker, walk)]
        for walk in [baseline, *worth] if worth else []:
            _time(walker, walk)


def _race(walker: Walker, baseline: Walk, candidates: list[Walk]) -> Race:
    from quantlab.score.draw import Draw, ends

    first = baseline.parts[0]
    sizes = first.sizes or tuple((score.task, score.n) for score in first.tasks)
    words = first.words
    if not first.sizes and any(score.group for score in first.tasks):
        words = tuple(words_of(first.tasks))
    policy, draw = walker.resolved.policy, Draw(sizes, walker.resolved.ask.seed, words)
    return Race(
        walker=walker,
        baseline=baseline,
        open=candidates,
        draw=draw,
        ends=ends(policy.first_look, policy.look_growth, draw.total),
        budget=looks.Budget(policy.confidence, max(1, len(candidates))),
    )


def _alive(walker: Walker, walk: Walk) -> bool:
    """Still on the ladder: nothing failed, and it is a language model."""
    return walk.failure is None and not judge.collapsed(walk.canary, walk.fidelity, walker.resolved.policy)


def _worth_timing(walker: Walker, walk: Walk) -> bool:
    """It may be shipped. Where nothing may, the baseline's speed is no news either."""
    if walk.artifact is None or not _alive(walker, walk):
        return False
    look = walk.comparison.look if walk.comparison else None
    refused = walk.comparison is not None and (look is None or look.status == "regression")
    if refused:
        walker.note(walk, "not timed, because it was not accepted.")
    return not refused


def _time(walker: Walker, walk: Walk) -> None:
    walker.attempt(walk, lambda: walker.measure(walk, ["throughput"]))


@dataclass
class Race:
    """The undecided candidates of a run, and what is known so far."""

    walker: Walker
    baseline: Walk
    open: list[Walk]
    draw: Draw
    ends: Sequence[int]
    """How many items are known at each look."""
    budget: looks.Budget
    looked: int = 0
    known: dict[str, Known] = field(default_factory=dict)

    def run(self) -> None:
        """Look by look, until all are decided or the suite is scored."""
        place = 0
        while self.open and place < len(self.ends):
            self._score(self.baseline, self.ends[place])
            if self.baseline.failure is not None:
                return
            for walk in self.open:
                self._score(walk, self.ends[place])
            self.open = [walk for walk in self.open if walk.failure is None]
            place = looks.next_look(self.ends, place, self._look())

    def close(self) -> None:
        """Put the scores of the baseline together: all that is known of it."""
        if self.baseline.failure is None:
            known = self._known(self.baseline)
            self.baseline.accuracy = known.accuracy(known.tables(known.count))

    def _score(self, walk: Walk, end: int) -> None:
        """Score up to `end`, or as far as a slice in the ledger goes that another run has scored."""
        while (begin := self._known(walk).count) < end and walk.failure is None:
            there = [last for last in self.ends if last > begin and self.walker.knows(walk, (begin, last))]
            self._measure(walk, (begin, end if end in there or not there else there[-1]))

    def _measure(self, walk: Walk, part: tuple[int, int]) -> None:
        self.walker.attempt(walk, lambda: self.walker.measure(walk, ["accuracy"], part))

    def _known(self, walk: Walk) -> Known:
        """Read anew when a slice has come."""
        found = self.known.get(walk.name)
        if found is None or found.parts != walk.parts:
            found = self.known[walk.name] = Known(self.walker.ledger, list(walk.parts), self.draw)
        return found

    def _look(self) -> int:
        """Decide what can be decided.

        Returns:
            With how many items the first of the undecided is expected to be decided.
        """
        self.looked += 1
        policy = self.walker.resolved.policy
        found = {walk.name: self._compare(walk) for walk in self.open}
        comparable = [walk for walk in self.open if found[walk.name].suite.difference is not None]
        seen = {walk.name: self._seen(walk) for walk in comparable}
        decided = looks.together(self.draw, seen, policy, self.budget, self.looked)
        for walk in comparable:
            look = decided[walk.name]
            walk.comparison = self._conclude(found[walk.name], seen[walk.name], look)
            self.walker.watch.say(f"look {self.looked}, {walk.name}: {looks.in_words(look, policy, None)}")
        self.open = [walk for walk in comparable if decided[walk.name].status == "undecided"]
        return min((decided[walk.name].scored + decided[walk.name].needed for walk in self.open), default=0)

    def _compare(self, walk: Walk) -> Comparison:
        """Baseline and candidate on the items known of both; refused where they are not comparable."""
        first, second = self._known(self.baseline), self._known(walk)
        count = min(first.count, second.count)
        left, right = first.tables(count), second.tables(count)
        walk.compared, walk.accuracy = (left, right), second.accuracy(right)
        walk.comparison = judge.compare(
            first.accuracy(left), walk.accuracy, _items(left), _items(right), self.walker.resolved.policy
        )
        return walk.comparison

    def _seen(self, walk: Walk) -> looks.Seen:
        import numpy as np

        assert walk.compared is not None
        both = [
            np.concatenate([np.asarray(table.columns["correct"], dtype=np.float64) for table in side.values()])
            for side in walk.compared
        ]
        places = self.draw.places(0, len(both[0]))
        return looks.Seen(*(looks.in_arrival(self.draw, places, values) for values in both))

    def _conclude(self, comparison: Comparison, seen: looks.Seen, look: Look) -> Comparison:
        policy, whole = self.walker.resolved.policy, comparison.suite.difference
        if look.scored == look.items and whole is not None:  # the same words as of a full run, to the last bit
            return looks.on_suite(comparison, looks.exact(whole.value, look.items, policy, look.looks))
        test = self.draw.test(policy.max_drop / 100, self.budget.alphas)
        return looks.on_suite(comparison, look, (test.estimate(seen.baseline), test.estimate(seen.candidate)))


def _items(tables: Tables) -> dict[str, judge.Items]:
    return {task: table.items() for task, table in tables.items()}
