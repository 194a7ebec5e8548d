"""How many users a precision carries within limits, from the sweep over loads: three usual pairs of limits in a table.

A limit is held against the p90 of the requests of each load that was measured, and the answer is the largest load up
to which every one is within it; nothing is interpolated. `quantlab recommend --ttft --tpot` takes limits of your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from quantlab.records import LoadCell
from quantlab.report import figures, load
from quantlab.report.rows import Row
from quantlab.score.limits import Limits

USUAL = {
    "quick: 0.2 s, 20 ms": Limits(0.2, 0.020),
    "chat: 0.5 s, 50 ms": Limits(0.5, 0.050),
    "patient: 2 s, 100 ms": Limits(2.0, 0.100),
}
"""First token, each further one. Fluent readers take about 5 words a second, so 50 ms keep well ahead of them."""
HEADER = ("recipe", "how", "in", "out", *USUAL)


def body(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """A line a recipe and way of measuring: users within each pair of limits. Empty where no times were kept."""
    return [
        (
            row.name + row.mark,
            mode,
            figures.fixed(isl, 0),
            figures.fixed(osl, 0),
            *(_carried(cells, limits) for limits in USUAL.values()),
        )
        for row in rows
        for (mode, isl, osl), cells in _sweeps(row).items()
    ]


def _sweeps(row: Row) -> dict[tuple[str, int, int], list[LoadCell]]:
    """(mode, in, out) -> valid loads with both times kept, smallest first; of two of one load the later counts."""
    found: dict[tuple[str, int, int], dict[int, LoadCell]] = {}
    for cell in load.cells(row.candidate):
        if load.own(row, cell) and cell.ttft and cell.tpot:
            found.setdefault((cell.mode, cell.isl, cell.osl), {})[cell.concurrency] = cell
    return {way: [cells[size] for size in sorted(cells)] for way, cells in found.items()}


def carried(cells: Sequence[LoadCell], limits: Limits) -> LoadCell | None:
    """The largest load up to which every one is within the limits; None: not even the smallest.

    Args:
        cells: valid, smallest load first.
    """
    return next(reversed(list(takewhile(lambda cell: not limits.breaks(*cell.p90, unknown=True), cells))), None)


def _carried(cells: Sequence[LoadCell], limits: Limits) -> str:
    most = carried(cells, limits)
    if most is None:
        return "none"
    rate = most.tokens_per_second
    more = " or more" if most is cells[-1] else ""
    return f"{most.concurrency:,}{more} at {figures.three(rate.value if rate else None)} tokens/s"
