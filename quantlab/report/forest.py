"""Differences per task as dots with intervals, a forest for every recipe, all on one scale.

Tasks are ranked by damage, so that the reader sees first what the precision hurts. The policy's margin is drawn as a
line, but it binds the suite, not a task: a single task is shown and never judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantlab.records import Number, Run
from quantlab.report import figures
from quantlab.report.rows import by_damage, numerics
from quantlab.report.scale import Scale, Tick, domain, ends, labelled


@dataclass(frozen=True)
class Bar:
    """One task in a forest: the difference as a dot, its interval as a line; percentages of the width."""

    task: str
    n: int
    at: float | None
    low: float | None
    high: float | None
    text: str
    """The difference in words, or why there is none."""
    whole: bool = False
    """The suite as a whole."""


@dataclass(frozen=True)
class Forest:
    """Differences per task of one recipe, on the scale that all recipes of the run share."""

    name: str
    series: int
    how: str
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    zero: float
    margin: float


def forests(run: Run) -> list[Forest]:
    """A forest for every compared recipe, tasks ranked by damage."""
    compared = [(place, each) for place, each in enumerate(run.candidates) if each.comparison is not None]
    every = [
        task for _, each in compared if each.comparison for task in (each.comparison.suite, *each.comparison.tasks)
    ]
    low, high = domain((end for task in every for end in ends(task.difference)), run.policy.max_drop)
    scale = Scale(low, high, 0, 100)
    lines = labelled(low, high, scale, 4)
    return [
        Forest(
            name=each.recipe_name,
            series=place,
            how=numerics(each),
            bars=tuple(
                _bar(task.task, task.n, task.difference, task.incomparable, scale, task is each.comparison.suite)
                for task in (each.comparison.suite, *by_damage(each.comparison.tasks))
            ),
            ticks=lines,
            zero=scale(0),
            margin=scale(-run.policy.max_drop),
        )
        for place, each in compared
        if each.comparison is not None
    ]


def _bar(task: str, n: int, found: Number | None, why: str, scale: Scale, whole: bool) -> Bar:
    name = "whole suite" if whole else task
    if found is None or not math.isfinite(found.value):
        return Bar(name, n, None, None, None, why or figures.points(found), whole)
    ends = [None if end is None or not math.isfinite(end) else scale(end) for end in (found.low, found.high)]
    return Bar(name, n, scale(found.value), ends[0], ends[1], figures.difference(found), whole)
