"""Where marks lie in the two charts that answer "which precision at which load": each line a recipe, each mark a batch.

The first puts tokens a second of all users together (what the device earns) against those of one (what is felt): a
batch buys the one with the other, and a better precision pushes the line outwards. The second puts the speed of every
recipe over that of the baseline, batch by batch: where two lines cross, the faster of the two changes. Batches lie on
logarithms, so that 1 and 4 are as far apart as 64 and 256. A mark carries the spread of its repeats; cells that failed
a check are named under the chart. Speeds of other kernels than the format's own are not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from quantlab.records import Cell, Number, Run
from quantlab.report import figures
from quantlab.report.charts import HEIGHT, Mark
from quantlab.report.rows import Row, find, provenance
from quantlab.report.scale import Scale, Tick, ticks


@dataclass(frozen=True)
class Line:
    """One recipe: its marks in the order of batches, and the way between them."""

    series: int
    name: str
    marks: tuple[Mark, ...]

    @property
    def pieces(self) -> list[tuple[Mark, Mark]]:
        """Straight ways between neighbours."""
        return list(pairwise(self.marks))


@dataclass(frozen=True)
class Chart:
    """One chart for one pair of input and output length."""

    title: str
    hint: str
    x_title: str
    y_title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    one: float | None = None
    """Where the baseline's own speed lies."""
    crossings: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    """Cells that are not drawn, each with its reason."""
    height: int = HEIGHT


Speeds = list[tuple[Row, list[Cell]]]


def charts(run: Run, rows: Sequence[Row]) -> list[tuple[Chart, ...]]:
    """The charts of every pair of lengths where two recipes have speeds of their own, one at two
    batches or more."""
    timed = [row for row in rows if row.candidate.throughput]
    shapes = dict.fromkeys((c.isl, c.osl) for row in timed if (t := row.candidate.throughput) for c in t.cells)
    found = []
    for isl, osl in shapes:
        speeds, absent = _speeds(timed, isl, osl)
        if len(speeds) > 1 and any(len(cells) > 1 for _, cells in speeds):
            over = _crossover(rows, speeds, isl, osl)
            found.append((_load(rows, speeds, isl, osl, absent), *([over] if over else [])))
    return found


def _speeds(timed: Sequence[Row], isl: int, osl: int) -> tuple[Speeds, tuple[str, ...]]:
    speeds: Speeds = []
    absent = []
    for row in timed:
        assert row.candidate.throughput is not None
        cells = sorted((c for c in row.candidate.throughput.cells if (c.isl, c.osl) == (isl, osl)), key=_batch)
        kept = [cell for cell in cells if _own(row, cell)]
        if kept:
            speeds.append((row, kept))
        if any(cell.valid for cell in cells) and not kept:
            absent.append(f"{row.name}: {row.how} here, so its speed is not the format's")
        absent += [f"{row.name}, batch {cell.batch}: {cell.reason}" for cell in cells if not cell.valid]
    return speeds, tuple(absent)


def _batch(cell: Cell) -> int:
    return cell.batch


def _own(row: Row, cell: Cell) -> bool:
    rate = cell.tokens_per_second if cell.valid else None
    return rate is not None and math.isfinite(rate.value) and rate.value > 0 and provenance(rate, row.how) == "measured"


def _rate(cell: Cell) -> Number:
    assert cell.tokens_per_second is not None
    return cell.tokens_per_second


def _load(rows: Sequence[Row], speeds: Speeds, isl: int, osl: int, absent: tuple[str, ...]) -> Chart:
    """Logarithms on both axes: batches of 1 to 256 span two powers of ten, and equal ratios are equal ways."""
    users = [_rate(cell).value / cell.batch for _, cells in speeds for cell in cells]
    every = [end for _, cells in speeds for cell in cells for end in _spread(_rate(cell))]
    across = wide(min(users), max(users), 0, 100)
    down = wide(min(every), max(every), HEIGHT, 0)
    lines = []
    for row, cells in speeds:
        marks = [
            _mark(rows, row, cell, across(math.log(_rate(cell).value / cell.batch)), _rate(cell), down)
            for cell in cells
        ]
        lines.append(_line(rows, row, marks))
    return Chart(
        title=f"Speed for all users against speed for one, {isl} in, {osl} out",
        hint="up and right is better; a mark is a batch",
        x_title="tokens/s of one user",
        y_title="tokens/s of all users together",
        lines=tuple(lines),
        x_ticks=powers(min(users), max(users), across),
        y_ticks=powers(min(every), max(every), down),
        absent=absent,
    )


