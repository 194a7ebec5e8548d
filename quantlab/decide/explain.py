"""A recommendation as text: the answer first, then a line a recipe, then how sure and what next."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from quantlab.decide.answer import Carried, Recommendation, Row, Speed
from quantlab.decide.options import BASELINE
from quantlab.serving import gb


def how_stable(found: Recommendation) -> str:
    """How often the choice is the same, and what these draws know nothing of."""
    said = f"Drawn again from its errors, the choice is the same in {found.stability:.0%} of cases"
    unshown = [row.recipe for row in found.rows if row.status in ("chosen", "runner-up") and row.drop is None]
    return (
        f"{said}, if the accuracy of {' and '.join(unshown)}, which nobody has shown, holds." if unshown else f"{said}."
    )


def explain(found: Recommendation) -> list[str]:
    """Lines for a terminal of 120 columns."""
    lines = [found.sentence, f"Ranked by: {found.ranked_by}. Speeds of static batches: {found.workload}.", ""]
    for row in found.rows:
        lines += _row(row)
    lines += ["", *_by_batch(found), *(each.sentence for each in found.crossovers)]
    if found.stability is None and found.choice:
        lines.append(f"Nothing but {found.choice} could be chosen, so its speed decided nothing.")
    elif found.stability is not None:
        lines.append(how_stable(found))
    for title, items in (
        ("To relax", found.relax),
        ("Missing", found.missing),
        ("Next", found.next_steps),
        ("Assumed", found.assumptions),
    ):
        lines += [f"{title}: {each}" for each in items]
    return lines


def _row(row: Row) -> Iterator[str]:
    yield f"{row.recipe}: {row.status}: {row.why}"
    if row.at is not None:
        yield f"    static batch: {_speed(row.at)}"
    if row.load is not None:
        yield f"    ranked: {_load(row.load)}"
    yield from (f"    {each.sentence}" for each in row.users)
    figures = []
    if row.memory_bytes and row.weights_bytes:
        figures.append(f"{gb(row.memory_bytes)} of GPU memory, {gb(row.weights_bytes)} of it weights")
    if row.drop is not None and row.accuracy != BASELINE.source:
        interval = f" [{row.drop_low:.2f}, {row.drop_high:.2f}]" if row.drop_low != row.drop_high else ""
        figures.append(f"loses {row.drop:.2f}{interval} points")
    if row.joules_per_million:
        figures.append(f"{'' if row.energy_measured else 'at most '}{row.joules_per_million / 3.6e6:.3g} kWh")
    if row.dollars_per_million:
        figures.append(f"${row.dollars_per_million:.3g} a million tokens")
    if figures:
        yield f"    {'; '.join(figures)}"


def _load(load: Carried) -> str:
    times = [("first", load.ttft_p90), ("a token", load.tpot_p90)]
    said = [f"{name} {_time(value)}" for name, value in times if value is not None]
    paid = f", ${load.dollars_per_user_hour:.3g} a user and hour" if load.dollars_per_user_hour else ""
    return (
        f"{load.users} users, {load.users_per_gpu:.4g} a GPU{paid}: {load.tokens_per_second:,.0f} tokens/s "
        f"[{load.low:,.0f}, {load.high:,.0f}]{', p90 ' + ', '.join(said) if said else ''}"
    )


def _speed(speed: Speed) -> str:
    times = [f"{_time(speed.step_seconds)} a token"] if speed.step_seconds else []
    times += [f"first after {_time(speed.first_seconds)}"] if speed.first_seconds else []
    return (
        f"{speed.tokens_per_second:,.0f} tokens/s [{speed.low:,.0f}, {speed.high:,.0f}] at batch {speed.batch}"
        f"{', ' + ', '.join(times) if times else ''}; {speed.provenance} ({speed.tier}: {speed.basis})"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _by_batch(found: Recommendation) -> Iterator[str]:
    """One line for neighbouring batches with the same answer."""
    for (recipe, ties), same in groupby(found.by_batch, key=lambda each: (each.recipe, each.ties)):
        batches = [each.batch for each in same]
        ends = f"{batches[0]}" if len(batches) == 1 else f"{batches[0]} to {batches[-1]}"
        tie = f" (tied with {', '.join(ties)})" if ties else ""
        yield f"Static batch {ends}: {recipe}{tie}"
