"""A grid of throughput cells on one session: prefill and decode apart, with spread, and checked.

Prefill is compute-bound: all input tokens of the batch go through the weights at once. Decode is
bandwidth-bound: each step reads all weights and the whole KV cache for one new token a sequence. One number
for both ("tokens/s") hides which of the two a precision helps, so TTFT and TPOT are kept apart:

    TTFT = seconds until every sequence has its first token          TPOT = (total - TTFT) / (OSL - 1)

and decode is held against the roofline: (weights + KV cache) read a step, over TPOT and the memory's
bandwidth; prefill against the operations it must do (roofline.py).

What makes such numbers lie, and what is done (steady.py): the first run pays for allocation and compilation (warm-up,
not counted, and so is a first counted run that is slower than those after it); one run is an anecdote (median of
repeats, lowest and highest, coefficient of variation); an early end of sequence makes a fast run (lengths are checked);
a scheduler that serves a batch in two waves shows the speed of half the batch (all sequences must have been in flight
at one moment); equal prompts hit a prefix cache (every sequence gets its own random tokens, and every repeat new ones);
a fast kernel may be a wrong one (real prompts are continued amid a full batch, and must not fall apart). A cell that
fails keeps its place, with the reason. Emulated numerics are timed, because the run must work, but labelled; rounded
weights in a 16-bit checkpoint are not timed at all: their speed is that of 16 bit.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from itertools import product

from quantlab.engines import GenerateRequest
from quantlab.errors import BadInput
from quantlab.measure import Bench, Measured
from quantlab.measure.doubts import (
    NO_MEMORY,
    Failed,
    falls_apart,
    generate,
    ordinary_tokens,
    require_possible,
    spoken,
)
from quantlab.measure.inflight import knees, load_cells
from quantlab.measure.memory import bytes_per_step, peak_bytes, reset_peak
from quantlab.measure.pictured import Request, pictured
from quantlab.measure.roofline import prefill_seconds
from quantlab.measure.steady import Counted, Timed, counted, median, percentiles
from quantlab.records import Cell, Grid, Throughput


def throughput(bench: Bench) -> Measured:
    """Measure every cell of the grid; a cell that fails keeps its place, with the reason.

    Raises:
        BadInput: the job has no grid.
    """
    started = time.monotonic()
    grid = bench.spec.grid
    if grid is None:
        raise BadInput("throughput needs a grid.", place="measure", cure="Name one with --grid.")
    shapes = list(product(grid.isl, grid.osl, grid.batch))
    reset_peak()
    cells: list[Cell] = []
    fallen: dict[int, str] = {}
    for place, (isl, osl, batch) in enumerate(shapes):
        bench.reporter.progress("throughput", place, len(shapes), f"{isl} in, {osl} out, batch {batch}")
        make = partial(_cells, bench, isl, osl, batch, grid, fallen)
        cells += bench.cells.once(("batch", place), Cell, make)
    pictures = (
        pictured(bench, grid, shapes, lambda shape, ask: _cell(bench, *shape, grid, "", ask)) if grid.images else ()
    )
    bench.reporter.progress("throughput", len(shapes), len(shapes), "")
    load = load_cells(bench, grid, fallen)
    record = Throughput(
        grid=bench.spec.grid_name,
        cells=tuple(cells),
        pictures=pictures,
        numerics=bench.spec.artifact.numerics,
        device=bench.session.device,
        peak_bytes=max(peak_bytes(), bench.cells.peak_bytes),
        seconds=round(time.monotonic() - started + bench.cells.seconds, 3),
        load=load,
        knees=knees(load),
    )
    return record, {}


def _cells(bench: Bench, isl: int, osl: int, batch: int, grid: Grid, fallen: dict[int, str]) -> list[Cell]:
    """The cell; where it does not fit into memory also cells of half its batch, until one fits or is the grid's own."""
    cells: list[Cell] = []
    while not cells or (cells[-1].reason.startswith(NO_MEMORY) and batch > 1 and batch // 2 not in grid.batch):
        batch = batch // 2 if cells else batch
        if batch not in fallen:
            fallen[batch] = falls_apart(bench, batch)
        cells.append(_cell(bench, isl, osl, batch, grid, fallen[batch]))
    return cells


def _cell(bench: Bench, isl: int, osl: int, batch: int, grid: Grid, fallen: str, ask: Request = spoken) -> Cell:
    config = bench.spec.config
    try:
        require_possible(bench, isl, osl, fallen)
        draw = random.Random(f"{bench.spec.seed}/{isl}/{osl}/{batch}")
        vocabulary = ordinary_tokens(bench.tokenizer)
        for _ in range(grid.warmup):
            _run(bench, lambda: ask(draw, vocabulary, isl, osl), osl, batch)
        found = counted(
            lambda: _run(bench, lambda: ask(draw, vocabulary, isl, osl), osl, batch),
            grid.repeats,
            osl * batch,
            config.tensor_parallel * config.pipeline_parallel,
        )
        _require_steady(found, grid)
    except Failed as failed:
        return Cell(isl=isl, osl=osl, batch=batch, valid=False, reason=str(failed))
    return _summary(bench, isl, osl, batch, found)


def _require_steady(found: Counted, grid: Grid) -> None:
    if found.variation is not None and found.variation > grid.max_variation:
        raise Failed(
            f"not steady: the runs vary by {found.variation:.0%} of their mean, the grid allows "
            f"{grid.max_variation:.0%}. Something else works on this machine."
        )


def _run(bench: Bench, ask: Callable[[], GenerateRequest], osl: int, batch: int) -> Timed:
    done = generate(bench, [ask() for _ in range(batch)])
    lengths = {len(one.tokens) for one in done}
    if len(done) != batch or lengths != {osl}:
        raise Failed(f"asked for {batch} x {osl} tokens, got {len(done)} sequences of {sorted(lengths)}")
    run = Timed(tuple(one.first_token_seconds for one in done), tuple(one.seconds for one in done))
    if min(run.first) <= 0 or run.ttft > run.total or (osl > 1 and run.ttft == run.total):
        raise Failed("the engine's clock is wrong: the first token must come before the last")
    if osl > 1 and run.in_flight < batch:
        raise Failed(f"only {run.in_flight} of {batch} sequences were in flight at once")
    return run


def _summary(bench: Bench, isl: int, osl: int, batch: int, found: Counted) -> Cell:
    native = bench.spec.artifact.numerics == "native"
    number = partial(median, numerics=bench.spec.artifact.numerics)
    runs, steps = found.runs, osl - 1
    tpot = [(run.total - run.ttft) / steps for run in runs] if steps else []
    each = (
        [(last - first) / steps for run in runs for first, last in zip(run.first, run.last, strict=True)]
        if steps
        else []
    )
    moved = bytes_per_step(bench.spec, isl + osl / 2, batch) if native else None
    bandwidth = bench.spec.bandwidth
    least = prefill_seconds(bench.spec, isl, batch) if native else None
    return Cell(
        isl=isl,
        osl=osl,
        batch=batch,
        ttft_seconds=number([run.ttft for run in runs], "seconds", better="lower"),
        tpot_seconds=number(tpot, "seconds", better="lower") if tpot else None,
        prefill_tokens_per_second=number([batch * isl / run.ttft for run in runs], "tokens/s"),
        decode_tokens_per_second=number([batch / one for one in tpot], "tokens/s") if tpot else None,
        tokens_per_second=number([batch * osl / run.total for run in runs], "tokens/s"),
        bandwidth_share=number([moved / (one * bandwidth) for one in tpot], "share")
        if tpot and moved and bandwidth
        else None,
        compute_share=number([least / run.ttft for run in runs], "share") if least else None,
        ttft_percentiles=percentiles([first for run in runs for first in run.first]),
        tpot_percentiles=percentiles(each) if each else None,
        variation=found.variation,
        discarded=found.discarded,
        power=found.power,
    )
