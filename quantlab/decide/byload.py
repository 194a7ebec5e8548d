"""Ranking by loads of a running engine: who carries the most users within the limits.

A static batch is what a user who deploys a server never sees. So where limits are given, or `by load` is asked, the
options are held against loads that were measured on this GPU: all in the same way (served, or in flight inside the
engine), at the same lengths, and users are counted only at loads at which every option was measured. Where one of them
was not, nothing is mixed: static batches decide, and the answer says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantlab.decide.asked import Asked
from quantlab.decide.draws import tail_error
from quantlab.decide.evidence import Evidence, group_of
from quantlab.decide.options import Option, Setting
from quantlab.decide.standing import Field, Place, stand
from quantlab.decide.users import KINDS, Loaded, own
from quantlab.predict import Prediction
from quantlab.predict.bands import LEAST_ERROR

BY_LOAD = ("throughput", "latency", "cost")
"""Objectives that loads can decide: memory is what it is, and energy is compared at static batches."""


@dataclass(frozen=True)
class Sweeps:
    """The loads by which options are ranked."""

    kind: str
    isl: int
    osl: int
    loads: tuple[int, ...]
    """At which every option was measured."""
    fields: tuple[Field, ...]

    @property
    def said(self) -> str:
        return f"{self.kind}, {self.isl} in, {self.osl} out"


def sweeps(asked: Asked, evidence: Evidence, where: Setting, every: Sequence[Option]) -> Sweeps | str:
    """The loads that all options which may be chosen share, or why static batches decide; empty: nobody asked."""
    if asked.by == "batch" or not (asked.by or asked.limited):
        return ""
    if asked.objective not in BY_LOAD:
        return f"{asked.objective} is compared at static batches."
    if asked.images:
        return "loads were measured without pictures."
    here = group_of(asked.model.word, asked.gpu.word, asked.tp)
    open_ = [each for each in every if not each.barred]
    known = {each.name: own(evidence.loads, each.name, where.engine, here) for each in open_}
    if not any(known.values()):
        names = " or ".join(known) or "any precision"
        return f"no load of {names} was measured on {asked.gpu.word} with {where.engine}."
    shared = _shared(asked, where, list(known.values()))
    if shared is None:
        return _unlike(known)
    (mode, isl, osl), loads = shared
    fields = tuple(Field(each, _places(known[each.name], mode, isl, osl, loads), loads=True) for each in open_)
    return Sweeps(KINDS[mode], isl, osl, loads, fields)


def judged(asked: Asked, sweep: Sweeps, every: Sequence[Option]) -> list[Option]:
    """The options, lost or not by what they do under load instead of in static batches."""
    fields = {field.option.name: field for field in sweep.fields}
    found = []
    for each in every:
        field = fields.get(each.name)
        lost = _lost(asked, field) if field else each.lost
        unproven = each.accuracy is None and not lost if field else each.unproven
        found.append(replace(each, lost=lost, unproven=unproven))
    return found


def _lost(asked: Asked, field: Field) -> str:
    if stand(asked, field) is not None:
        return ""
    said = next(
        (found for each in field.places if (found := asked.limits.breaks(each.first, each.step, unknown=True))), ""
    )
    return f"not one of the loads that all were measured at is within the limits: {said}"


Way = tuple[str, int, int]
"""How loads were measured: mode, tokens in, tokens out."""


def _shared(asked: Asked, where: Setting, known: Sequence[Sequence[Loaded]]) -> tuple[Way, tuple[int, ...]] | None:
    """The way that all share, and the loads that all have in it. Served first, then the lengths of the speeds."""
    found: list[tuple[tuple[int, bool, int], Way, tuple[int, ...]]] = []
    ways = {_way(each) for each in known[0]}
    for way in sorted(each for each in ways if asked.lengths in (None, each[1:])):
        loads = [{each.cell.concurrency for each in one if _way(each) == way} for one in known]
        if common := set.intersection(*loads):
            order = (-list(KINDS).index(way[0]), way[1:] == where.lengths, len(common))
            found.append((order, way, tuple(sorted(common))))
    return max(found)[1:] if found else None


def _unlike(known: dict[str, list[Loaded]]) -> str:
    """Which loads are there, and for whom none is."""
    without = [name for name, loads in known.items() if not loads]
    if without:
        others = " and ".join(name for name in known if name not in without)
        return f"no load of {' and '.join(without)} was measured, of {others} some were."
    return f"no load was measured in the same way, at the same lengths, for each of {', '.join(known)}."


def _way(each: Loaded) -> Way:
    return each.cell.mode, each.cell.isl, each.cell.osl


def _places(known: Sequence[Loaded], mode: str, isl: int, osl: int, common: Sequence[int]) -> list[Place]:
    """Of two cells of one load the later counts."""
    cells = {each.cell.concurrency: each for each in known if _way(each) == (mode, isl, osl)}
    return [_place(cells[load], counted=load in common) for load in sorted(cells)]


def _place(loaded: Loaded, *, counted: bool) -> Place:
    """Requests that run side by side are slow together, so each wave of them is one observation of the tail."""
    cell, speed = loaded.cell, _speed(loaded)
    waves = cell.requests / cell.concurrency
    first, step = (
        (times.p90, tail_error(times.p50, times.p90, waves)) if times else (None, 0.0)
        for times in (cell.ttft, cell.tpot)
    )
    size, rate = cell.concurrency, speed.tokens_per_second
    return Place(size, speed, speed, rate, first[0], step[0], first[1], step[1], counted)


def _speed(loaded: Loaded) -> Prediction:
    """The interval spans the repeats, and at least LEAST_ERROR, as that of a static batch."""
    number, power = loaded.cell.tokens_per_second, loaded.cell.power
    assert number is not None, "checked when the ledger was read"
    rate = number.value
    ends = (number.low or rate, number.high or rate)
    width = max(LEAST_ERROR, *(abs(math.log(end / rate)) for end in ends))
    energy = power.joules_per_token if power and power.valid else None
    return Prediction(
        rate,
        rate * math.exp(-width),
        rate * math.exp(width),
        "measured",
        "measured",
        loaded.source,
        joules_per_token=energy.value if energy and energy.value > 0 else None,
    )
