"""How many users a precision carries within the limits: from cells with requests in flight, or served.

A static batch says nothing of queueing: all its sequences begin together, and nobody waits for a place. So a limit on
what users feel is held against the p90 of the requests of each load that was measured. The kinds are never mixed: what
was served is set beside what was served, at the same lengths. Nothing is interpolated: the answer is the largest load
up to which every measured one holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quantlab.decide.answer import Users
from quantlab.decide.asked import Asked
from quantlab.records import LoadCell
from quantlab.score.knee import Point, knee

KINDS = {"served": "served", "offline": "in flight"}
"""How a load was measured -> in words. Served first: it is what users get."""


@dataclass(frozen=True)
class Loaded:
    """A load that was measured and is valid."""

    recipe: str
    engine: str
    group: str
    """Model and GPUs."""
    source: str
    cell: LoadCell


def users(asked: Asked, known: Sequence[Loaded], recipe: str, engine: str, group: str) -> tuple[Users, ...]:
    """What each kind of sweep says of a recipe, a line a pair of lengths; of two cells of one load the later counts."""
    mine = own(known, recipe, engine, group)
    found = []
    for mode in KINDS:
        sweeps: dict[tuple[int, int], dict[int, Loaded]] = {}
        for each in mine:
            at = each.cell
            if at.mode == mode and asked.lengths in (None, (at.isl, at.osl)):
                sweeps.setdefault((at.isl, at.osl), {})[at.concurrency] = each
        found += [_sweep(asked, [loads[n] for n in sorted(loads)]) for _, loads in sorted(sweeps.items())]
    return tuple(found)


def own(known: Sequence[Loaded], recipe: str, engine: str, group: str) -> list[Loaded]:
    """What was measured of this recipe, with this engine, on this GPU."""
    return [each for each in known if (each.recipe, each.engine, each.group) == (recipe, engine, group)]


def _sweep(asked: Asked, loads: Sequence[Loaded]) -> Users:
    cells = [each.cell for each in loads]
    over = next((cell for cell in cells if asked.limits.breaks(*cell.p90, unknown=True)), None)
    held = cells[: cells.index(over)] if over else cells
    rates = [Point(cell.concurrency, _rate(cell), _seconds(cell)) for cell in cells]
    bend = knee(rates).concurrency
    most = held[-1] if held else None
    waited = next((cell.concurrency for cell in cells if cell.saturated), None)
    kind = KINDS[cells[0].mode]
    return Users(
        kind=kind,
        isl=cells[0].isl,
        osl=cells[0].osl,
        most=most.concurrency if most else None,
        breaks=over.concurrency if over else None,
        tokens_per_second=_rate(most) if most else None,
        knee=bend,
        saturated=waited,
        source=loads[-1].source,
        sentence=" ".join(_words(asked, kind, cells, most, over, bend, waited)),
    )


def _words(
    asked: Asked,
    kind: str,
    cells: Sequence[LoadCell],
    most: LoadCell | None,
    over: LoadCell | None,
    bend: int | None,
    waited: int | None,
) -> Iterator[str]:
    what = f"{kind}, {cells[0].isl} in, {cells[0].osl} out:"
    if most is None:
        yield f"{what} not one of the measured loads is within the limits."
    else:
        within = " within the limits (p90)" if asked.limited else " measured"
        yield f"{what} {most.concurrency} users{within}, {_rate(most):,.0f} tokens/s."
    if over is not None:
        yield f"{over.concurrency} are too many: {asked.limits.breaks(*over.p90, unknown=True)}."
    yield f"Knee at {bend}." if bend else "No knee up to there."
    if waited:
        yield f"Requests wait from {waited} on."


def _rate(cell: LoadCell) -> float:
    assert cell.tokens_per_second is not None
    return cell.tokens_per_second.value


def _seconds(cell: LoadCell) -> float:
    return cell.latency.p50 if cell.latency else cell.concurrency * cell.osl / _rate(cell)
