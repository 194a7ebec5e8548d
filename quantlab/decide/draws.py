"""How sure the choice is: everything measured is drawn again from its error, and the same rule chooses again.

Drawn are the speed of every batch or load, with it the times that limits are held against (an engine that is 3 %
faster is so in its times too), what a p90 over so many requests may be off, and the shown losses. So a limit that only
just holds may break, another batch may be the best, an option beyond the limits may come back within them. What stays
out of every draw is what no measurement of speed could bring in: what does not fit, what nobody serves, what has not
shown its accuracy.

Read it as a probability: with nothing known before, the truth lies around the measurement as a draw does, so among
choices that are called 80 % sure, four in five are those that the rule would make if it knew the truth
(tests/test_decide_draws.py counts them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from quantlab.decide.asked import Asked
from quantlab.decide.options import Option
from quantlab.decide.standing import Field, Place, stand, winner
from quantlab.predict.crossover import draw

DRAWS = 1000


def stability(asked: Asked, fields: Sequence[Field], choice: Option, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Share of draws in which the rule chooses the same. The baseline's loss is 0 in each of them.

    Args:
        fields: every option that measurements could make the choice, those beyond the limits too.
        choice: what was chosen.
        draws: how many.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    common = random.standard_normal((draws, 1))
    drawn = [(field, _drawn(field, random, common), accepted(asked, field.option, random, draws)) for field in fields]
    same = 0
    for index in range(draws):
        here = [
            found
            for field, places, kept in drawn
            if (found := stand(asked, field, next(places))) is not None and kept[index]
        ]
        same += bool(here) and winner(asked, here).option is choice
    return same / draws


def accepted(asked: Asked, option: Option, random: np.random.Generator, draws: int) -> np.ndarray:
    """[draws] Is its loss within the margin? Half the 95 % interval is 1.96 standard errors."""
    shown = option.accuracy
    if shown is None or shown.high <= shown.low:
        return np.ones(draws, dtype=bool)
    error = (shown.high - shown.low) / 2 / 1.96
    return np.asarray(shown.drop + error * random.standard_normal(draws) <= asked.max_drop)


def _drawn(field: Field, random: np.random.Generator, common: np.ndarray) -> Iterator[list[Place]]:
    """The field's places, once a draw."""
    places = field.places
    sizes, own = [each.size for each in places], {each.size: each.speed for each in places}
    logs = draw(own, sizes, random, common) if places else np.zeros((len(common), 0))
    faster = logs - np.log([each.speed.tokens_per_second for each in places])
    rates = np.exp(logs)
    if field.option.by_joules and not field.loads:
        rates = np.exp(draw({each.size: each.merit for each in places}, sizes, random, common))
    first, step = (
        np.exp(np.array([getattr(each, name) for each in places]) * random.standard_normal(logs.shape) - faster)
        for name in ("first_error", "step_error")
    )
    for row, early, each in zip(rates.tolist(), first.tolist(), step.tolist(), strict=True):
        yield [
            place._replace(rate=rate, first=_times(place.first, one), step=_times(place.step, other))
            for place, rate, one, other in zip(places, row, early, each, strict=True)
        ]


def _times(seconds: float | None, factor: float) -> float | None:
    return None if seconds is None else seconds * factor


def tail_error(p50: float, p90: float, effective: float) -> float:
    """Standard deviation of the logarithm of a p90 over `effective` independent requests.

    A quantile's is sqrt(p (1 - p) / n) over the density there; for times that are log-normal between the median and
    the p90 that is 1.71 times the standard deviation of their logarithms, over the root of n.
    """
    if not 0 < p50 < p90:
        return 0.0
    deviation = math.log(p90 / p50) / NORMAL_P90
    return TAIL * deviation / math.sqrt(max(effective, 1.0))


NORMAL_P90 = 1.2816
TAIL = 1.709
"""sqrt(0.9 * 0.1) / 0.1755, the height of the normal density at its 90th percentile."""
