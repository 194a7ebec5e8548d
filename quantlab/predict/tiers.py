"""The tiers, best first. An answer names its tier and basis; no answer is a sentence.

How far a tier may be off is data, see bands.py. Of a transfer and a sum of kernels the one with the narrower interval
is taken, as of a fit and a line between two batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from quantlab.predict.bands import LEAST_ERROR, Band, Bands, shipped
from quantlab.predict.cells import Cell, Point, Prediction, Tier, Wanted
from quantlab.predict.fit import LAYER_STEP, Coefficients, Fit, fit, is_four_bit, is_server

EFFICIENCY = (0.65, 0.5)
"""Share of bandwidth and of operations that server engines reach, from the literature."""
SMALL_STEP = 3e-3
"""Steps under 3 ms are mostly host."""
INNER = 1.5
"""The largest error of two or three inner batches covers 67 to 75 % alone. Without inner batches: a band."""
UNCALIBRATED_GAP = math.log(1.25)
"""Predicted speeds closer than this do not rank precisions: the sign was right in 50 to 90 % of pairs."""

SHARED: tuple[Tier, ...] = ("transfer", "kernels", "roofline")
"""Tiers whose error is mostly the GPU's and the engine's: two precisions share it, so their ratio is surer than
each."""


def predict(wanted: Wanted, cells: Sequence[Cell], bands: Bands | None = None) -> Prediction | str:
    """The best answer that the cells give.

    Args:
        wanted: the cell asked about.
        cells: all that is known; other engines and precisions are ignored.
        bands: how far each kind of prediction may be off; default: the file that travels along.

    Returns:
        A prediction, or a sentence why there is none.
    """
    said = attempts(wanted, cells, bands)
    for tiers in (("measured",), ("interpolated", "fit"), ("transfer", "kernels"), ("roofline",)):
        found = [each for tier in tiers if isinstance(each := said[tier], Prediction)]
        if found:
            return min(found, key=lambda each: each.spread)
    why = said["fit"], said["roofline"]
    return " ".join(each for each in why if isinstance(each, str))


def attempts(wanted: Wanted, cells: Sequence[Cell], bands: Bands | None = None) -> dict[str, Prediction | str]:
    """Tier -> what it says, whichever is the best; or why it says nothing."""
    bands = shipped() if bands is None else bands
    seeing = bool(wanted.point.images)  # pictures bring an encoder and layers of their own: another line
    alike = [cell for cell in cells if bool(cell.point.images) == seeing and cell.sound]
    same = [cell for cell in alike if (cell.engine, cell.format) == (wanted.engine, wanted.format)]
    own = [cell for cell in same if cell.group == wanted.group]
    near, far = fit(own), fit(same, by_group=True)
    return {
        "measured": _measured(wanted, own) or "not measured.",
        "interpolated": _between(wanted, own, far, bands) or "not between two measured batches.",
        "fit": _fitted(wanted, near, "fit", bands),
        "transfer": _fitted(wanted, far, "transfer", bands),
        "kernels": _kernels(wanted, bands),
        "roofline": _roofline(wanted, bands),
    }


def differ(one: Prediction, other: Prediction) -> bool:
    """Do two speeds differ by more than their errors? Otherwise they are a tie."""
    return abs(math.log(one.tokens_per_second / other.tokens_per_second)) > least_gap(one, other)


def least_gap(one: Prediction, other: Prediction) -> float:
    """How far two speeds must lie apart, in logarithms, to be more than a tie; infinite where one cannot be ranked."""
    if not (one.rankable and other.rankable):
        return math.inf
    if one.tier == other.tier and one.tier in SHARED:
        return UNCALIBRATED_GAP
    near = {one.tier, other.tier} <= {"measured", "interpolated"}
    return max(LEAST_ERROR if near else UNCALIBRATED_GAP, math.hypot(one.spread, other.spread))


def _measured(wanted: Wanted, own: Sequence[Cell]) -> Prediction | None:
    """The mean of the cells at exactly this point; the interval spans their repeats, and at least LEAST_ERROR."""
    exact = [cell for cell in own if cell.point == wanted.point]
    if not exact:
        return None
    middle = math.exp(fmean(math.log(cell.seconds) for cell in exact))
    tokens = wanted.point.batch * wanted.point.osl
    width = max(LEAST_ERROR, *(abs(math.log(end / middle)) for cell in exact for end in (cell.low, cell.high)))
    published = all(cell.provenance == "published" for cell in exact)
    return Prediction(
        tokens / middle,
        tokens / middle * math.exp(-width),
        tokens / middle * math.exp(width),
        "measured",
        "published" if published else "measured",
        f"{len(exact)} cell{'s' if len(exact) > 1 else ''}: {', '.join(sorted({cell.source for cell in exact}))}",
        _mean([cell.step_seconds for cell in exact]) or middle / wanted.point.osl,
        _mean([cell.first_seconds for cell in exact]),
        joules_per_token=_mean([cell.joules_per_token for cell in exact]),
    )


def _between(wanted: Wanted, own: Sequence[Cell], far: Fit | str, bands: Bands) -> Prediction | None:
    """Between the nearest batches at the same lengths: on a straight line of time over batch, as the model has it; for
    four bits along the model's own bend, which other models with this engine have shown."""
    line = _by_batch([cell for cell in own if _lengths(cell.point) == _lengths(wanted.point)])
    below = [batch for batch in line if batch < wanted.point.batch]
    above = [batch for batch in line if batch > wanted.point.batch]
    if not below or not above:
        return None
    batches = sorted(line)
    errors = [
        math.log(_interpolate(line, left, right, middle)[0] / line[middle][0])
        for left, middle, right in zip(batches, batches[1:], batches[2:], strict=False)
    ]
    seconds, step, first = _interpolate(line, max(below), min(above), wanted.point.batch)
    tokens = wanted.point.batch * wanted.point.osl
    basis = f"between batch {max(below)} and {min(above)} at the same lengths"
    if errors:
        width = max([LEAST_ERROR, *(INNER * abs(each) for each in errors)])
        basis += f"; leaving inner batches out errs by up to {100 * math.expm1(max(map(abs, errors))):.0f} %"
        return _around(tokens / seconds, math.exp(-width), math.exp(width), "interpolated", basis, step, first)
    name = "blind-4bit" if is_four_bit(wanted.format) else "blind"
    if is_four_bit(wanted.format) and isinstance(far, Fit) and far.coefficients.unpack:
        bend = _bend(wanted, far.coefficients, line, max(below), min(above))
        seconds, step = seconds * bend, step * bend if step else None
        basis += f", bent by {bend:.2f} as the model of other cells bends"
    return _banded(tokens / seconds, bands, name, "interpolated", basis, step, first)


