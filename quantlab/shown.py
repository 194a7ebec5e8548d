"""How plans and recommendations show themselves in a notebook: small tables of HTML, the answer first.

Every word is escaped, because model names and files are other people's. No colour is set: Jupyter's light and dark
themes give theirs. What is behind a click is still in the page, where a search finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantlab.decide import Recommendation, Row
    from quantlab.pipeline import Planned
    from quantlab.preflight import GpuPlan

Cells = Sequence[str]
CELL = "vertical-align:top;padding:2px 8px;text-align:"
LEFT, RIGHT = f"{CELL}left", f"{CELL}right;white-space:nowrap"


def gpu_plans(plans: Sequence[GpuPlan]) -> str:
    """A row a precision: does it fit, what it takes, who serves it; the arithmetic behind a click."""
    from quantlab.preflight import explain
    from quantlab.serving import gb

    rows = []
    for each in plans:
        held = each.footprint
        served = [f"{one.engine} {one.line}".strip() for one in each.engines if not one.refusal]
        figures = (gb(held.weights), gb(held.free)) if held else ("", "")
        batch = "" if each.largest_batch is None else f"{each.largest_batch:,}"
        rows.append((each.recipe, "yes" if each.fits else "no", *figures, batch, ", ".join(served) or "none"))
    heads = ("recipe", "fits", "weights", "left for the cache", "largest batch", "served by")
    title = f"{plans[0].model} on {plans[0].tp} x {plans[0].gpu}, each GPU" if plans else "nothing was asked"
    return _block(
        _bold(title),
        table(heads, rows, numbers=(2, 3, 4)),
        *(fold(f"{each.recipe}: {each.verdict}", explain(each)) for each in plans),
    )


def planned(plan: Planned) -> str:
    """A row a recipe: what it takes on this machine; the arithmetic behind a click."""
    from quantlab.plans import explain
    from quantlab.serving import gb

    def size(value: int | None) -> str:
        return "" if value is None else gb(value)

    rows = [
        (
            name,
            "no" if each.refusals else "yes",
            size(each.checkpoint_bytes),
            size(each.calibration_peak_bytes),
            size(each.disk_bytes),
            "" if each.seconds is None else f"{each.seconds:,.0f} s",
            str(each.group_size or ""),
        )
        for name, each in plan.plans
    ]
    heads = ("recipe", "can run", "checkpoint", "memory", "disk", "to calibrate, about", "group size")
    where = "weights are here" if plan.weights else "weights to be fetched"
    return _block(
        _bold(f"{plan.resolved.model.word}: {where}"),
        table(heads, rows, numbers=(2, 3, 4, 5, 6)),
        *(fold(name, explain(each)) for name, each in plan.plans),
    )


def recommendation(found: Recommendation) -> str:
    """The answer, a row a precision with what its speed stands on, who wins at which batch, and what is not known."""
    from quantlab.decide.explain import how_stable

    spoken = f"Ranked by: {found.ranked_by}. Speeds of static batches: {found.workload}."
    loads = [_load(row) for row in found.rows if row.load]
    sure = [] if found.stability is None else [how_stable(found)]
    heads = ("recipe", "", "tokens/s [80 %]", "batch", "known by", "memory", "points lost", "$ / million", "why")
    return _block(
        _bold(found.sentence),
        _small(f"{found.engine} on {found.tp} x {found.gpu}, for {found.objective}. {spoken}"),
        table(heads, [_row(each) for each in found.rows], numbers=(2, 3, 5, 6, 7)),
        table(("recipe", "users", "tokens/s", "$ / user and hour"), loads, numbers=(1, 2, 3)) if loads else "",
        table(("batch", "ahead", "tied with it"), _by_batch(found)) if found.by_batch else "",
        *(_small(each) for each in (*(pair.sentence for pair in found.crossovers), *sure)),
        *(
            fold(title, items, opened=title == "To relax")
            for title, items in (
                ("To relax", found.relax),
                ("Not known", found.missing),
                ("Measure next", found.next_steps),
                ("Assumed", found.assumptions),
            )
            if items
        ),
    )


def _row(row: Row) -> Cells:
    from quantlab.serving import gb

    at = row.at
    drop = "not shown" if row.drop is None else f"{row.drop:.2f}"
    if row.drop is not None and row.drop_low is not None and row.drop_high is not None and row.drop_low < row.drop_high:
        drop += f" [{row.drop_low:.2f}, {row.drop_high:.2f}]"
    return (
        row.recipe,
        row.status,
        f"{at.tokens_per_second:,.0f} [{at.low:,.0f}, {at.high:,.0f}]" if at else "",
        f"{at.batch:,}" if at else "",
        f"{at.provenance} ({at.tier})" if at else "",
        gb(row.memory_bytes) if row.memory_bytes else "",
        drop,
        f"{row.dollars_per_million:.3g}" if row.dollars_per_million else "",
        row.why,
    )


def _load(row: Row) -> Cells:
    found = row.load
    assert found is not None, "asked for by the caller"
    rent = f"{found.dollars_per_user_hour:.3g}" if found.dollars_per_user_hour else ""
    return row.recipe, f"{found.users:,}", f"{found.tokens_per_second:,.0f}", rent


def _by_batch(found: Recommendation) -> list[Cells]:
    """A row a run of batches with the same winner and the same ties."""
    rows: list[Cells] = []
    for (recipe, ties), group in groupby(found.by_batch, key=lambda each: (each.recipe, each.ties)):
        batches = [each.batch for each in group]
        span = f"{batches[0]:,}" if len(batches) == 1 else f"{batches[0]:,} to {batches[-1]:,}"
        rows.append((span, recipe, ", ".join(ties) or "-"))
    return rows


def table(heads: Cells, rows: Iterable[Cells], numbers: Sequence[int] = ()) -> str:
    """A table; the columns `numbers` stand to the right."""

    def line(tag: str, cells: Cells) -> str:
        return "".join(
            f'<{tag} style="{RIGHT if place in numbers else LEFT}">{escape(cell)}</{tag}>'
            for place, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{line('th', heads)}</tr></thead><tbody>{body}</tbody></table>"


def fold(title: str, lines: Iterable[str], *, opened: bool = False) -> str:
    """Lines behind a click on their title."""
    items = "".join(f"<li>{escape(each)}</li>" for each in lines)
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary><ul>{items}</ul></details>"


def _bold(text: str) -> str:
    return f"<p><strong>{escape(text)}</strong></p>"


def _small(text: str) -> str:
    return f'<p style="margin:2px 0">{escape(text)}</p>'


def _block(*parts: str) -> str:
    return f'<div style="overflow-x:auto">{"".join(parts)}</div>'
