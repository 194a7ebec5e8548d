"""The concurrency sweep from outside: the engine's own HTTP server, loaded by a load generator that others know.

What a session cannot see is added here: HTTP, tokenizing, streaming token by token, a scheduler in another process.
The session is closed first, since two models do not fit on one GPU. One server stays for the whole sweep; each load is
one run of the client with its own prompts. There are no repeats: the client's run is one number, and its percentiles
are over its requests.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import msgspec

from quantlab import leash
from quantlab.engines import Engine
from quantlab.engines.serving import Server, Serving
from quantlab.measure import Reporter
from quantlab.measure.aiperf import Load, Unbelieved, command, environment, read, tokenizer_cache
from quantlab.measure.durable import Durable
from quantlab.measure.inflight import LEAST_REQUESTS, knees
from quantlab.measure.server import NotServed, require_healthy, serving
from quantlab.records import LoadCell, MeasureJob, Throughput

STAGE = "throughput"
LEAST_WAVES = 4
"""Requests of a load, times its concurrency, at least: the last ones run with fewer beside them."""
LOAD_SECONDS = 3600.0
"""Longest time of one load."""


def is_served(spec: MeasureJob) -> bool:
    return spec.grid is not None and spec.grid.served and spec.artifact.numerics != "simulated"


def with_served(
    record: Throughput, engine: Engine, spec: MeasureJob, reporter: Reporter, cells: Durable | None = None
) -> Throughput:
    """The record with the served cells and their knees behind its own. `cells`: those of earlier attempts."""
    load = (*record.load, *_cells(engine, spec, reporter, cells or Durable()))
    return msgspec.structs.replace(record, load=load, knees=knees(load))


def _cells(engine: Engine, spec: MeasureJob, reporter: Reporter, cells: Durable) -> list[LoadCell]:
    assert spec.grid is not None
    loads = [_load(spec, isl, osl, n) for isl, osl, n in product(spec.grid.isl, spec.grid.osl, spec.grid.concurrency)]
    if not isinstance(engine, Serving):
        return [_invalid(load, f"engine {spec.engine} has no server") for load in loads]
    if not spec.client:
        return [_invalid(load, "there is no load generator: `quantlab engines setup aiperf`") for load in loads]
    folder = Path(spec.folder).absolute() / "served"
    folder.mkdir(parents=True, exist_ok=True)
    return list(_measured(engine, spec, loads, folder, reporter, cells))


def _load(spec: MeasureJob, isl: int, osl: int, concurrency: int) -> Load:
    assert spec.grid is not None
    requests = max(LEAST_WAVES * concurrency, spec.grid.repeats * max(LEAST_REQUESTS, spec.grid.waves * concurrency))
    return Load(isl, osl, concurrency, requests, spec.seed)


def _measured(
    engine: Serving, spec: MeasureJob, loads: list[Load], folder: Path, reporter: Reporter, cells: Durable
) -> Iterator[LoadCell]:
    """Every load on one server; when that does not come up, or dies, the cells that are left say why."""
    cache = folder / "tokenizer"
    tokenizer_cache(Path(spec.artifact.checkpoint.path), cache)
    make = partial(_server, engine, spec, folder)
    left = list(loads)
    reporter.progress(STAGE, 0, len(loads), "the server starts")
    try:
        with serving(make, folder / "server.txt") as (url, model):
            while left:
                load = left[0]
                said = f"served: {load.isl} in, {load.osl} out, {load.concurrency} in flight"
                reporter.progress(STAGE, len(loads) - len(left), len(loads), said)
                require_healthy(url, folder / "server.txt")
                yield cells.one(("served", load), LoadCell, partial(_one, spec, url, model, load, folder, cache))
                left.pop(0)
    except NotServed as error:
        yield from (_invalid(load, str(error)) for load in left)
    reporter.progress(STAGE, len(loads), len(loads), "")


def _server(engine: Serving, spec: MeasureJob, folder: Path, port: int) -> Server:
    name = f"quantlab-{secrets.token_hex(4)}"
    return engine.server(spec.artifact, spec.config, name=name, port=port, folder=folder)


def _one(spec: MeasureJob, url: str, model: str, load: Load, folder: Path, cache: Path) -> LoadCell:
    into = folder / f"{load.isl}-{load.osl}-{load.concurrency}-{secrets.token_hex(4)}"
    words = command(spec.client, url, model, load, into)
    print(f"$ {' '.join(words)}", flush=True)
    with (folder / "client.txt").open("wb") as log:
        process = leash.start(words, environment(cache), log)
        try:
            code = process.wait(timeout=LOAD_SECONDS)
        except subprocess.TimeoutExpired:
            return _invalid(load, f"the client did not end in {LOAD_SECONDS:.0f} s")
        finally:
            leash.stop(process)
    try:
        if code != 0:
            raise Unbelieved(f"the client ended with exit code {code}")
        cell = read(into, load)
    except Unbelieved as error:
        return _invalid(load, str(error))
    return cell if spec.artifact.numerics == "native" else _emulated(cell)


def _emulated(cell: LoadCell) -> LoadCell:
    numbers = {
        name: msgspec.structs.replace(number, provenance="emulated")
        for name in ("tokens_per_second", "requests_per_second")
        if (number := getattr(cell, name)) is not None
    }
    return msgspec.structs.replace(cell, **numbers)


def _invalid(load: Load, reason: str) -> LoadCell:
    return LoadCell(
        isl=load.isl,
        osl=load.osl,
        concurrency=load.concurrency,
        mode="served",
        source="aiperf",
        valid=False,
        reason=reason,
    )
