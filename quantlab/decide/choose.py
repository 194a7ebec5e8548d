"""The choice among options: by the objective where speeds differ by more than their errors, else by accuracy and
memory; by load where limits are given and loads were measured (byload.py), else by static batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from quantlab.decide import carried, words
from quantlab.decide.answer import AtBatch, Pair, Recommendation, Row, Speed, Users
from quantlab.decide.asked import Asked
from quantlab.decide.byload import Sweeps, judged, sweeps
from quantlab.decide.draws import stability
from quantlab.decide.evidence import Evidence, group_of
from quantlab.decide.options import Option, Setting, options, setting
from quantlab.decide.standing import Field, Standing, apart, batches, by_accuracy_and_memory, rank, stand
from quantlab.decide.users import users
from quantlab.predict import Prediction, crossover


def recommend(asked: Asked, evidence: Evidence) -> Recommendation:
    """Weigh every recipe of the question.

    Args:
        asked: the question.
        evidence: what is known.

    Returns:
        An answer in every case; `choice` is None where the limits exclude everything, and `relax` says which to relax.
    """
    where = setting(asked, evidence)
    known = _ranked(asked, evidence, where, options(asked, evidence, where))
    every, by_load, order = known.every, known.by_load, known.order
    choice, second = known.place(0), known.place(1)
    pairs = _pairs([each for each in every if each.speeds and each.plan.fits])
    by_batch = _by_batch(asked, [each for each in every if not each.barred], choice)
    said = words.sentence(asked, every, choice, by_batch)
    return Recommendation(
        model=asked.model.word,
        gpu=asked.gpu.word,
        tp=asked.tp,
        engine=where.engine,
        objective=asked.objective,
        workload=words.workload(asked, where),
        ranked_by=by_load.said if by_load else "static batches",
        choice=choice.name if choice else None,
        runner_up=second.name if second else None,
        sentence=carried.sentence(asked, by_load, order, every) if by_load else said,
        by_batch=tuple(by_batch),
        rows=tuple(_row(asked, each, known, _users(asked, evidence, where, each)) for each in every),
        crossovers=tuple(pairs),
        stability=stability(asked, known.fields, choice) if choice and len(known.fields) > 1 else None,
        relax=tuple(words.relax(asked, every, by_load)) if choice is None else (),
        missing=tuple(words.missing(asked, evidence, where, every, known.fallback)),
        next_steps=tuple(words.next_steps(asked, where, every, choice, second, pairs, known.fallback)),
        assumptions=tuple(words.assumptions(asked, every)),
    )


@dataclass(frozen=True)
class Ranking:
    """All options, and the order of those that can be chosen."""

    every: Sequence[Option]
    by_load: Sweeps | None
    """None: by static batches."""
    fallback: str
    """Why static batches decide although loads were asked for."""
    fields: Sequence[Field]
    """Of every option that measurements could make the choice."""
    order: Sequence[Standing]
    """Best first."""

    def place(self, number: int) -> Option | None:
        return self.order[number].option if len(self.order) > number else None

    def standing(self, name: str) -> Standing | None:
        return next((each for each in self.order if each.option.name == name), None)


def _ranked(asked: Asked, evidence: Evidence, where: Setting, every: Sequence[Option]) -> Ranking:
    found = sweeps(asked, evidence, where, every)
    if isinstance(found, str):
        by_load, fallback, fields = None, found, [batches(each) for each in every if not each.barred]
    else:
        every = judged(asked, found, every)
        named = {each.name: each for each in every}
        by_load, fallback = found, ""
        fields = [each._replace(option=named[each.option.name]) for each in found.fields]
    standings = [standing for each in fields if (standing := stand(asked, each)) is not None]
    return Ranking(every, by_load, fallback, fields, rank(asked, standings))


def _by_batch(asked: Asked, able: Sequence[Option], choice: Option | None) -> list[AtBatch]:
    """The winner at each batch; a choice that is tied with the fastest stays: shipping two costs more."""
    found, fields = [], [batches(each) for each in able]
    for batch in asked.batches:
        here = [
            Standing(field.option, place, 0, field.option.memory(asked.context, batch))
            for field in fields
            for place in field.places
            if place.size == batch and batch not in field.option.over
        ]
        if not here:
            continue
        leader = max(here, key=lambda each: each.at.rate)
        ties = [each for each in here if each is leader or not apart(each.at, leader.at)]
        ordered = sorted(by_accuracy_and_memory(asked, ties), key=lambda each: each.option is not choice)
        names = [each.option.name for each in ordered]
        found.append(AtBatch(batch=batch, recipe=names[0], ties=tuple(names[1:])))
    return found


def _pairs(able: Sequence[Option]) -> list[Pair]:
    found = []
    for one, other in combinations(able, 2):
        cross = crossover(one.name, one.speeds, other.name, other.speeds)
        if cross is None:
            continue
        batch, low, high = (each if math.isfinite(each) else None for each in (cross.batch, cross.low, cross.high))
        said = words.crossing(cross, one, other)
        found.append(
            Pair(
                ahead_below=cross.ahead_below,
                ahead_above=cross.ahead_above,
                batch=batch,
                low=low,
                high=high,
                share=cross.share,
                sentence=said,
            )
        )
    return found


def _users(asked: Asked, evidence: Evidence, where: Setting, option: Option) -> tuple[Users, ...]:
    """Text alone: pictures were measured in static batches only."""
    here = group_of(asked.model.word, asked.gpu.word, asked.tp)
    return () if asked.images else users(asked, evidence.loads, option.name, where.engine, here)


def _row(asked: Asked, option: Option, known: Ranking, swept: tuple[Users, ...]) -> Row:
    static = stand(asked, batches(option))
    batch = static.at.size if static else None
    speed = option.speeds[batch] if batch is not None else None
    by_load, own = known.by_load, known.standing(option.name)
    ahead = known.order[0] if known.order else None
    choice, second = known.place(0), known.place(1)
    why = carried.why if by_load else words.why
    status = "chosen" if option is choice else "runner-up" if option is second else "lost"
    held = option.plan.footprint
    speeds = tuple(_speed(each, found, option.over.get(each, "")) for each, found in option.speeds.items())
    paid = own.at.speed if by_load and own else speed
    joules, dollars = words.per_million(asked, paid)
    drawn = paid is not None and paid.joules_per_token is not None
    shown = option.accuracy
    return Row(
        recipe=option.name,
        status=status,
        why=why(asked, option, own, ahead),
        memory_bytes=option.memory(asked.context, batch or min(asked.batches)) if held else None,
        weights_bytes=held.weights if held else None,
        at=next((each for each in speeds if each.batch == batch), None),
        speeds=speeds,
        users=swept,
        load=carried.carried(asked, by_load, own) if by_load else None,
        drop=shown.drop if shown and not shown.verdict else None,
        drop_low=shown.low if shown and not shown.verdict else None,
        drop_high=shown.high if shown and not shown.verdict else None,
        accuracy=shown.source if shown else "not shown for this model",
        joules_per_million=joules,
        energy_measured=drawn,
        dollars_per_million=dollars,
    )


def _speed(batch: int, found: Prediction, over: str) -> Speed:
    return Speed(
        batch=batch,
        tokens_per_second=found.tokens_per_second,
        low=found.low,
        high=found.high,
        tier=found.tier,
        provenance=found.provenance,
        basis=found.basis,
        step_seconds=found.step_seconds,
        first_seconds=found.first_seconds,
        over=over,
    )
