"""The throughput stage through an engine's own benchmark, where its SDK brings one.

TensorRT-LLM's throughput is what trtllm-bench says: requests in flight, not one static batch, and the number that other
people publish. Each counted run is a process of its own with its own random prompts, so the spread between runs holds
what a restart changes, too. Prefill and decode rates are left out: with requests coming and going there is no moment
that is only one of them. The tool's own report is believed only after it named the quantization that was meant.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import msgspec

from quantlab import host
from quantlab.engines import Bencher, Timed
from quantlab.errors import BadInput
from quantlab.measure import Measured, Reporter
from quantlab.measure.doubts import ordinary_tokens
from quantlab.measure.durable import Durable
from quantlab.measure.inflight import knees
from quantlab.measure.steady import median, variation
from quantlab.records import Cell, LoadCell, MeasureJob, Number, Percentiles, Throughput

STAGE = "throughput"


def is_benched(engine: object, spec: MeasureJob, reporter: Reporter) -> bool:
    """The engine's own benchmark is to be used. Says why not, where it should be and cannot."""
    if not isinstance(engine, Bencher) or STAGE not in spec.stages or spec.artifact.numerics == "simulated":
        return False
    why = engine.bench_missing()
    if why is not None:
        reporter.note(STAGE, f"timed through a session: {why}")
    return why is None


def throughput(engine: Bencher, spec: MeasureJob, tokenizer: Any, reporter: Reporter, kept: Durable) -> Measured:
    """Measure every cell of the grid; a cell that fails keeps its place, with the reason. `kept`: of earlier attempts.

    Raises:
        BadInput: the job has no grid. Broken: something else was timed than was meant.
    """
    started = time.monotonic()
    if spec.grid is None:
        raise BadInput("throughput needs a grid.", place="measure", cure="Name one with --grid.")
    shapes = list(product(spec.grid.isl, spec.grid.osl, spec.grid.batch))
    vocabulary, folder = ordinary_tokens(tokenizer), Path(spec.folder) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    cells: list[Cell] = []
    for place, shape in enumerate(shapes):
        reporter.progress(STAGE, place, len(shapes), "{} in, {} out, {} in flight".format(*shape))
        make = partial(_timed, engine, spec, shape, vocabulary, folder)
        cells.append(kept.one(("bench", place), Cell, make))
    reporter.progress(STAGE, len(shapes), len(shapes), "")
    load = tuple(_loads(engine, spec, vocabulary, folder, reporter, kept))
    record = Throughput(
        grid=spec.grid_name,
        cells=tuple(cells),
        numerics=spec.artifact.numerics,
        device=_device(spec),
        seconds=round(time.monotonic() - started + kept.seconds, 3),
        source="; ".join(dict.fromkeys(engine.bench_source(batch) for _, _, batch in shapes)),
        load=load,
        knees=knees(load),
    )
    return record, {}


def _loads(
    engine: Bencher, spec: MeasureJob, vocabulary: list[int], folder: Path, reporter: Reporter, kept: Durable
) -> Iterator[LoadCell]:
    """The sweep over requests in flight. The tool says how many were, and not how many of them waited."""
    assert spec.grid is not None
    shapes = list(product(spec.grid.isl, spec.grid.osl, spec.grid.concurrency))
    for place, (isl, osl, load) in enumerate(shapes):
        reporter.progress(STAGE, place, len(shapes), f"{isl} in, {osl} out, {load} in flight")
        make = partial(_load, engine, spec, (isl, osl, load), vocabulary, folder)
        yield kept.one(("bench in flight", place), LoadCell, make)


def _load(
    engine: Bencher, spec: MeasureJob, shape: tuple[int, int, int], vocabulary: list[int], folder: Path
) -> LoadCell:
    runs, (isl, osl, load) = _runs(engine, spec, shape, vocabulary, folder), shape
    at = LoadCell(isl=isl, osl=osl, concurrency=load, mode="offline", source=engine.bench_source(load))
    if isinstance(runs, str):
        return msgspec.structs.replace(at, valid=False, reason=runs)
    return _load_cell(at, runs, spec)


def _load_cell(at: LoadCell, runs: list[Timed], spec: MeasureJob) -> LoadCell:
    """Percentiles are those of the middle run: over runs they cannot be merged."""
    rates = [run.tokens_per_second for run in runs]
    middle = sorted(runs, key=lambda run: run.tokens_per_second)[len(runs) // 2]
    ttft, tpot, latency = (
        None if three is None else Percentiles(p50=three[0], p90=three[1], p99=three[2])
        for three in (middle.ttft, middle.tpot, middle.latency)
    )
    return msgspec.structs.replace(
        at,
        requests=sum(run.requests for run in runs),
        tokens_per_second=_number(spec, rates, "tokens/s"),
        requests_per_second=_number(spec, [rate / at.osl for rate in rates], "requests/s"),
        ttft=ttft,
        tpot=tpot,
        latency=latency,
        variation=variation(rates),
    )


def _device(spec: MeasureJob) -> str:
    name = next((gpu.name for gpu in host.gpus()), "a GPU that the driver does not name")
    count = spec.config.tensor_parallel * spec.config.pipeline_parallel
    return f"{name} x {count}, {spec.artifact.engine_version}"


def _runs(
    engine: Bencher, spec: MeasureJob, shape: tuple[int, int, int], vocabulary: list[int], folder: Path
) -> list[Timed] | str:
    """The counted runs, or why the cell is not valid. The tool warms up by itself."""
    assert spec.grid is not None
    runs: list[Timed] = []
    for repeat in range(spec.grid.repeats):
        seed = spec.seed * 1000 + repeat
        timed = engine.bench(spec.artifact, spec.config, shape, vocabulary=vocabulary, folder=folder, seed=seed)
        if isinstance(timed, str):
            return timed
        runs.append(timed)
    return runs


def _timed(engine: Bencher, spec: MeasureJob, shape: tuple[int, int, int], vocabulary: list[int], folder: Path) -> Cell:
    runs = _runs(engine, spec, shape, vocabulary, folder)
    return _failed(shape, runs) if isinstance(runs, str) else _cell(spec, shape, runs)


def _failed(shape: tuple[int, int, int], reason: str) -> Cell:
    isl, osl, batch = shape
    return Cell(isl=isl, osl=osl, batch=batch, valid=False, reason=reason)


def _cell(spec: MeasureJob, shape: tuple[int, int, int], runs: list[Timed]) -> Cell:
    number, (isl, osl, batch) = partial(_number, spec), shape
    return Cell(
        isl=isl,
        osl=osl,
        batch=batch,
        ttft_seconds=number([run.ttft_seconds for run in runs], "seconds", "lower"),
        tpot_seconds=number([run.tpot_seconds for run in runs], "seconds", "lower"),
        tokens_per_second=number([run.tokens_per_second for run in runs], "tokens/s"),
    )


def _number(
    spec: MeasureJob, values: Sequence[float | None], unit: str, better: Literal["higher", "lower"] = "higher"
) -> Number | None:
    """The median of the runs with its spread; None where a run did not tell."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return median(known, unit, spec.artifact.numerics, better)
