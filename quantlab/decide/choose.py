"""The choice among options: by the objective where speeds differ by more than their errors, else by accuracy and
memory.

`stability` is the share of draws (speeds from their intervals, losses from theirs) in which the same rule chooses the
same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from quantlab.decide import words
from quantlab.decide.answer import AtBatch, Pair, Recommendation, Row, Speed, Users
from quantlab.decide.asked import Asked
from quantlab.decide.evidence import Evidence, group_of
from quantlab.decide.options import Option, Setting, options, setting
from quantlab.decide.users import users
from quantlab.predict import Prediction, crossover, differ
from quantlab.predict.crossover import draw

DRAWS = 1000
SAME_DROP = 0.5
"""Losses closer than this many points, or than their intervals, do not decide a tie."""


def recommend(asked: Asked, evidence: Evidence) -> Recommendation:
    """Weigh every recipe of the question.

    Args:
        asked: the question.
        evidence: what is known.

    Returns:
        An answer in every case; `choice` is None where the limits exclude everything, and `relax` says which to relax.
    """
    where = setting(asked, evidence)
    every = options(asked, evidence, where)
    able = [each for each in every if not each.lost]
    order = _rank(asked, able)
    choice = order[0] if order else None
    second = order[1] if len(order) > 1 else None
    pairs = _pairs([each for each in every if each.speeds and each.plan.fits])
    by_batch = _by_batch(asked, able, choice)
    return Recommendation(
        model=asked.model.word,
        gpu=asked.gpu.word,
        tp=asked.tp,
        engine=where.engine,
        objective=asked.objective,
        workload=words.workload(asked, where),
        choice=choice.name if choice else None,
        runner_up=second.name if second else None,
        sentence=words.sentence(asked, every, choice, by_batch),
        by_batch=tuple(by_batch),
        rows=tuple(_row(asked, each, choice, second, _users(asked, evidence, where, each)) for each in every),
        crossovers=tuple(pairs),
        stability=_stability(asked, able, choice) if choice and second else None,
        relax=tuple(words.relax(asked, every)) if choice is None else (),
        missing=tuple(words.missing(asked, evidence, where, every)),
        next_steps=tuple(words.next_steps(asked, where, every, choice, second, pairs)),
        assumptions=tuple(words.assumptions(asked, every)),
    )


def best(asked: Asked, option: Option) -> tuple[int, Prediction]:
    """The batch that suits the objective, and the merit there."""
    usable = option.merits
    if asked.objective in ("latency", "memory"):
        return min(usable.items())
    return max(usable.items(), key=lambda item: item[1].tokens_per_second)


def _rank(asked: Asked, able: Sequence[Option]) -> list[Option]:
    """Best first. Those within the error of the leader are ordered by accuracy and memory, then the next leader's."""
    left, order = list(able), []
    while left:
        if asked.objective == "memory":
            leader = min(left, key=lambda each: each.memory(asked.context, best(asked, each)[0]))
            order.append(leader)
            left.remove(leader)
            continue
        leader = max(left, key=lambda each: best(asked, each)[1].tokens_per_second)
        fastest = best(asked, leader)[1]
        ties = [each for each in left if each is leader or not differ(best(asked, each)[1], fastest)]
        chosen = _by_accuracy_and_memory(asked, ties)[0]
        order.append(chosen)
        left.remove(chosen)
    return order


def _by_accuracy_and_memory(asked: Asked, ties: Sequence[Option]) -> list[Option]:
    """The smallest shown loss first; losses that do not differ, and then unshown ones, by memory. A speed that cannot
    be ranked (INT4 from a roofline) wins no tie, unless memory is what is asked for."""
    least = min((each.accuracy.drop for each in ties if each.accuracy), default=0.0)

    def key(option: Option) -> tuple[bool, int, int]:
        shown, (batch, speed) = option.accuracy, best(asked, option)
        memory, blind = option.memory(asked.context, batch), asked.objective != "memory" and not speed.rankable
        if shown is None:
            return blind, 2, memory
        return blind, (0 if shown.low <= least + SAME_DROP else 1), memory

    return sorted(ties, key=key)


