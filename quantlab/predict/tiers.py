"""The tiers, best first. An answer names its tier and basis; no answer is a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from quantlab.predict.cells import Cell, Point, Prediction, Tier, Wanted
from quantlab.predict.fit import LAYER_STEP, LEAST_ERROR, Coefficients, Fit, fit, is_server

TRANSFER = math.log(1.4)
"""Carried to another data-centre GPU, a fit was within x0.7 to x1.4 (llama 8B/70B on H100, H200, B200)."""
ONE_GROUP = math.log(1.9)
"""A fit to one model on one GPU cannot tell what belongs to the model: 15 cells of 1B predicted from 3B on the same
H100 were up to 1.9 times too fast."""
EFFICIENCY = (0.65, 0.5)
"""Share of bandwidth and of operations that server engines reach, from the literature; 9 sets: x0.55 to x1.7 around
it."""
ROOFLINE = {True: (0.55, 1.7), False: (0.28, 0.8)}
"""Server engine or not -> band on tokens a second; client engines were 1.3 to 3.5 times slower than the roofline."""
INT4_ROOFLINE = (0.45, 1.55)
"""INT4 kernels against extrapolated ones, 40 cases on H100 and H200."""
SMALL_STEP, SMALL_BAND = 3e-3, 0.5
"""Steps under 3 ms are mostly host: the lower end widens to this."""
INNER = 1.5
"""The largest error of two or three inner batches covers 67 to 75 % alone. Without inner batches: as TRANSFER."""
FOUR_BIT = math.log(1.6)
"""4-bit kernels change their way of working with the batch: a straight line from 1 to 64 was 35 to 49 % too fast at 8
on NVIDIA's H200 tables, after which this was chosen."""
UNCALIBRATED_GAP = math.log(1.25)
"""Predicted speeds closer than this do not rank precisions: the sign was right in 50 to 90 % of pairs."""

SHARED: tuple[Tier, ...] = ("transfer", "roofline")
"""Tiers whose error is mostly the GPU's and the engine's: two precisions share it, so their ratio is surer than
each."""


def predict(wanted: Wanted, cells: Sequence[Cell]) -> Prediction | str:
    """The best answer that the cells give.

    Args:
        wanted: the cell asked about.
        cells: all that is known; other engines and precisions are ignored.

    Returns:
        A prediction, or a sentence why there is none.
    """
    same = [cell for cell in cells if (cell.engine, cell.format) == (wanted.engine, wanted.format) and cell.sound]
    own = [cell for cell in same if cell.group == wanted.group]
    if (found := _measured(wanted, own)) is not None:
        return found
    line = _between(wanted, own)
    why = []
    for name, known in (("fit", own), ("transfer", same)):
        fitted = fit(known, by_group=name == "transfer")
        said = fitted if isinstance(fitted, str) else fitted.outside(wanted.point, wanted.work)
        if not isinstance(fitted, str) and not said:
            made = _fitted(wanted, fitted, "fit" if name == "fit" else "transfer")
            return line if line is not None and line.spread <= made.spread else made
        why.append(said)
    if line is not None:
        return line
    rough = _roofline(wanted)
    return rough if isinstance(rough, Prediction) else f"{why[0]} {rough}"


def differ(one: Prediction, other: Prediction) -> bool:
    """Do two speeds differ by more than their errors? Otherwise they are a tie."""
    if not (one.rankable and other.rankable):
        return False
    gap = abs(math.log(one.tokens_per_second / other.tokens_per_second))
    if one.tier == other.tier and one.tier in SHARED:
        return gap > UNCALIBRATED_GAP
    near = {one.tier, other.tier} <= {"measured", "interpolated"}
    least = LEAST_ERROR if near else UNCALIBRATED_GAP
    return gap > max(least, math.hypot(one.spread, other.spread))


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


def _between(wanted: Wanted, own: Sequence[Cell]) -> Prediction | None:
    """On a straight line of time over batch, as the model has it, between the nearest batches at the same lengths."""
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
    blind = FOUR_BIT if wanted.format.startswith(("int4", "w4")) else TRANSFER
    width = max([LEAST_ERROR, *(INNER * abs(each) for each in errors)]) if errors else blind
    seconds, step, first = _interpolate(line, max(below), min(above), wanted.point.batch)
    tokens = wanted.point.batch * wanted.point.osl
    basis = f"between batch {max(below)} and {min(above)} at the same lengths"
    if errors:
        basis += f"; leaving inner batches out errs by up to {100 * math.expm1(max(map(abs, errors))):.0f} %"
    return _around(tokens / seconds, (math.exp(-width), math.exp(width)), "interpolated", basis, step, first)


def _fitted(wanted: Wanted, fitted: Fit, tier: Tier) -> Prediction:
    seconds = fitted.coefficients.seconds(wanted.work, wanted.point)
    least = TRANSFER if fitted.by_group else ONE_GROUP
    width = fitted.half_width if tier == "fit" else max(fitted.half_width, least)
    basis = fitted.said if tier == "fit" else f"{fitted.said}, carried to {wanted.group}"
    return _around(
        wanted.point.batch * wanted.point.osl / seconds,
        (math.exp(-width), math.exp(width)),
        tier,
        basis,
        fitted.coefficients.step_seconds(wanted.work, wanted.point),
        fitted.coefficients.first_seconds(wanted.work, wanted.point),
    )


def _roofline(wanted: Wanted) -> Prediction | str:
    """Data sheet and literature. An upper bound on confidence, not a measurement."""
    if not wanted.work.flops:
        return "And the data sheet gives no operations a second for this format, so there is no roofline either."
    memory, compute = EFFICIENCY
    server = is_server(wanted.engine)
    rates = Coefficients(LAYER_STEP if server else 0.0, 0.0, 1 / memory, 1 / compute, 0.0, 1 / compute)
    step = rates.step_seconds(wanted.work, wanted.point)
    seconds = rates.seconds(wanted.work, wanted.point)
    four_bit = wanted.format.startswith("int4")
    low, high = INT4_ROOFLINE if four_bit and server else ROOFLINE[server]
    if step < SMALL_STEP:
        low = min(low, SMALL_BAND)
    return _around(
        wanted.point.batch * wanted.point.osl / seconds,
        (low, high),
        "roofline",
        f"data sheet at {memory:.0%} of bandwidth and {compute:.0%} of operations (literature), x{low:g} to x{high:g}",
        step,
        rates.first_seconds(wanted.work, wanted.point),
        rankable=not four_bit,
    )


def _around(
    speed: float,
    band: tuple[float, float],
    tier: Tier,
    basis: str,
    step: float | None,
    first: float | None,
    *,
    rankable: bool = True,
) -> Prediction:
    low, high = speed * band[0], speed * band[1]
    middle = speed if low <= speed <= high else math.sqrt(low * high)
    return Prediction(middle, low, high, tier, "predicted", basis, step, first, rankable)


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


def _lengths(point: Point) -> tuple[int, int]:
    return point.isl, point.osl


def _mean(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return fmean(known) if known else None