def _bend(
    wanted: Wanted,
    model: Coefficients,
    line: dict[int, tuple[float, float | None, float | None]],
    left: int,
    right: int,
) -> float:
    """The model's time at the batch, over a straight line between the model's times at both ends; the residuals at the
    ends are carried along."""
    ends = {batch: model.seconds(wanted.work, replace(wanted.point, batch=batch)) for batch in (left, right)}
    here = model.seconds(wanted.work, wanted.point)
    share = (wanted.point.batch - left) / (right - left)
    logs = [math.log(line[batch][0] / ends[batch]) for batch in (left, right)]
    at = math.log(wanted.point.batch / left) / math.log(right / left)
    bent = here * math.exp(logs[0] + at * (logs[1] - logs[0]))
    return bent / (line[left][0] + share * (line[right][0] - line[left][0]))


def _fitted(wanted: Wanted, fitted: Fit | str, tier: Tier, bands: Bands) -> Prediction | str:
    if isinstance(fitted, str):
        return fitted
    if said := fitted.outside(wanted.point, wanted.work):
        return said
    model = fitted.coefficients
    step, first = model.step_seconds(wanted.work, wanted.point), model.first_seconds(wanted.work, wanted.point)
    speed = wanted.point.batch * wanted.point.osl / model.seconds(wanted.work, wanted.point)
    own = (math.exp(-fitted.half_width), math.exp(fitted.half_width))
    if tier == "fit":
        return _around(speed, *own, tier, fitted.said, step, first)
    name = "transfer" if fitted.by_group else "one-group"
    band = bands[name]
    low, high = _talked(wanted, speed, min(own[0], band.low), max(own[1], band.high))
    return _around(speed, low, high, tier, f"{fitted.said}, carried to {wanted.group}", step, first, band=name)