def _by_batch(asked: Asked, able: Sequence[Option], choice: Option | None) -> list[AtBatch]:
    """The winner at each batch; a choice that is tied with the fastest stays: shipping two costs more."""
    found = []
    for batch in asked.batches:
        here = [each for each in able if batch in each.merits]
        if not here:
            continue
        leader = max(here, key=lambda each: each.merits[batch].tokens_per_second)
        ties = [each for each in here if each is leader or not differ(each.merits[batch], leader.merits[batch])]
        ordered = sorted(_by_accuracy_and_memory(asked, ties), key=lambda each: each is not choice)
        found.append(AtBatch(batch=batch, recipe=ordered[0].name, ties=tuple(each.name for each in ordered[1:])))
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


def _row(asked: Asked, option: Option, choice: Option | None, second: Option | None, carried: tuple[Users, ...]) -> Row:
    batch = best(asked, option)[0] if option.merits else None
    speed = option.speeds[batch] if batch is not None else None
    status = "chosen" if option is choice else "runner-up" if option is second else "lost"
    held = option.plan.footprint
    speeds = tuple(_speed(each, found, option.over.get(each, "")) for each, found in option.speeds.items())
    joules, dollars = words.per_million(asked, speed)
    drawn = speed is not None and speed.joules_per_token is not None
    shown = option.accuracy
    return Row(
        recipe=option.name,
        status=status,
        why=words.why(
            asked,
            option,
            choice,
            *(best(asked, each)[1] if each and each.merits else None for each in (choice, option)),
        ),
        memory_bytes=option.memory(asked.context, batch or min(asked.batches)) if held else None,
        weights_bytes=held.weights if held else None,
        at=next((each for each in speeds if each.batch == batch), None),
        speeds=speeds,
        users=carried,
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


def _stability(asked: Asked, able: Sequence[Option], choice: Option) -> float:
    """Share of DRAWS in which the rule chooses the same. The baseline's loss is 0 in each of them."""
    random = np.random.default_rng(0)
    common = random.standard_normal((DRAWS, 1))
    at = {each.name: best(asked, each) for each in able}
    logs = {each.name: _drawn(each, at[each.name][0], random, common) for each in able}
    kept = {each.name: _accepted(asked, each, random) for each in able}
    same = 0
    for index in range(DRAWS):
        here = [each for each in able if kept[each.name][index]]
        same += (
            bool(here)
            and _drawn_winner(asked, here, at, {each.name: float(logs[each.name][index]) for each in here}) is choice
        )
    return same / DRAWS


def _drawn(option: Option, batch: int, random: np.random.Generator, common: np.ndarray) -> np.ndarray:
    speed = {batch: option.merits[batch]}
    return draw(speed, [batch], random, common)[:, 0]


def _accepted(asked: Asked, option: Option, random: np.random.Generator) -> np.ndarray:
    """Would its loss be within the margin, were it measured again? Half the 95 % interval is 1.96 standard errors."""
    shown = option.accuracy
    if shown is None or shown.high <= shown.low:
        return np.ones(DRAWS, dtype=bool)
    error = (shown.high - shown.low) / 2 / 1.96
    return np.asarray(shown.drop + error * random.standard_normal(DRAWS) <= asked.max_drop)


def _drawn_winner(
    asked: Asked, here: Sequence[Option], at: Mapping[str, tuple[int, Prediction]], log: Mapping[str, float]
) -> Option:
    if asked.objective == "memory":
        return min(here, key=lambda each: each.memory(asked.context, at[each.name][0]))
    leader = max(here, key=lambda each: log[each.name])
    fastest = at[leader.name][1]
    ties = [each for each in here if each is leader or not differ(at[each.name][1], fastest)]
    near = [each for each in ties if each is leader or log[leader.name] - log[each.name] < _gap(leader, each, at)]
    return _by_accuracy_and_memory(asked, near)[0]


def _gap(one: Option, other: Option, at: Mapping[str, tuple[int, Prediction]]) -> float:
    first, second = at[one.name][1], at[other.name][1]
    return math.inf if not (first.rankable and second.rankable) else math.hypot(first.spread, second.spread)
