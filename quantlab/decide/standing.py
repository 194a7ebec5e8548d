"""Where an option stands, and who of several is ahead: one rule for what was measured and for what is drawn.

A place is one static batch, or one load of a running engine. An option stands at the batch that suits the objective
best among those within the limits; under load, at the largest load up to which every measured one is within them.
Limits, the choice of the batch and the ranking all follow from the figures of the places, so that a draw of these
figures answers as a measurement would.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

from quantlab.decide.asked import Asked
from quantlab.decide.options import Option
from quantlab.predict import Prediction, least_gap

SAME_DROP = 0.5
"""Losses closer than this many points, or than their intervals, do not decide a tie."""


class Place(NamedTuple):
    """One static batch, or one load."""

    size: int
    """Sequences at once, or requests in flight."""
    speed: Prediction
    """Tokens a second; its error is also that of the times below."""
    merit: Prediction
    """What is ranked: the speed, or tokens a joule."""
    rate: float
    """Of `merit`: as measured, or as drawn."""
    first: float | None
    """Seconds that --ttft is held against: of a batch its time, of a load the p90 of its requests."""
    step: float | None
    """The same for --tpot."""
    first_error: float = 0.0
    """Standard deviation of the logarithm of `first` beyond what it shares with the speed."""
    step_error: float = 0.0
    counted: bool = True
    """Under load: every option was measured here, so users are counted here."""


class Field(NamedTuple):
    """An option and the places where it is known, smallest first."""

    option: Option
    places: Sequence[Place]
    loads: bool
    """Loads of a running engine, not static batches."""


class Standing(NamedTuple):
    """An option where it stands."""

    option: Option
    at: Place
    users: int
    """Carried within the limits; 0 for static batches, and where nothing limits them."""
    memory: int


def batches(option: Option) -> Field:
    """The static batches of an option, those beyond the limits too."""
    merits = option.ranked
    places = [
        Place(batch, speed, merits[batch], merits[batch].tokens_per_second, speed.first_seconds, speed.step_seconds)
        for batch, speed in sorted(option.speeds.items())
        if batch in merits
    ]
    return Field(option, places, loads=False)


def stand(asked: Asked, field: Field, places: Sequence[Place] | None = None) -> Standing | None:
    """Where the option stands; None where no place is within the limits.

    Args:
        places: other figures for the field's places, a draw.
    """
    given = field.places if places is None else places
    if not field.loads:
        within = [each for each in given if not asked.limits.breaks(each.first, each.step)]
        if not within:
            return None
        at = within[0] if asked.objective in ("latency", "memory") else max(within, key=lambda each: each.rate)
        return Standing(field.option, at, 0, field.option.memory(asked.context, at.size))
    held = takewhile(lambda each: not asked.limits.breaks(each.first, each.step, unknown=True), given)
    within = [each for each in held if each.counted]
    return _under_load(asked, field.option, within) if within else None


def _under_load(asked: Asked, option: Option, within: Sequence[Place]) -> Standing:
    least = option.memory(asked.context, min(asked.batches))
    if asked.objective == "latency":
        return Standing(option, within[0], 0, least)
    if asked.limited:
        return Standing(option, within[-1], within[-1].size, least)
    return Standing(option, max(within, key=lambda each: each.rate), 0, least)


def winner(asked: Asked, here: Sequence[Standing]) -> Standing:
    """Who is ahead: most users, then the speed; those within the errors of the fastest by accuracy and memory."""
    if asked.objective == "memory":
        return min(here, key=lambda each: each.memory)
    most = max(each.users for each in here)
    top = [each for each in here if each.users == most]
    leader = max(top, key=lambda each: each.at.rate)
    return by_accuracy_and_memory(asked, [each for each in top if each is leader or not apart(each.at, leader.at)])[0]


def apart(one: Place, other: Place) -> bool:
    """Do the two differ by more than their errors?"""
    return abs(math.log(one.rate / other.rate)) > least_gap(one.merit, other.merit)


def rank(asked: Asked, able: Iterable[Standing]) -> list[Standing]:
    """Best first: the winner, then the winner among the others."""
    left, order = list(able), []
    while left:
        order.append(winner(asked, left))
        left.remove(order[-1])
    return order


def by_accuracy_and_memory(asked: Asked, ties: Sequence[Standing]) -> list[Standing]:
    """The smallest shown loss first; losses that do not differ, and then unshown ones, by memory. A speed that cannot
    be ranked (INT4 from a roofline) wins no tie, unless memory is what is asked for."""
    least = min((each.option.accuracy.drop for each in ties if each.option.accuracy), default=0.0)

    def key(each: Standing) -> tuple[bool, int, int]:
        shown = each.option.accuracy
        blind = asked.objective != "memory" and not each.at.merit.rankable
        if shown is None:
            return blind, 2, each.memory
        return blind, (0 if shown.low <= least + SAME_DROP else 1), each.memory

    return sorted(ties, key=key)
