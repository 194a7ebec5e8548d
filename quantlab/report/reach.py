"""What a precision costs over length: loss against position in a long window, and needles against length of the prompt.

Both charts are differences to the baseline, so a flat line at zero is no damage, wherever it lies, and a line that
leaves zero shows from which length on. Lengths double from one place to the next, and the places are equally far
apart. The table holds the baseline's own loss as well: a rotary embedding that is scaled wrongly ruins the baseline
itself, and shows as a loss that rises with position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantlab.records import Candidate, Number, Run, TaskComparison, TaskScore
from quantlab.records.stretches import Stretch
from quantlab.report import figures
from quantlab.report.answer import Chart, Line
from quantlab.report.charts import Mark
from quantlab.report.scale import Scale, Tick, ends, ticks

LONG = 1024
"""Windows this long have a section of their own; in shorter ones nothing has had time to add up."""
HEIGHT = 220
APART = 0.5
"""Part of the way between two lengths over which the recipes' marks are spread, so that intervals do not cover."""


@dataclass(frozen=True)
class Spot:
    """One recipe at one length."""

    name: str
    series: int
    length: str
    """"512 to 1,024" or "1,024"."""
    before: str
    """The baseline's own figure."""
    number: Number
    change: str
    beside: str
    """KL of a stretch; nats of the right answer of a task."""


Spots = list[Spot]


def by_position(run: Run) -> Spots:
    """Every stretch of every recipe; empty where windows were short."""
    found = [(place, each) for place, each in enumerate(run.candidates) if each.fidelity and each.fidelity.stretches]
    if not any(each.fidelity and each.fidelity.stretches[-1].stop >= LONG for _, each in found):
        return []
    return [_stretch(each, place, one) for place, each in found if each.fidelity for one in each.fidelity.stretches]


def _stretch(candidate: Candidate, series: int, one: Stretch) -> Spot:
    return Spot(
        name=candidate.recipe_name,
        series=series,
        length=f"{one.start:,} to {one.stop:,}",
        before=figures.fixed(one.nll_baseline, 3),
        number=one.change,
        change=f"{figures.fixed(one.change.value, 4, sign=True)} {figures.interval(one.change, 4)}".strip(),
        beside=figures.mean(one.kl),
    )


def by_prompt(run: Run) -> Spots:
    """Every task that asks about a length; empty where fewer than two lengths are known."""
    found = [
        _task(each, place, score, task)
        for place, each in enumerate(run.candidates)
        if each.comparison is not None and each.accuracy is not None
        for score in sorted(each.accuracy.tasks, key=lambda one: one.length or 0)
        for task in each.comparison.tasks
        if score.length is not None and task.task == score.task and task.difference is not None
    ]
    return found if len({one.length for one in found}) > 1 else []


def _task(candidate: Candidate, series: int, score: TaskScore, task: TaskComparison) -> Spot:
    assert task.difference is not None
    return Spot(
        name=candidate.recipe_name,
        series=series,
        length=f"{score.length:,}",
        before=figures.score(task.baseline),
        number=task.difference,
        change=figures.difference(task.difference),
        beside=figures.nats(task)[1],
    )


def charts(run: Run) -> list[tuple[Chart, Spots, tuple[str, ...]]]:
    """Chart, its marks in words, and the headings of their table."""
    found: list[tuple[Chart, Spots, tuple[str, ...]]] = []
    if spots := by_position(run):
        words = ("Loss by position", "mean over windows; above zero is worse", "position, up to", "nats more")
        heads = ("recipe", "position", "baseline, nats", "change, nats", "KL, nats")
        found.append((_chart(spots, words), spots, heads))
    if spots := by_prompt(run):
        words = ("Needles by length", "below zero is worse", "tokens of the prompt", "points")
        heads = ("recipe", "length", "baseline, %", "difference, points", "right answer, nats more")
        found.append((_chart(spots, words), spots, heads))
    return found


def _chart(spots: Sequence[Spot], words: tuple[str, str, str, str]) -> Chart:
    lengths = list(dict.fromkeys(spot.length for spot in spots))
    names = list(dict.fromkeys((spot.series, spot.name) for spot in spots))
    values = [0.0, *(end for spot in spots for end in ends(spot.number))]
    room = 0.08 * (max(values) - min(values)) or 1.0
    low, high = min(values) - room, max(values) + room
    down, across = Scale(low, high, HEIGHT, 0), Scale(-0.5, len(lengths) - 0.5, 0, 100)
    lines = [
        Line(series, name, tuple(_mark(spot, across(lengths.index(spot.length) + _beside(place, len(names))), down)
                                 for spot in spots if spot.series == series))
        for place, (series, name) in enumerate(names)
    ]  # fmt: skip
    title, hint, x_title, y_title = words
    return Chart(
        title=title,
        hint=hint,
        x_title=x_title,
        y_title=y_title,
        lines=tuple(lines),
        x_ticks=tuple(Tick(across(place), length.rpartition(" to ")[2]) for place, length in enumerate(lengths)),
        y_ticks=tuple(Tick(down(value), f"{value:+g}" if value else "0") for value in ticks(low, high, 4)),
        one=down(0.0),
        height=HEIGHT,
    )


def _beside(place: int, count: int) -> float:
    return APART * ((place + 0.5) / count - 0.5)


def _mark(spot: Spot, x: float, down: Scale) -> Mark:
    found = ends(spot.number) or [0.0]
    y = down(spot.number.value)
    tip = "\n".join((f"{spot.name}, {spot.length}", f"baseline: {spot.before}", f"change: {spot.change}"))
    return Mark(spot.name, spot.series, False, x, y, down(max(found)), down(min(found)), y, False, tip)
