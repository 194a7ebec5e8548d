"""Is "how sure we are" true? Worlds are made up, measured with errors, judged; then the truth is asked.

Speeds of the true worlds spread far wider than the errors, limits lie in the midst of them, so batches and options come
within limits and fall out of them. Among choices that are called so sure, so many must be those of the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from quantlab import catalog
from quantlab.decide.asked import Asked, Words, resolve
from quantlab.decide.draws import accepted, stability, tail_error
from quantlab.decide.evidence import Evidence, Shown
from quantlab.decide.options import Option, options, setting
from quantlab.decide.standing import Field, Place, rank, stand
from quantlab.predict import Prediction
from quantlab.predict.crossover import SIGMAS

WORLDS, DRAWS = 300, 200
ERROR = 0.1
"""Standard deviation of the logarithm of a measured speed."""
TAIL = 0.1
"""And of a p90 beyond that."""
SIZES = (1, 4, 16)


@cache
def question(**words: object) -> tuple[Asked, tuple[Option, ...]]:
    """Three options of the H100 whose speeds the worlds replace."""
    published = catalog.published()
    asked = resolve(Words(model="3b", gpu="h100", unproven=True, **words), published)  # type: ignore[arg-type]
    known = Evidence(accuracy={"int4_awq": Shown(0.4, 0.0, 0.8, "measured", "a suite")})
    return asked, tuple(options(asked, known, setting(asked, known)))


def place(size: int, log_rate: float, first: float, step: float, *, loads: bool) -> Place:
    """A measured place. Times are in logarithms of seconds."""
    width, rate = ERROR * SIGMAS, math.exp(log_rate)
    ends = rate * math.exp(-width), rate * math.exp(width)
    speed = Prediction(rate, *ends, "measured", "measured", "")
    return Place(size, speed, speed, rate, math.exp(first), math.exp(step), TAIL * loads, TAIL * loads)


def world(
    every: Sequence[Option], random: np.random.Generator, *, loads: bool
) -> tuple[list[Field], list[list[Place]]]:
    """What is measured of a true world, and the truth in the same places."""
    fields, truth = [], []
    for option in every:
        seen, real = [], []
        for size in SIZES:
            rate = math.log(100 * size**0.7) + 0.3 * random.standard_normal()
            first, step = (math.log(size**0.6) + 0.4 * random.standard_normal() for _ in range(2))
            faster = ERROR * random.standard_normal()
            late, slow = (TAIL * loads * random.standard_normal() for _ in range(2))
            measured = place(size, rate + faster, first - faster + late, step - faster + slow, loads=loads)
            seen.append(measured)
            real.append(measured._replace(rate=math.exp(rate), first=math.exp(first), step=math.exp(step)))
        fields.append(Field(option, seen, loads))
        truth.append(real)
    return fields, truth


def judged(asked: Asked, every: Sequence[Option], *, loads: bool) -> tuple[np.ndarray, np.ndarray]:
    """[worlds] How sure the choice was called, and whether the truth makes the same. Worlds without a choice: none."""
    random, said, same = np.random.default_rng(1), [], []
    for seed in range(WORLDS):
        fields, truth = world(every, random, loads=loads)
        found = rank(asked, [one for field in fields if (one := stand(asked, field)) is not None])
        if not found:
            continue
        choice = found[0].option
        said.append(stability(asked, fields, choice, draws=DRAWS, seed=seed))
        kept = [accepted(asked, field.option, random, 1)[0] for field in fields]
        real = [
            one
            for field, places, good in zip(fields, truth, kept, strict=True)
            if good and (one := stand(asked, field, places)) is not None
        ]
        same.append(bool(real) and rank(asked, real)[0].option is choice)
    return np.array(said), np.array(same)


@pytest.mark.parametrize("loads", [False, True])
@pytest.mark.parametrize("words", [{}, {"ttft": 3.0, "tpot": 3.0}, {"objective": "latency", "tpot": 1.2}])
def test_a_stated_probability_is_a_frequency(words: dict[str, object], loads: bool) -> None:
    asked, every = question(**words)
    said, same = judged(asked, every, loads=loads)
    assert len(said) > WORLDS / 2
    for low, high in ((0.0, 0.7), (0.7, 0.9), (0.9, 1.01), (0.0, 1.01)):
        within = (said >= low) & (said < high)
        count = int(within.sum())
        if count < 20:
            continue
        expected, error = said[within].mean(), math.sqrt((said[within] * (1 - said[within])).sum() + 0.25) / count
        assert abs(same[within].mean() - expected) < 3.5 * error, (low, high, count, same[within].mean(), expected)


def test_limits_and_the_best_batch_vary_with_the_draw() -> None:
    """The leader's best batch just holds the limit; in half of the draws it must fall back to a slower one."""
    asked, every = question(tpot=1.0)
    near, far = math.log(0.999), math.log(0.2)

    def fields(step: float) -> list[Field]:
        lead = [place(1, 3, -9, far, loads=False), place(16, 7, -9, step, loads=False)]
        return [Field(every[1], lead, False), Field(every[0], [place(16, 6, -9, far, loads=False)], False)]

    assert stability(asked, fields(far), every[1]) > 0.99
    assert stability(asked, fields(near), every[1]) == pytest.approx(0.5, abs=0.05)


def test_an_option_beyond_the_limits_may_come_back_within_them() -> None:
    asked, every = question(tpot=1.0)
    better = [place(16, 7, -9, math.log(1.001), loads=False)]
    chosen = [place(16, 6, -9, math.log(0.2), loads=False)]
    assert stand(asked, Field(every[1], better, False)) is None
    both = [Field(every[1], better, False), Field(every[0], chosen, False)]
    assert stability(asked, both, every[0]) == pytest.approx(0.5, abs=0.05)


def test_energy_is_drawn_from_its_own_error_and_times_from_the_speeds() -> None:
    asked, every = question(tpot=1.0)
    option = replace(every[1], by_joules=True)
    speed = place(1, 3, -9, math.log(0.999), loads=False)
    joules = replace(speed.speed, tokens_per_second=10.0, low=9.5, high=10.5)
    field = Field(option, [speed._replace(merit=joules, rate=10.0)], False)
    assert stability(asked, [field], option) == pytest.approx(0.5, abs=0.05)


def test_the_error_of_a_p90_is_that_of_a_quantile() -> None:
    """Of log-normal times, drawn many times."""
    random, count = np.random.default_rng(0), 200
    times = np.exp(0.5 * random.standard_normal((4000, count)))
    spread = np.log(np.quantile(times, 0.9, axis=1)).std()
    assert tail_error(1.0, math.exp(0.5 * 1.2816), count) == pytest.approx(spread, rel=0.08)
    assert tail_error(1.0, 1.0, count) == 0.0
    assert tail_error(1.0, 2.0, 0.1) == tail_error(1.0, 2.0, 1.0), "no more than one observation's"
