"""What the report shows of changed items: the flips that fit the page, and categories ranked by damage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quantlab.records import Candidate, Category, Flip, Run
from quantlab.report import figures

PROMPT = 1600
"""Characters of a prompt that the page shows; the JSON holds all of it."""
ANSWER = 400
"""Characters of an answer or of a canary's continuation."""
BUDGET = 2_000_000
"""Bytes of the page that flipped items may take, shared by the recipes: the file stays under 3 MB."""
MARKUP = 1_000
"""Bytes of an item's markup."""

STOPPED = (
    "Not ranked: scoring stopped when the suite was certain, and that stop bends what each kind of item lost so far. "
    "A full run (--no-early) ranks them."
)
"""Instead of categories, for an early run that did not reach the end of its suite."""


@dataclass(frozen=True)
class Shown:
    """The flipped items of one recipe, as many as fit."""

    candidate: Candidate
    shown: tuple[Flip, ...]
    total: int

    @property
    def left(self) -> int:
        """How many are not shown."""
        return self.total - len(self.shown)

    @property
    def ways(self) -> set[str]:
        return {one.direction for one in self.shown}


def shown(run: Run) -> list[Shown]:
    """Per recipe with flips: the first that fit its share of the page."""
    found = [candidate for candidate in run.candidates if candidate.flips]
    return [Shown(each, _fitting(each.flips, BUDGET // len(found)), _total(each)) for each in found]


def _total(candidate: Candidate) -> int:
    """All of them; runs of before `flipped` was counted know only how many changed sides."""
    whole = candidate.comparison.suite if candidate.comparison else None
    sides = whole.regressed + whole.improved if whole and not candidate.flipped else 0
    return max(candidate.flipped, len(candidate.flips), sides)


def _fitting(flips: tuple[Flip, ...], room: int) -> tuple[Flip, ...]:
    taken = []
    for one in flips:
        answers = (one.right, one.baseline, one.candidate)
        # Autoescape may write five bytes for one, so what is escaped is what is counted.
        room -= MARKUP + _size(one.prompt, PROMPT) + sum(_size(answer, ANSWER) for answer in answers)
        if room < 0:
            break
        taken.append(one)
    return tuple(taken)


def _size(text: str, most: int) -> int:
    from markupsafe import escape

    return len(str(escape(figures.clip(text, most))).encode())


@dataclass(frozen=True)
class Ranked:
    """One category."""

    found: Category

    @property
    def surely(self) -> bool:
        """Its widened interval lies below zero."""
        high = self.found.difference.high
        return high is not None and high < 0


def categories(run: Run) -> list[tuple[Candidate, tuple[Ranked, ...]]]:
    """Per recipe its categories, the most damaged first."""
    return [(each, tuple(map(Ranked, ranked))) for each, ranked in _ranked(run)]


def _ranked(run: Run) -> Iterator[tuple[Candidate, tuple[Category, ...]]]:
    for each in run.candidates:
        if each.comparison is not None and each.comparison.categories:
            yield each, each.comparison.categories


def _stopped(candidate: Candidate) -> bool:
    look = candidate.comparison.look if candidate.comparison else None
    return look is not None and look.scored < look.items


def note(run: Run) -> str:
    """What must be said beside a list that is sorted by its own result, or why there is none; empty where no task
    names kinds."""
    counts = [len(ranked) for _, ranked in _ranked(run)]
    if not counts:
        return STOPPED if any(map(_stopped, run.candidates)) else ""
    most = max(counts)
    share = 100 * run.policy.confidence
    return (
        f"The worst of {most} categories looks bad by chance alone, so every interval is widened (Bonferroni, "
        f"{100 - (100 - share) / most:.2f} % each) until all of them hold together at {share:g} %. Where an interval "
        "reaches zero, the order is a hint where to look and no finding; the verdict rests on the whole suite."
    )
