"""A grid of throughput cells on one session: prefill and decode apart, with spread, and checked.

Prefill is compute-bound: all input tokens of the batch go through the weights at once. Decode is
bandwidth-bound: each step reads all weights and the whole KV cache for one new token a sequence. One number
for both ("tokens/s") hides which of the two a precision helps, so TTFT and TPOT are kept apart:

    TTFT = seconds until every sequence has its first token          TPOT = (total - TTFT) / (OSL - 1)

and decode is held against the roofline: (weights + KV cache) read a step, over TPOT and the memory's
bandwidth.

What makes such numbers lie, and what is done: the first run pays for allocation and compilation (warm-up, not
counted); one run is an anecdote (median of repeats, with the lowest and highest); an early end of sequence
makes a fast run (lengths are checked, a wrong one makes the cell invalid); equal prompts hit a prefix cache
(every sequence gets its own random tokens, and every repeat new ones). Emulated numerics are timed, because
the run must work, but labelled; rounded weights in a 16-bit checkpoint are not timed at all: their speed is
that of 16 bit.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from quantlab.engines import GenerateRequest
from quantlab.errors import BadInput, Refused
from quantlab.measure import Bench, Measured
from quantlab.measure.memory import bytes_per_step, peak_bytes, reset_peak
from quantlab.records import Cell, Number, Throughput

PHRASES = ("out of memory", "allocate memory", "bad_alloc", "memory is too small")
"""How SDKs, and our own engine, say that there is not enough memory."""


@dataclass(frozen=True)
class _Run:
    """One static batch."""

    ttft: float
    total: float


class _Failed(Exception):
    """The cell cannot be measured; the text is the reason."""


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
    cells = []
    for place, (isl, osl, batch) in enumerate(shapes):
        bench.reporter.progress("throughput", place, len(shapes), f"{isl} in, {osl} out, batch {batch}")
        cells.append(_cell(bench, isl, osl, batch, grid.warmup, grid.repeats))
    bench.reporter.progress("throughput", len(shapes), len(shapes), "")
    record = Throughput(
        grid=bench.spec.grid_name,
        cells=tuple(cells),
        numerics=bench.spec.artifact.numerics,
        device=bench.session.device,
        peak_bytes=peak_bytes(),
        seconds=round(time.monotonic() - started, 3),
    )
    return record, {}


def _cell(bench: Bench, isl: int, osl: int, batch: int, warmup: int, repeats: int) -> Cell:
    try:
        _require_possible(bench, isl, osl)
        draw = random.Random(f"{bench.spec.seed}/{isl}/{osl}/{batch}")
        vocabulary = _ordinary_tokens(bench.tokenizer)
        runs = [_run(bench, draw, vocabulary, isl, osl, batch) for _ in range(warmup + repeats)][warmup:]
    except _Failed as failed:
        return Cell(isl=isl, osl=osl, batch=batch, valid=False, reason=str(failed))
    return _summary(bench, isl, osl, batch, runs)


def _require_possible(bench: Bench, isl: int, osl: int) -> None:
    if bench.spec.artifact.numerics == "simulated":
        raise _Failed("simulated: rounded weights in 16 bit run at the speed of 16 bit")
    if isl + osl > bench.session.max_length:
        raise _Failed(f"{isl} + {osl} tokens do not fit into {bench.session.max_length}")


def _ordinary_tokens(tokenizer: Any) -> list[int]:
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return [token for token in range(len(tokenizer)) if token not in special]


def _run(bench: Bench, draw: random.Random, vocabulary: list[int], isl: int, osl: int, batch: int) -> _Run:
    requests = [
        GenerateRequest(prompt=tuple(draw.choices(vocabulary, k=isl)), max_tokens=osl, ignore_eos=True)
        for _ in range(batch)
    ]
    try:
        done = bench.session.generate(requests)
    except (MemoryError, RuntimeError, Refused) as error:
        # torch.OutOfMemoryError is a RuntimeError, as are its CPU allocator's and TensorRT's; our engine refuses.
        if isinstance(error, MemoryError) or _tells_of_memory(str(error)):
            raise _Failed(f"out of memory at batch {batch}") from error
        raise
    lengths = {len(one.tokens) for one in done}
    if len(done) != batch or lengths != {osl}:
        raise _Failed(f"asked for {batch} x {osl} tokens, got {len(done)} sequences of {sorted(lengths)}")
    return _Run(max(one.first_token_seconds for one in done), max(one.seconds for one in done))


def _tells_of_memory(text: str) -> bool:
    return any(phrase in text.lower() for phrase in PHRASES)


def _summary(bench: Bench, isl: int, osl: int, batch: int, runs: list[_Run]) -> Cell:
    if any(not 0 < run.ttft <= run.total or (osl > 1 and run.ttft == run.total) for run in runs):
        reason = "the engine's clock is wrong: the first token must come before the last"
        return Cell(isl=isl, osl=osl, batch=batch, valid=False, reason=reason)
    native = bench.spec.artifact.numerics == "native"
    provenance: Literal["measured", "emulated"] = "measured" if native else "emulated"

    def number(values: list[float], unit: str, better: Literal["higher", "lower"] = "higher") -> Number:
        return Number(
            value=statistics.median(values),
            unit=unit,
            n=len(values),
            low=min(values),
            high=max(values),
            better=better,
            provenance=provenance,
        )

    steps = osl - 1
    tpot = [(run.total - run.ttft) / steps for run in runs] if steps else []
    moved = bytes_per_step(bench.spec, isl + osl / 2, batch) if native else None
    bandwidth = bench.spec.bandwidth
    return Cell(
        isl=isl,
        osl=osl,
        batch=batch,
        ttft_seconds=number([run.ttft for run in runs], "seconds", "lower"),
        tpot_seconds=number(tpot, "seconds", "lower") if tpot else None,
        prefill_tokens_per_second=number([batch * isl / run.ttft for run in runs], "tokens/s"),
        decode_tokens_per_second=number([batch / one for one in tpot], "tokens/s") if tpot else None,
        tokens_per_second=number([batch * osl / run.total for run in runs], "tokens/s"),
        bandwidth_share=number([moved / (one * bandwidth) for one in tpot], "share")
        if tpot and moved and bandwidth
        else None,
    )
