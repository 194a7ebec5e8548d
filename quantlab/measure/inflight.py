"""The concurrency sweep inside the engine: one cell a load, checked, and the knee of the curve.

A cell is the closed loop of loop.py. What is asked of it before it is believed: every request came back with exactly
its length; the load was really kept (computed and waiting requests together are the concurrency, by Little's law from
the engine's own stamps); the repeats agree; real prompts do not fall apart amid as many others. Queueing is not a
fault: it is what saturation is, and the cell says how many requests waited.

Prompts are random and all different, so no prefix cache helps. The time to the first token counts from the moment a
request is sent, waiting included: that is what a user feels.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from functools import partial
from itertools import groupby, pairwise, product

from quantlab.engines.flowing import Flow, InFlight
from quantlab.measure import Bench
from quantlab.measure.doubts import Failed, falls_apart, ordinary_tokens, require_possible, spoken, told_of_memory
from quantlab.measure.loop import Loop, Took, Window
from quantlab.measure.power import Meter
from quantlab.measure.steady import median, percentiles, variation
from quantlab.records import Grid, Knee, LoadCell, Percentiles, Power
from quantlab.score.knee import LEAST_GAIN, Point, knee

KEPT = 0.9
"""Share of the asked concurrency that must have been computed or waiting, on average."""
LEAST_REQUESTS = 8
"""Of one repeat."""


def load_cells(bench: Bench, grid: Grid, fallen: dict[int, str]) -> tuple[LoadCell, ...]:
    """Every load of the grid.

    Args:
        fallen: sequences at once -> why they are not to be believed; what is found here is added.
    """
    shapes = list(product(grid.isl, grid.osl, grid.concurrency))
    cells = []
    for place, (isl, osl, load) in enumerate(shapes):
        bench.reporter.progress("throughput", place, len(shapes), f"{isl} in, {osl} out, {load} in flight")
        make = partial(_cell, bench, grid, isl, osl, load, fallen)
        cells.append(bench.cells.one(("in flight", place), LoadCell, make))
    if shapes:
        bench.reporter.progress("throughput", len(shapes), len(shapes), "")
    return tuple(cells)


def knees(cells: Sequence[LoadCell]) -> tuple[Knee, ...]:
    """What each sweep of two loads or more says; invalid cells say nothing."""
    found = []
    for (isl, osl, mode), group in groupby(cells, key=lambda cell: (cell.isl, cell.osl, cell.mode)):
        valid = [cell for cell in group if cell.valid and cell.tokens_per_second]
        if len(valid) < 2:
            continue
        points = [Point(cell.concurrency, _rate(cell), _latency(cell)) for cell in valid]
        at = knee(points)
        waited = min((cell.concurrency for cell in valid if cell.saturated), default=None)
        more = f"; requests waited in the engine's queue from {waited} in flight on" if waited else ""
        found.append(
            Knee(
                isl=isl,
                osl=osl,
                mode=mode,
                concurrency=at.concurrency,
                saturated=waited,
                least_gain=LEAST_GAIN,
                text=at.text + more,
            )
        )
    return tuple(found)


def _rate(cell: LoadCell) -> float:
    assert cell.tokens_per_second is not None
    return cell.tokens_per_second.value


def _latency(cell: LoadCell) -> float:
    """Seconds of a request: its median, or what Little's law says where nobody kept them."""
    return cell.latency.p50 if cell.latency else cell.concurrency * cell.osl / _rate(cell)


def _cell(bench: Bench, grid: Grid, isl: int, osl: int, load: int, fallen: dict[int, str]) -> LoadCell:
    if load not in fallen and isinstance(bench.session, InFlight):
        fallen[load] = falls_apart(bench, load)
    try:
        require_possible(bench, isl, osl, fallen.get(load, ""))
        if not isinstance(bench.session, InFlight):
            raise Failed(f"engine {bench.spec.engine} serves static batches only: no request joins a running one")
        windows, power = _measured(bench, bench.session.flow(), grid, isl, osl, load)
        _require_kept(windows, load)
        varies = _variation(windows)
        if varies is not None and varies > grid.max_variation:
            raise Failed(f"not steady: the repeats vary by {varies:.0%} of their mean")
    except Failed as failed:
        return LoadCell(isl=isl, osl=osl, concurrency=load, mode="offline", valid=False, reason=str(failed))
    return _summary(bench, isl, osl, load, windows, power)


def _measured(bench: Bench, flow: Flow, grid: Grid, isl: int, osl: int, load: int) -> tuple[list[Window], Power | None]:
    draw = random.Random(f"{bench.spec.seed}/{isl}/{osl}/{load} in flight")
    vocabulary, config = ordinary_tokens(bench.tokenizer), bench.spec.config

    loop = Loop(flow, partial(spoken, draw, vocabulary, isl), load, osl)
    try:
        with told_of_memory(f"out of memory with {load} requests in flight"):
            loop.warm(grid.warmup)
            with Meter(config.tensor_parallel * config.pipeline_parallel) as meter:
                windows = [loop.window(max(LEAST_REQUESTS, grid.waves * load)) for _ in range(grid.repeats)]
    except ValueError as error:
        raise Failed(str(error)) from error
    finally:
        flow.leave()
    return windows, meter.power(sum(one.tokens for window in windows for one in window.took))


def _require_kept(windows: Sequence[Window], load: int) -> None:
    held = statistics.mean(window.computed + window.waiting for window in windows)
    if held < KEPT * load:
        raise Failed(f"{held:.1f} requests were in flight on average, {load} were asked")


def _variation(windows: Sequence[Window]) -> float | None:
    return variation([window.tokens_per_second for window in windows])


def _summary(bench: Bench, isl: int, osl: int, load: int, windows: Sequence[Window], power: Power | None) -> LoadCell:
    number = partial(median, numerics=bench.spec.artifact.numerics)
    took = [one for window in windows for one in window.took]
    return LoadCell(
        isl=isl,
        osl=osl,
        concurrency=load,
        mode="offline",
        requests=len(took),
        computed=statistics.mean(window.computed for window in windows),
        waiting=statistics.mean(window.waiting for window in windows),
        tokens_per_second=number([window.tokens_per_second for window in windows], "tokens/s"),
        requests_per_second=number([window.rate for window in windows], "requests/s"),
        ttft=percentiles([one.first - one.entered for one in took]),
        tpot=percentiles([(one.last - one.first) / (osl - 1) for one in took]) if osl > 1 else None,
        itl=_itl(took),
        latency=percentiles([one.last - one.entered for one in took]),
        variation=_variation(windows),
        power=power,
    )


def _itl(took: Sequence[Took]) -> Percentiles | None:
    between = [after - before for one in took for before, after in pairwise(one.arrivals)]
    return percentiles(between) if between else None
