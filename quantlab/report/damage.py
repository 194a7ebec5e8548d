"""Where a precision hurts: the damage of every layer as small charts over depth, one for each kind of layer.

All charts of a recipe share one scale from zero, so that a tall bar in one is a tall bar in another. Which layers are
worst is said in words on every face: the chart shows a pattern (the first layers, every down_proj), the words decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantlab.records import Candidate, LayerDamage, Run
from quantlab.report import figures
from quantlab.report.scale import Scale, Tick, ticks

HEIGHT = 44
"""Height of one kind's chart in pixels."""


@dataclass(frozen=True)
class Bar:
    """One layer; `x` and `width` in percent of the width, `y` and `weight_y` in pixels from above."""

    x: float
    width: float
    y: float
    weight_y: float
    """Where the error of the weights alone is marked."""
    tip: str


@dataclass(frozen=True)
class Track:
    """All layers of one kind, over depth."""

    kind: str
    bars: tuple[Bar, ...]
    worst: str


@dataclass(frozen=True)
class Chart:
    """One recipe."""

    candidate: Candidate
    series: int
    layers: tuple[LayerDamage, ...]
    """The most damaged first."""
    tracks: tuple[Track, ...]
    depths: tuple[Tick, ...]
    rules: tuple[Tick, ...]
    """Lines of equal error."""
    probed: bool
    """The bars are errors of outputs; of weights where no output is known."""

    @property
    def name(self) -> str:
        return self.candidate.recipe_name


def of(candidate: Candidate) -> tuple[LayerDamage, ...]:
    """The damaged layers of a recipe, worst first."""
    found = candidate.verification.damage if candidate.verification else ()
    return tuple(sorted(found, key=lambda one: -one.error))


def charts(run: Run) -> list[Chart]:
    """A chart for every recipe whose damage was located."""
    return [_chart(each, place, found) for place, each in enumerate(run.candidates) if (found := of(each))]


def words(candidate: Candidate, most: int = 3) -> str:
    """The most damaged layers in words; empty where nothing was located."""
    found = of(candidate)
    shown = ", ".join(f"{short(one.layer)} {figures.percent(one.error)} %" for one in found[:most])
    what = "output" if found and found[0].output_error is not None else "weights"
    return f"most damaged layers ({what} error): {shown}" if shown else ""


def short(layer: str) -> str:
    """A layer's name without what all names begin with."""
    return layer.removeprefix("model.").removeprefix("layers.")


def facts(one: LayerDamage) -> list[tuple[str, str]]:
    """What is known of a layer, by name."""
    return [
        ("output error, %", figures.percent(one.output_error, 2)),
        ("weight error, %", figures.percent(one.weight_error, 2)),
        ("outlier", figures.times(one.outlier)),
        ("channel", figures.NOTHING if one.outlier_channel is None else str(one.outlier_channel)),
        ("bits", figures.fixed(one.bits, 2)),
        ("weights", figures.fixed(one.weights, 0)),
    ]


def _chart(candidate: Candidate, series: int, found: tuple[LayerDamage, ...]) -> Chart:
    count = 1 + max((one.depth for one in found if one.depth is not None), default=0)
    high = max(found[0].error, *(one.weight_error for one in found)) or 1.0
    down = Scale(0, 1.1 * high, HEIGHT, 0)
    kinds: dict[str, list[LayerDamage]] = {}
    for one in candidate.verification.damage if candidate.verification else ():
        if one.depth is not None:
            kinds.setdefault(one.kind, []).append(one)
    return Chart(
        candidate=candidate,
        series=series,
        layers=found,
        tracks=tuple(_track(kind, layers, count, down) for kind, layers in kinds.items()),
        depths=_depths(count),
        rules=tuple(Tick(down(value), f"{100 * value:g} %") for value in ticks(0, 1.1 * high, 1) if value > 0),
        probed=found[0].output_error is not None,
    )


def _track(kind: str, layers: Sequence[LayerDamage], count: int, down: Scale) -> Track:
    worst = max(layers, key=lambda one: one.error)
    return Track(
        kind=kind,
        bars=tuple(
            Bar(
                x=round(100 * ((one.depth or 0) + 0.1) / count, 2),
                width=round(80 / count, 2),
                y=down(one.error),
                weight_y=down(one.weight_error),
                tip="\n".join([short(one.layer), *(f"{name}: {value}" for name, value in facts(one))]),
            )
            for one in layers
        ),
        worst=f"{figures.percent(worst.error)} % at {worst.depth}",
    )


def _depths(count: int) -> tuple[Tick, ...]:
    step = max(1, round(count / 6))
    return tuple(Tick(round(100 * (place + 0.5) / count, 2), str(place)) for place in range(0, count, step))
