"""A ranking by load in words: how many users the choice carries, what the others do, which limit to relax."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantlab.decide.answer import Carried
from quantlab.decide.asked import Asked
from quantlab.decide.byload import Sweeps
from quantlab.decide.options import Option
from quantlab.decide.standing import Standing, apart


def carried(asked: Asked, sweep: Sweeps, own: Standing | None) -> Carried | None:
    """Where an option stands, as a record; dollars are those of renting all GPUs for an hour, a user."""
    if own is None:
        return None
    price, at = asked.price or asked.gpu.price_per_hour, own.at
    return Carried(
        kind=sweep.kind,
        isl=sweep.isl,
        osl=sweep.osl,
        loads=sweep.loads,
        users=at.size,
        users_per_gpu=at.size / asked.tp,
        tokens_per_second=at.rate,
        low=at.speed.low,
        high=at.speed.high,
        ttft_p90=at.first,
        tpot_p90=at.step,
        dollars_per_user_hour=price * asked.tp / at.size if price else None,
    )


def sentence(asked: Asked, sweep: Sweeps, order: Sequence[Standing], every: Sequence[Option]) -> str:
    """The answer: the choice, its users or its speed, and the next one's."""
    target = f"{asked.model.word} on {asked.tp} x {asked.gpu.word}"
    if not order:
        return f"No precision of {target} is within all limits under load; see what to relax."
    first, doubt = order[0], " if its accuracy holds" if order[0].option.unproven else ""
    said = f"For {target}, ship {first.option.name} ({asked.objective}, by load){doubt}: {_stands(asked, first)}"
    if len(order) > 1:
        said += f"; {order[1].option.name} {_stands(asked, order[1], short=True)}"
    said += f" ({sweep.said})."
    held = [each.name for each in every if each.unproven and each.lost]
    return said + (f" {' and '.join(held)}: not weighed until the accuracy is shown." if held else "")


def _stands(asked: Asked, own: Standing, *, short: bool = False) -> str:
    rate = f"{own.at.rate:,.0f} tokens/s"
    if own.users:
        within = "" if short else f" within {_limits(asked)} (p90)"
        return f"{own.users} users{within} at {rate}"
    return f"{rate} with {own.at.size} in flight"


def _limits(asked: Asked) -> str:
    given = (("TTFT", asked.ttft), ("TPOT", asked.tpot))
    return " and ".join(f"{word} {limit * 1e3:.3g} ms" for word, limit in given if limit is not None)


def why(asked: Asked, option: Option, own: Standing | None, ahead: Standing | None) -> str:
    """Why it is chosen, or lost."""
    if own is None or ahead is None:
        return option.lost or "not reached"
    if option is ahead.option:
        unproven = "; its accuracy was not shown, --unproven let it pass" if option.unproven else ""
        return f"best for {asked.objective} by load, or tied and ahead in accuracy and memory{unproven}"
    if own.users != ahead.users:
        return f"carries {own.users} users within the limits, {ahead.option.name} {ahead.users}"
    same = f"as many users as {ahead.option.name}, " if own.users else ""
    if not apart(own.at, ahead.at):
        return f"{same}a tie in speed within the errors; behind in accuracy or memory"
    return f"{same}{own.at.rate / ahead.at.rate:.2f} times the speed of {ahead.option.name} there"


def relax(asked: Asked, sweep: Sweeps) -> Iterator[str]:
    """The least that each limit must move for one user."""
    for word, limit, name in (("ttft", asked.ttft, "first"), ("tpot", asked.tpot, "step")):
        times = [
            (value, field.option.name, field.places[0].size)
            for field in sweep.fields
            if field.places and (value := getattr(field.places[0], name)) is not None
        ]
        if limit is not None and times and min(times)[0] > limit:
            value, recipe, load = min(times)
            yield (
                f"--{word}: at least {value * 1e3:.3g} ms ({recipe}, {load} in flight, p90) instead of "
                f"{limit * 1e3:.3g} ms."
            )
