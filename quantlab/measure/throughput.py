"""A grid of throughput cells on one session: prefill and decode apart, with spread, and checked.

Prefill is compute-bound: all input tokens of the batch go through the weights at once. Decode is
bandwidth-bound: each step reads all weights and the whole KV cache for one new token a sequence. One number
for both ("tokens/s") hides which of the two a precision helps, so TTFT and TPOT are kept apart:

    TTFT = seconds until every sequence has its first token          TPOT = (total - TTFT) / (OSL - 1)

and decode is held against the roofline: (weights + KV cache) read a step, over TPOT and the memory's
bandwidth.

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

import math
import random
import statistics
import time
from itertools import product
from typing import Any, Literal

from quantlab.engines import GenerateRequest, ScoreRequest
from quantlab.errors import BadInput, Refused
from quantlab.measure import Bench, Measured
from quantlab.measure.canary import LOST, STUCK, TOKENS, distinct_trigrams
from quantlab.measure.memory import bytes_per_step, peak_bytes, reset_peak
from quantlab.measure.steady import Counted, Timed, counted, percentiles
from quantlab.records import Cell, Grid, Number, Throughput

PHRASES = ("out of memory", "allocate memory", "bad_alloc", "memory is too small")
"""How SDKs, and our own engine, say that there is not enough memory."""
NO_MEMORY = "out of memory at batch"


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
    cells: list[Cell] = []
    fallen: dict[int, str] = {}
    for place, (isl, osl, batch) in enumerate(shapes):
        bench.reporter.progress("throughput", place, len(shapes), f"{isl} in, {osl} out, batch {batch}")
        cells += _cells(bench, isl, osl, batch, grid, fallen)
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


def _cells(bench: Bench, isl: int, osl: int, batch: int, grid: Grid, fallen: dict[int, str]) -> list[Cell]:
    """The cell; where it does not fit into memory also cells of half its batch, until one fits or is the grid's own."""
    cells: list[Cell] = []
    while not cells or (cells[-1].reason.startswith(NO_MEMORY) and batch > 1 and batch // 2 not in grid.batch):
        batch = batch // 2 if cells else batch
        if batch not in fallen:
            fallen[batch] = _falls_apart(bench, batch)
        cells.append(_cell(bench, isl, osl, batch, grid, fallen[batch]))
    return cells


def _cell(bench: Bench, isl: int, osl: int, batch: int, grid: Grid, fallen: str) -> Cell:
    config = bench.spec.config
    try:
        _require_possible(bench, isl, osl, fallen)
        draw = random.Random(f"{bench.spec.seed}/{isl}/{osl}/{batch}")
        vocabulary = ordinary_tokens(bench.tokenizer)
        for _ in range(grid.warmup):
            _run(bench, draw, vocabulary, isl, osl, batch)
        found = counted(
            lambda: _run(bench, draw, vocabulary, isl, osl, batch),
            grid.repeats,
            osl * batch,
            config.tensor_parallel * config.pipeline_parallel,
        )
        _require_steady(found, grid)
    except _Failed as failed:
        return Cell(isl=isl, osl=osl, batch=batch, valid=False, reason=str(failed))
    return _summary(bench, isl, osl, batch, found)


def _falls_apart(bench: Bench, batch: int) -> str:
    """Real prompts, alone and amid a full batch: why no cell of this batch size is to be believed, or "".

    What is no language model alone (random weights, timed for their shape) can fall no further and is not judged. A
    first token may differ between batch sizes where two words are nearly as likely, so more than half must go wrong.
    """
    if batch == 1 or bench.spec.suite is None or bench.spec.artifact.numerics == "simulated":
        return ""
    prompts = [tuple(bench.tokenizer.encode(prompt)) for prompt in bench.spec.suite.canary]
    prompts = [prompt for prompt in prompts if len(prompt) > 1 and len(prompt) + TOKENS <= bench.session.max_length]
    try:
        alone = {prompt: _continue(bench, [prompt])[0] for prompt in prompts if _knows(bench, prompt)}
        sound = [prompt for prompt, tokens in alone.items() if distinct_trigrams(tokens) >= STUCK]
        crowd = [sound[place % len(sound)] for place in range(batch)] if sound else []
        amid = _continue(bench, crowd) if crowd else []
    except _Failed:
        return ""  # out of memory: the cell itself will say so
    odd = sum(
        distinct_trigrams(tokens) < STUCK or tokens[:1] != alone[prompt][:1]
        for prompt, tokens in zip(crowd, amid, strict=True)
    )
    if odd <= batch / 2:
        return ""
    return f"in a batch of {batch}, {odd} sequences fall apart or begin otherwise than alone"


def _knows(bench: Bench, prompt: tuple[int, ...]) -> bool:
    """The prompt is text to this model: see canary.py for the limit."""
    score = bench.session.logprobs([ScoreRequest(context=prompt[:1], continuation=prompt[1:])])[0]
    return -float(score.logprobs.mean()) < LOST * math.log(len(bench.tokenizer))


def _continue(bench: Bench, prompts: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    requests = [GenerateRequest(prompt=prompt, max_tokens=TOKENS) for prompt in prompts]
    return [done.tokens for done in _generate(bench, requests)]


def _require_possible(bench: Bench, isl: int, osl: int, fallen: str) -> None:
    if bench.spec.artifact.numerics == "simulated":
        raise _Failed("simulated: rounded weights in 16 bit run at the speed of 16 bit")
    if isl + osl > bench.session.max_length:
        raise _Failed(f"{isl} + {osl} tokens do not fit into {bench.session.max_length}")
    if fallen:
        raise _Failed(fallen)


def _require_steady(found: Counted, grid: Grid) -> None:
    if found.variation is not None and found.variation > grid.max_variation:
        raise _Failed(
            f"not steady: the runs vary by {found.variation:.0%} of their mean, the grid allows "
            f"{grid.max_variation:.0%}. Something else works on this machine."
        )


def ordinary_tokens(tokenizer: Any) -> list[int]:
    """Token ids without special and added ones."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return [token for token in range(len(tokenizer)) if token not in special]


def _run(bench: Bench, draw: random.Random, vocabulary: list[int], isl: int, osl: int, batch: int) -> Timed:
    done = _generate(
        bench,
        [
            GenerateRequest(prompt=tuple(draw.choices(vocabulary, k=isl)), max_tokens=osl, ignore_eos=True)
            for _ in range(batch)
        ],
    )
    lengths = {len(one.tokens) for one in done}
    if len(done) != batch or lengths != {osl}:
        raise _Failed(f"asked for {batch} x {osl} tokens, got {len(done)} sequences of {sorted(lengths)}")
    run = Timed(tuple(one.first_token_seconds for one in done), tuple(one.seconds for one in done))
    if min(run.first) <= 0 or run.ttft > run.total or (osl > 1 and run.ttft == run.total):
        raise _Failed("the engine's clock is wrong: the first token must come before the last")
    if osl > 1 and run.in_flight < batch:
        raise _Failed(f"only {run.in_flight} of {batch} sequences were in flight at once")
    return run


def _generate(bench: Bench, requests: list[GenerateRequest]) -> list[Any]:
    try:
        return list(bench.session.generate(requests))
    except (MemoryError, RuntimeError, Refused) as error:
        # torch.OutOfMemoryError is a RuntimeError, as are its CPU allocator's and TensorRT's; our engine refuses.
        if isinstance(error, MemoryError) or _tells_of_memory(str(error)):
            raise _Failed(f"{NO_MEMORY} {len(requests)}") from error
        raise


def _tells_of_memory(text: str) -> bool:
    return any(phrase in text.lower() for phrase in PHRASES)


def _summary(bench: Bench, isl: int, osl: int, batch: int, found: Counted) -> Cell:
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

    runs, steps = found.runs, osl - 1
    tpot = [(run.total - run.ttft) / steps for run in runs] if steps else []
    each = (
        [(last - first) / steps for run in runs for first, last in zip(run.first, run.last, strict=True)]
        if steps
        else []
    )
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
        ttft_percentiles=percentiles([first for run in runs for first in run.first]),
        tpot_percentiles=percentiles(each) if each else None,
        variation=found.variation,
        discarded=found.discarded,
        power=found.power,
    )
