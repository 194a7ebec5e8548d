"""Where marks lie in the trade-off charts: accuracy against size, accuracy against speed. Geometry; templates draw.

The charts are plain SVG inside the page, not a script that draws: they show without JavaScript, follow the reader's
dark mode through the page's own colours, print, and keep the file small (Vega's scripts alone are 0.9 MB and cost
3 s to bundle). Horizontal places are percentages, so that a chart fills a phone as well as a desk and its text never
shrinks; vertical places are pixels.

Two rules of honesty. An axis of size or speed starts at zero, because it is read as a ratio. A speed is only drawn
where the format's own kernels ran; what is left out is named under the chart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantlab.records import Cell, Run
from quantlab.report import figures
from quantlab.report.rows import Row, find, key, provenance
from quantlab.report.scale import Scale, Tick, domain, ends, labelled, ticks

HEIGHT = 300
"""Height of the trade-off's plot area in pixels."""
LABEL = 17
"""Least vertical distance between two labels in pixels."""


@dataclass(frozen=True)
class Mark:
    """One recipe in one panel. `x` in percent of the width; `y`, `top`, `bottom` in pixels from above."""

    name: str
    series: int
    """Place of the recipe in the run: chooses colour and shape."""
    hollow: bool
    """Emulated: right scores, and a size that counts; drawn as an outline."""
    x: float
    y: float
    top: float
    bottom: float
    label_y: float
    label_left: bool
    tip: str
    """What hovering, focus or a screen reader gives, one fact a line."""


@dataclass(frozen=True)
class Panel:
    """Loss of accuracy against one quantity."""

    title: str
    x_title: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    zero: float
    margin: float
    """Place of the policy's largest accepted drop."""
    absent: tuple[str, ...] = ()
    """Recipes that are not drawn, each with its reason."""
    height: int = HEIGHT


def size_panel(run: Run, rows: Sequence[Row]) -> Panel | None:
    """Loss against bytes of the checkpoint; None where fewer than two recipes have both."""
    drawn = [(row, row.bytes / 1e6) for row in rows if row.bytes and _has_place(row)]
    absent = [_why(row, "its size is not the format's" if row.how == "simulated" else "no size") for row in rows
              if not row.bytes and _has_place(row)]  # fmt: skip
    return _panel(run, rows, "Accuracy against size", "size of the weights, MB", drawn, absent)


def speed_panels(run: Run, rows: Sequence[Row]) -> list[tuple[Cell, Panel]]:
    """Loss against tokens per second, a panel for every cell of the grid where two recipes have a native speed."""
    cells = {key(cell): cell for row in rows if (timed := row.candidate.throughput) for cell in timed.cells}
    found = []
    for cell in cells.values():
        drawn, absent = _speeds(rows, cell)
        panel = _panel(run, rows, "Accuracy against speed", f"tokens/s, {figures.shape(cell)}", drawn, absent)
        if panel is not None:
            found.append((cell, panel))
    return found


def _speeds(rows: Sequence[Row], place: Cell) -> tuple[list[tuple[Row, float]], list[str]]:
    drawn, absent = [], []
    for row in filter(_has_place, rows):
        cell = find(row.candidate, place)
        rate = cell.tokens_per_second if cell is not None and cell.valid else None
        if rate is not None and math.isfinite(rate.value) and provenance(rate, row.how) != "emulated":
            drawn.append((row, rate.value))
        elif rate is not None:
            absent.append(_why(row, f"{row.how} here, so its speed is not the format's"))
        else:
            absent.append(_why(row, cell.reason if cell is not None and cell.reason else "not timed"))
    return drawn, absent


def _why(row: Row, reason: str) -> str:
    return f"{row.name}: {reason}"


def _has_place(row: Row) -> bool:
    if row.status == "baseline":
        return True
    return row.difference is not None and math.isfinite(row.difference.value)


def _panel(
    run: Run,
    rows: Sequence[Row],
    title: str,
    x_title: str,
    drawn: Sequence[tuple[Row, float]],
    absent: Sequence[str],
) -> Panel | None:
    if len(drawn) < 2:
        return None
    most = run.policy.max_drop
    low, high = domain((end for row in rows for end in ends(row.difference)), most)
    widest = 1.12 * max(x for _, x in drawn)
    across, down = Scale(0, widest, 0, 100), Scale(low, high, HEIGHT, 0)
    return Panel(
        title=title,
        x_title=x_title,
        marks=_spread([_mark(rows, row, x, across, down) for row, x in drawn]),
        x_ticks=tuple(Tick(across(x), f"{x:,g}") for x in ticks(0, widest, 4)),
        y_ticks=labelled(low, high, down),
        zero=down(0),
        margin=down(-most),
        absent=tuple(absent),
    )


def _mark(rows: Sequence[Row], row: Row, x: float, across: Scale, down: Scale) -> Mark:
    found = ends(row.difference) or [0.0]
    middle = row.difference.value if row.difference else 0.0
    return Mark(
        name=row.name,
        series=rows.index(row),
        hollow=row.how == "emulated",
        x=across(x),
        y=down(middle),
        top=down(max(found)),
        bottom=down(min(found)),
        label_y=down(middle),
        label_left=across(x) > 60,
        tip=tip(row),
    )


def tip(row: Row) -> str:
    """The facts of a row, one a line."""
    facts = [
        row.name + (f" ({row.how})" if row.how != "native" else ""),
        f"verdict: {row.status}",
        f"suite score: {figures.score(row.score)} %",
    ]
    if row.difference is not None:
        facts.append(f"difference: {figures.difference(row.difference)} points")
    if row.bytes:
        facts.append(f"size: {figures.size(row.bytes)}, {figures.times(row.size_ratio)} of 16 bit")
    for cell in dict.fromkeys(cell for cell in row.ends if cell is not None and cell.tokens_per_second is not None):
        assert cell.tokens_per_second is not None
        facts.append(f"{figures.shape(cell)}: {figures.three(cell.tokens_per_second.value)} tokens/s{row.mark}")
    return "\n".join(facts)


def _spread(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """Move labels apart where marks lie close together; the marks stay where they are."""
    placed: list[Mark] = []
    for mark in sorted(marks, key=lambda each: each.y):
        near = [other.label_y for other in placed if abs(other.x - mark.x) < 30]
        wanted = max([mark.y, *(y + LABEL for y in near)])
        placed.append(Mark(**{**vars(mark), "label_y": wanted}))
    return tuple(placed)
