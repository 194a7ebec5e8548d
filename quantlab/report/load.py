"""The sweep over requests in flight as rows, words and three charts: tokens a second, first token, each further one.

Both axes are logarithms, so a load that pays is a straight way up and the knee is where it bends. In the other two
the line is the median and the span reaches to the 99th percentile: what most users feel, and the unlucky ones. Hollow
marks were taken from outside, through the engine's server.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from quantlab.records import Candidate, LoadCell, Number, Percentiles, Run
from quantlab.report import figures
from quantlab.report.answer import Chart, Line, powers, wide
from quantlab.report.charts import HEIGHT, Mark
from quantlab.report.rows import Row, provenance
from quantlab.report.scale import Tick

Ends = tuple[float, float, float]
"""Lowest, middle, highest."""


def charts(run: Run, rows: Sequence[Row]) -> list[tuple[Chart, ...]]:
    """The charts of every pair of lengths that was swept over two loads or more by some recipe."""
    swept = [(row, cell) for row in rows for cell in cells(row.candidate)]
    found: list[tuple[Chart, ...]] = []
    for isl, osl in dict.fromkeys((cell.isl, cell.osl) for _, cell in swept):
        kept = [(row, cell) for row, cell in swept if (cell.isl, cell.osl) == (isl, osl) and own(row, cell)]
        if len({cell.concurrency for _, cell in kept}) > 1:
            absent = tuple(_why(row, cell) for row, cell in swept if (cell.isl, cell.osl) == (isl, osl) and cell.reason)
            rate = _chart(rows, kept, f"Tokens a second under load, {isl} in, {osl} out", "tokens/s", _rate, absent)
            wait = _chart(rows, kept, f"Time to the first token, {isl} in, {osl} out", "ms, median to p99", _ttft, ())
            each = _chart(rows, kept, f"Time per further token, {isl} in, {osl} out", "ms, median to p99", _tpot, ())
            found.append((rate, *(chart for chart in (wait, each) if chart.lines)))
    return found


def cells(candidate: Candidate) -> tuple[LoadCell, ...]:
    """The candidate's loads; none where it was not swept."""
    return candidate.throughput.load if candidate.throughput else ()


def words(candidate: Candidate) -> list[str]:
    """The knees of a candidate, a sentence each."""
    knees = candidate.throughput.knees if candidate.throughput else ()
    many = len({(knee.isl, knee.osl) for knee in knees}) > 1
    found = []
    for knee in knees:
        place = f"{knee.mode}, {knee.isl} in, {knee.osl} out" if many else knee.mode
        at = "no knee" if knee.concurrency is None else f"knee at {knee.concurrency} requests in flight"
        found.append(f"{at} ({place}): {knee.text}.")
    return found


def fields(cell: LoadCell) -> list[str]:
    """A valid cell's figures for a table: tokens/s, requests/s, first token, per token, between tokens, waiting."""
    return [
        _number(cell.tokens_per_second),
        _number(cell.requests_per_second),
        _ms(cell.ttft, "p50"),
        _ms(cell.ttft, "p99"),
        _ms(cell.tpot, "p50"),
        _ms(cell.itl, "p99"),
        figures.NOTHING if cell.waiting is None else figures.fixed(max(0.0, cell.waiting), 1),
    ]


HEADER = (
    *("tokens/s", "requests/s", "first token p50, ms", "first token p99, ms", "per token p50, ms"),
    *("between tokens p99, ms", "waiting"),
)
"""Headings of `fields`."""


def _number(number: Number | None) -> str:
    return figures.three(None if number is None else number.value)


def _ms(found: Percentiles | None, name: str) -> str:
    return figures.three(None if found is None else 1000 * getattr(found, name))


def own(row: Row, cell: LoadCell) -> bool:
    """Valid, and measured with the format's own kernels."""
    rate = cell.tokens_per_second if cell.valid else None
    return rate is not None and math.isfinite(rate.value) and rate.value > 0 and provenance(rate, row.how) == "measured"


def _why(row: Row, cell: LoadCell) -> str:
    return f"{row.name}, {cell.mode}, {cell.concurrency} in flight: {cell.reason}"


def _rate(cell: LoadCell) -> Ends | None:
    rate = cell.tokens_per_second
    if rate is None:
        return None
    return (rate.value if rate.low is None else rate.low, rate.value, rate.value if rate.high is None else rate.high)


def _ttft(cell: LoadCell) -> Ends | None:
    return _to_p99(cell.ttft)


def _tpot(cell: LoadCell) -> Ends | None:
    return _to_p99(cell.tpot)


def _to_p99(times: Percentiles | None) -> Ends | None:
    if times is None or not times.p50 > 0:
        return None
    return 1000 * times.p50, 1000 * times.p50, 1000 * times.p99


def _chart(
    rows: Sequence[Row],
    kept: Sequence[tuple[Row, LoadCell]],
    title: str,
    y_title: str,
    read: Callable[[LoadCell], Ends | None],
    absent: tuple[str, ...],
) -> Chart:
    known = [(row, cell, ends) for row, cell in kept if (ends := read(cell)) is not None]
    loads = sorted({cell.concurrency for _, cell, _ in known}) or [1, 2]
    every = [end for _, _, ends in known for end in ends] or [1.0, 2.0]
    across, down = wide(loads[0], loads[-1], 0, 100), wide(min(every), max(every), HEIGHT, 0)
    lines: dict[tuple[int, str], list[Mark]] = {}
    for row, cell, (low, middle, high) in known:
        series, x = rows.index(row), across(math.log(cell.concurrency))
        top, y, bottom = (down(math.log(value)) for value in (high, middle, low))
        mark = Mark(row.name, series, cell.mode == "served", x, y, top, bottom, y, x > 60, _tip(row, cell))
        lines.setdefault((series, cell.mode), []).append(mark)
    return Chart(
        title=title,
        hint="hollow: served over HTTP" if any(cell.mode == "served" for _, cell, _ in known) else "",
        x_title="requests in flight",
        y_title=y_title,
        lines=tuple(_line(rows, series, mode, marks) for (series, mode), marks in lines.items()),
        x_ticks=tuple(Tick(across(math.log(load)), f"{load:,}") for load in loads),
        y_ticks=powers(min(every), max(every), down),
        absent=absent,
    )


def _line(rows: Sequence[Row], series: int, mode: str, marks: list[Mark]) -> Line:
    name = rows[series].name + (", served" if mode == "served" else "")
    return Line(series, name, tuple(sorted(marks, key=lambda mark: mark.x)))


def _tip(row: Row, cell: LoadCell) -> str:
    facts = [f"{row.name}, {cell.mode}, {cell.concurrency} requests in flight"]
    facts += [f"{name}: {value}" for name, value in zip(HEADER, fields(cell), strict=True) if value != figures.NOTHING]
    return "\n".join(facts)