def _kernels(wanted: Wanted, bands: Bands) -> Prediction | str:
    """The sum of kernels that somebody timed on this GPU; without the host, which a small step mostly is."""
    if wanted.kernels is None:
        return "no tables of kernels were asked."
    found = wanted.kernels
    name = "kernels-small" if found.step_seconds < SMALL_STEP else "kernels"
    seconds = found.first_seconds + max(wanted.point.osl - 1, 1) * found.step_seconds
    speed = wanted.point.batch * wanted.point.osl / seconds
    band = bands[name]
    basis = f"{found.source}; {_said(band)}"
    return _banded(speed, bands, name, "kernels", basis, found.step_seconds, found.first_seconds)


def _roofline(wanted: Wanted, bands: Bands) -> Prediction | str:
    """Data sheet and literature. An upper bound on confidence, not a measurement."""
    if not wanted.work.flops:
        return "And the data sheet gives no operations a second for this format, so there is no roofline either."
    memory, compute = EFFICIENCY
    server, four_bit = is_server(wanted.engine), is_four_bit(wanted.format)
    rates = Coefficients(LAYER_STEP if server else 0.0, 0.0, 1 / memory, 1 / compute, 0.0, 1 / compute)
    step = rates.step_seconds(wanted.work, wanted.point)
    name = "roofline-client" if not server else "roofline-4bit" if four_bit else "roofline-server"
    if name == "roofline-server" and step < SMALL_STEP:
        name = "roofline-small"
    speed = wanted.point.batch * wanted.point.osl / rates.seconds(wanted.work, wanted.point)
    basis = f"data sheet at {memory:.0%} of bandwidth and {compute:.0%} of operations; {_said(bands[name])}"
    low, high = _talked(wanted, speed, bands[name].low, bands[name].high)
    first = rates.first_seconds(wanted.work, wanted.point)
    return _around(speed, low, high, "roofline", basis, step, first, rankable=not four_bit, band=name)


def _talked(wanted: Wanted, speed: float, low: float, high: float) -> tuple[float, float]:
    """A band widened by what the GPUs' talk may take more or less."""
    link = wanted.work.link
    if link is None:
        return low, high
    talk = wanted.work.whole_talk_seconds(wanted.point)
    share = talk * speed / (wanted.point.batch * wanted.point.osl)
    return low / (1 + share * (link.slack - 1)), high / (1 - share * (1 - 1 / link.slack))


def _said(band: Band) -> str:
    seen = f"; {band.cells} held-out cells, {band.groups} times a model on a GPU" if band.cells else ""
    return f"x{band.low:.2g} to x{band.high:.2g} ({band.basis}{seen})"


def _banded(
    speed: float, bands: Bands, name: str, tier: Tier, basis: str, step: float | None, first: float | None
) -> Prediction:
    return _around(speed, bands[name].low, bands[name].high, tier, basis, step, first, band=name)


def _around(
    speed: float,
    low: float,
    high: float,
    tier: Tier,
    basis: str,
    step: float | None,
    first: float | None,
    *,
    rankable: bool = True,
    band: str = "",
) -> Prediction:
    """`low` and `high` are factors; where the speed itself is outside, the middle of them is the answer."""
    ends = speed * low, speed * high
    middle = speed if low <= 1 <= high else math.sqrt(ends[0] * ends[1])
    return Prediction(middle, *ends, tier, "predicted", basis, step, first, rankable, band=band)


def _by_batch(cells: Sequence[Cell]) -> dict[int, tuple[float, float | None, float | None]]:
    """Batch -> whole, step and first seconds; means where a batch was measured more than once."""
    found = {}
    for batch in {cell.point.batch for cell in cells}:
        here = [cell for cell in cells if cell.point.batch == batch]
        whole = math.exp(fmean(math.log(cell.seconds) for cell in here))
        found[batch] = whole, _mean([c.step_seconds for c in here]), _mean([c.first_seconds for c in here])
    return found


def _interpolate(
    line: dict[int, tuple[float, float | None, float | None]], left: int, right: int, at: int
) -> tuple[float, float | None, float | None]:
    share = (at - left) / (right - left)
    ends = list(zip(line[left], line[right], strict=True))
    mixed = [low + share * (high - low) if low and high else None for low, high in ends]
    return mixed[0] or math.nan, mixed[1], mixed[2]


def _lengths(point: Point) -> tuple[int, int, int]:
    return point.isl, point.osl, point.images


def _mean(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return fmean(known) if known else None
