"""What a repair found: bits against KL as a chart and a table, and the layers that are kept; on a screen, as a page.

The chart's axes both start at zero where they are read as amounts: KL does; bits begin at the recipe's own, because the
question is what each additional bit buys. A dashed line marks half of the recipe's KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import wrap
from typing import TYPE_CHECKING

from quantlab.records.repair import CurvePoint, GroupCost, Repair
from quantlab.report import figures
from quantlab.report.damage import short
from quantlab.report.scale import Scale, Tick, ticks

if TYPE_CHECKING:
    from rich.console import Console

HEIGHT = 260
"""Height of the plot area in pixels."""
MOST = 12
"""Groups named on the screen."""


@dataclass(frozen=True)
class Spot:
    """One point; `x` in percent of the width, the others in pixels from above."""

    point: CurvePoint
    x: float
    y: float
    top: float
    bottom: float
    tip: str


@dataclass(frozen=True)
class Curve:
    """All points in one panel."""

    spots: tuple[Spot, ...]
    lines: tuple[tuple[Spot, Spot], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    half: float
    height: int = HEIGHT


def curve(found: Repair) -> Curve | None:
    """The chart; None where fewer than two points were measured."""
    points = [each for each in found.points if each.fidelity is not None]
    if len(points) < 2:
        return None
    high = 1.12 * max(_ends(each)[1] for each in points)
    low_bits, high_bits = points[0].bits, points[-1].bits
    room = 0.04 * (high_bits - low_bits)
    across, down = Scale(low_bits - room, high_bits + room, 0, 100), Scale(0, high, HEIGHT, 0)
    spots = tuple(_spot(found, each, across, down) for each in points)
    return Curve(
        spots=spots,
        lines=tuple(pairwise(spots)),
        x_ticks=tuple(Tick(across(x), f"{x:g}") for x in ticks(low_bits - room, high_bits + room, 6)),
        y_ticks=tuple(Tick(down(y), f"{y:g}") for y in ticks(0, high, 5)),
        half=down(kl(points[0]) / 2),
    )


def _spot(found: Repair, point: CurvePoint, across: Scale, down: Scale) -> Spot:
    low, high = _ends(point)
    tip = "\n".join([point.name, *(f"{name}: {value}" for name, value in facts(found, point))])
    return Spot(point, across(point.bits), down(kl(point)), down(high), down(low), tip)


def _ends(point: CurvePoint) -> tuple[float, float]:
    assert point.fidelity is not None
    number = point.fidelity.kl
    low = number.low if number.low is not None else number.value
    high = number.high if number.high is not None else number.value
    return max(0.0, low), high


def kl(point: CurvePoint) -> float:
    """Measured, in nats."""
    return point.fidelity.kl.value if point.fidelity else float("nan")


def facts(found: Repair, point: CurvePoint) -> list[tuple[str, str]]:
    """A point's figures by name."""
    fidelity, first = point.fidelity, found.points[0]
    part = 1 - kl(point) / kl(first) if fidelity and kl(first) > 0 else None
    return [
        ("bits a weight", figures.fixed(point.bits, 2)),
        ("layers kept", str(point.layers)),
        ("KL, nats", figures.mean(fidelity.kl) if fidelity else figures.NOTHING),
        ("recovered, %", figures.percent(part, 0)),
        ("top-1, %", figures.percent(fidelity.top1.value if fidelity else None)),
        ("sum of shares, predicted", figures.three(point.predicted)),
    ]


def kept(found: Repair) -> list[tuple[GroupCost, str]]:
    """The groups that the new recipe keeps and their format, those that caused most first."""
    chosen = next((each for each in found.points if each.chosen), None)
    formats = {name: word for word, names in (chosen.kept.items() if chosen else ()) for name in names}
    groups = [(each, formats[each.layers[0]]) for each in found.sensitivity.groups if each.layers[0] in formats]
    return sorted(groups, key=lambda each: -cost(found, each[0]))


def cost(found: Repair, group: GroupCost) -> float:
    """What a group causes in the recipe's own format, in nats."""
    return group.kl.get(found.run.candidates[1].recipe.format, 0.0)


def name(group: GroupCost) -> str:
    """A group in words: "3.self_attn.q_proj, k_proj, v_proj"."""
    first, *rest = group.layers
    return ", ".join([short(first), *(each.rpartition(".")[2] for each in rest)])


def verdict(found: Repair) -> str:
    """What the suite says of the new recipe, beside the old one."""
    before, after = found.run.candidates[1], found.run.candidates[-1]
    words = [f"{each.recipe_name}: {each.verdict.status}, {each.verdict.reason}" for each in (before, after)]
    return "\n".join(words)


def summary(found: Repair) -> str:
    """The answer in one sentence."""
    first, chosen = found.points[0], next(each for each in found.points if each.chosen)
    part = "" if found.recovered is None else f"recovers {100 * found.recovered:.0f} % of the KL that it lost"
    return (
        f"{found.repaired_name} keeps {chosen.layers} of {_all(found)} layers of {found.recipe_name} in more bits, "
        f"takes {chosen.bits:.2f} bits a weight (+{chosen.bits - first.bits:.2f}) and {part}."
    )


def _all(found: Repair) -> int:
    return sum(len(group.layers) for group in found.sensitivity.groups)


def exceptions(found: Repair) -> list[str]:
    """Where more bits gave more KL: the curve's steps upwards, each with whether they are within the error."""
    said = []
    for before, after in pairwise(found.points):
        if before.fidelity and after.fidelity and kl(after) > kl(before):
            errors = [each.fidelity.kl.standard_error or 0.0 for each in (before, after) if each.fidelity]
            rise, noise = kl(after) - kl(before), sum(error**2 for error in errors) ** 0.5
            within = "within" if rise <= 2 * noise else "beyond"
            said.append(
                f"From {before.name} to {after.name} KL rises by {rise:.4f}, {within} twice its error of {noise:.4f}."
            )
    return said


def terminal(found: Repair, console: Console) -> None:
    """Print it."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    rows = [facts(found, point) for point in found.points]
    table.add_column(no_wrap=True)
    for column in zip(*rows, strict=True):
        table.add_column(_folded(column[0][0], [value for _, value in column]), justify="right", no_wrap=True)
    for point, row in zip(found.points, rows, strict=True):
        mark = _folded(f"{point.name} *" if point.chosen else point.name)
        table.add_row(mark, *(value for _, value in row), style="bold" if point.chosen else None)
    console.print(f"[bold]Repair of {found.recipe_name}[/bold] on {found.model}, budget {found.budget:g} bits a weight")
    console.print(table)
    groups = kept(found)
    listed = "; ".join(f"{name(group)} ({word}, {cost(found, group):.4f})" for group, word in groups[:MOST])
    more = f"; and {len(groups) - MOST} more groups" if len(groups) > MOST else ""
    console.print(f"Kept, with the nats that each caused: {listed}{more}.", markup=False, highlight=False)
    for text in (*exceptions(found), summary(found), verdict(found), f"Recipe: {found.recipe_file} (* in the table)."):
        console.print(text, markup=False, highlight=False)


def _folded(words: str, beside: Sequence[str] = ()) -> str:
    """As narrow as its longest word, or what stands in the same column. Rich would break words and figures."""
    width = max((len(each) for each in (*words.split(), *beside)), default=1)
    return "\n".join(wrap(words, width, break_long_words=False, break_on_hyphens=False))


def to_html(found: Repair) -> str:
    """One self-contained page."""
    from quantlab.report import repair as face
    from quantlab.report.html import page

    return page("repair.html", found=found, chart=curve(found), groups=kept(found), face=face, run=found.run)