def _crossover(rows: Sequence[Row], speeds: Speeds, isl: int, osl: int) -> Chart | None:
    """Speed over that of the baseline; None where that was not timed, or nothing else was."""
    base = next(((row, cells) for row, cells in speeds if row.status == "baseline"), None)
    if base is None:
        return None
    shared = [(row, [cell for cell in cells if _twin(base, cell)]) for row, cells in speeds]
    shared = [(row, cells) for row, cells in shared if cells]
    batches = sorted({cell.batch for _, cells in shared for cell in cells})
    if len(shared) < 2 or len(batches) < 2:
        return None
    ratios = {(row.name, c.batch): _ratio(base, c) for row, cells in shared for c in cells}
    values = [end for ratio in ratios.values() for end in _spread(ratio)]
    room = 0.1 * (max(values) - min(values)) or 0.1
    low, high = min(values) - room, max(values) + room
    across, down = wide(batches[0], batches[-1], 0, 100), Scale(low, high, HEIGHT, 0)
    lines = []
    for row, cells in shared:
        marks = [
            _mark(rows, row, cell, across(math.log(cell.batch)), ratios[row.name, cell.batch], down, log=False)
            for cell in cells
        ]
        lines.append(_line(rows, row, marks))
    return Chart(
        title=f"Where one precision overtakes another, {isl} in, {osl} out",
        hint="up is faster; lines that cross change places",
        x_title="batch",
        y_title=f"speed over {base[0].name}",
        lines=tuple(lines),
        x_ticks=tuple(Tick(across(math.log(batch)), f"{batch:,}") for batch in batches),
        y_ticks=tuple(Tick(down(value), f"{value:g}x") for value in ticks(low, high, 5)),
        one=down(1.0),
        crossings=tuple(_crossings([(row.name, ratios) for row, _ in shared], batches)),
    )


def _twin(base: tuple[Row, list[Cell]], cell: Cell) -> Cell | None:
    found = find(base[0].candidate, cell)
    return found if found is not None and found in base[1] else None


def _ratio(base: tuple[Row, list[Cell]], cell: Cell) -> Number:
    """Speed over the baseline's, with the spread of its own repeats; the baseline's are drawn on its own line."""
    twin = _twin(base, cell)
    assert twin is not None
    own, below = _rate(cell), _rate(twin).value
    low, high = (None if end is None else end / below for end in (own.low, own.high))
    return Number(value=own.value / below, unit="ratio", n=own.n, low=low, high=high)


def _crossings(found: Sequence[tuple[str, dict[tuple[str, int], Number]]], batches: Sequence[int]) -> list[str]:
    """Between which two measured batches the faster of two recipes changes, and whether the spreads lie apart there.

    Only neighbouring batches that both have; nothing is interpolated, `quantlab recommend` does that with an interval.
    """
    said = []
    for place, (one, ratios) in enumerate(found):
        for other, _ in found[place + 1 :]:
            both = [b for b in batches if (one, b) in ratios and (other, b) in ratios]
            both = [b for b in both if ratios[one, b].value != ratios[other, b].value]
            for left, right in pairwise(both):
                a, b = ((ratios[one, at], ratios[other, at]) for at in (left, right))
                if (a[0].value - a[1].value) * (b[0].value - b[1].value) < 0:
                    first, then = (one, other) if a[0].value > a[1].value else (other, one)
                    sure = "" if _separate(*a) and _separate(*b) else ", a tie within the spread of the repeats"
                    said.append(f"{first} is ahead at batch {left}, {then} at batch {right}{sure}")
    return said


def _separate(a: Number, b: Number) -> bool:
    return min(_spread(a)) > max(_spread(b)) or max(_spread(a)) < min(_spread(b))


def _spread(number: Number) -> list[float]:
    """The finite ones of lowest repeat, median and highest."""
    found = (number.low, number.value, number.high)
    return [end for end in found if end is not None and math.isfinite(end) and end > 0]


def wide(low: float, high: float, start: float, end: float) -> Scale:
    """Logarithms with room on both sides."""
    room = 0.08 * math.log(high / low) or 0.5
    return Scale(math.log(low) - room, math.log(high) + room, start, end)


def powers(low: float, high: float, place: Scale) -> tuple[Tick, ...]:
    """1, 2 and 5 times powers of ten within the limits; only the powers where that would be more than seven."""
    span = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    every = [(step, step * 10.0**power) for power in span for step in (1, 2, 5)]
    kept = [(step, value) for step, value in every if place.low <= math.log(value) <= place.high]
    few = kept if len(kept) <= 7 else [pair for pair in kept if pair[0] == 1]
    return tuple(Tick(place(math.log(value)), f"{value:,g}") for _, value in few)


def _mark(
    rows: Sequence[Row], row: Row, cell: Cell, x: float, number: Number, down: Scale, *, log: bool = True
) -> Mark:
    at = (lambda value: down(math.log(value))) if log else down
    ends = _spread(number)
    return Mark(
        name=row.name,
        series=rows.index(row),
        hollow=False,
        x=x,
        y=at(number.value),
        top=at(max(ends)),
        bottom=at(min(ends)),
        label_y=at(number.value),
        label_left=x > 60,
        tip=_tip(row, cell, number),
    )


def _tip(row: Row, cell: Cell, number: Number) -> str:
    rate = _rate(cell)
    spread = (
        "" if rate.low is None or rate.high is None else f" [{figures.three(rate.low)}, {figures.three(rate.high)}]"
    )
    facts = [f"{row.name}, batch {cell.batch}", f"{figures.three(rate.value)}{spread} tokens/s of all users together"]
    facts.append(f"{figures.three(rate.value / cell.batch)} tokens/s of one user")
    if number.unit == "ratio":
        facts.append(f"{figures.times(number.value)} of the baseline's")
    if cell.ttft_seconds is not None:
        facts.append(f"first token after {figures.seconds(cell.ttft_seconds.value)}")
    return "\n".join(facts)


def _line(rows: Sequence[Row], row: Row, marks: list[Mark]) -> Line:
    return Line(rows.index(row), row.name, tuple(marks))
