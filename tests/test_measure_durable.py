"""A real `kill -9` in the middle of a sweep: what was measured stays, what was at work is measured again."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantlab.engines import Completion, GenerateRequest
from quantlab.measure import Bench
from quantlab.measure.durable import FILE, Durable, durable
from quantlab.measure.throughput import throughput
from quantlab.records import Cell, Event, Grid, LoadCell, MeasureJob, Throughput
from quantlab.worker import Reporter
from tests.measure_bench import ROOT, PlainSession, bench, job, tiny_folder, with_spec
from tests.test_measure_inflight import Server
from tests.test_measure_served import CLIENT, HTTP

RUNS = """
import sys
from pathlib import Path
import msgspec
from quantlab.engines.serving import Server
from quantlab.measure import run as running
from quantlab.records import MeasureJob
from quantlab.worker import Reporter
spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=MeasureJob)
made = running.engine(spec.engine)
if spec.grid.served:
    http = Path(sys.argv[3]).read_text()
    type(made).server = lambda self, artifact, config, *, name, port, folder: Server(
        (sys.executable, "-S", "-c", http, str(port), name), {}, name)
out = open(sys.argv[2], "ab", buffering=0)
running.run(spec, Reporter(lambda event: out.write(msgspec.json.encode(event) + b"\\n")))
"""
KILLS = """
count = pathlib.Path(CALLS)
count.write_text(count.read_text() + f"{load} " if count.exists() else f"{load} ")
if load == 2 and count.read_text().split().count("2") == 1:
    keeper = pathlib.Path(f"/proc/{__import__('os').getppid()}/stat").read_text()
    __import__("os").kill(int(keeper.rsplit(")", 1)[1].split()[1]), 9)
    __import__("time").sleep(60)
"""


def start(spec: MeasureJob, folder: Path) -> subprocess.Popen[bytes]:
    (folder / "job.json").write_bytes(msgspec.json.encode(spec))
    (folder / "http.py").write_text(HTTP)
    words = [sys.executable, "-c", RUNS, str(folder / "job.json"), str(folder / "events"), str(folder / "http.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(words, env=environment, stdout=log, stderr=log)


def ended(process: subprocess.Popen[bytes], folder: Path) -> tuple[Throughput, list[str]]:
    """The record of the attempt that ended well, and its notes."""
    assert process.wait(timeout=120) == 0, (folder / "log").read_text()
    events = [json.loads(line) for line in (folder / "events").read_bytes().splitlines()]
    (last,) = [event for event in events if event["kind"] == "result"]
    notes = [event["text"] for event in events if event["kind"] == "note"]
    return msgspec.convert(last["result"], Throughput), notes


def lines(folder: Path) -> list[str]:
    path = folder / FILE
    return path.read_text().splitlines()[1:] if path.is_file() else []


def test_a_killed_sweep_goes_on_at_the_cell_that_was_at_work(tmp_path: Path) -> None:
    grid = Grid(summary="", isl=(8,), osl=(4, 40), batch=(1, 2, 48), warmup=0, repeats=3, max_variation=100.0)
    spec = job(tmp_path / "work", stages=("throughput",), grid=grid)
    first = start(spec, tmp_path)
    until = time.monotonic() + 90
    while len(lines(tmp_path / "work")) < 2 and first.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    before = lines(tmp_path / "work")
    assert 2 <= len(before) < 6, "the kill came in the middle"
    record, notes = ended(start(spec, tmp_path), tmp_path)
    assert [(cell.osl, cell.batch, cell.valid) for cell in record.cells] == [
        (osl, batch, True) for osl in grid.osl for batch in grid.batch
    ]
    kept = [msgspec.convert(json.loads(line)[1][2], Cell) for line in before]
    assert list(record.cells[: len(kept)]) == kept, "to the last bit"
    assert notes == [f"goes on after the {len(kept)} cells that an attempt before it finished."]
    assert record.seconds >= sum(json.loads(line)[1][0] for line in before)
    assert record.peak_bytes >= max(json.loads(line)[1][1] for line in before)


def test_a_kill_while_the_server_is_loaded_costs_neither_the_session_nor_the_cells_before(tmp_path: Path) -> None:
    client = tmp_path / "client.py"
    wrote = str(Path(__file__).parent / "contracts" / "aiperf_0_13.json")
    at = CLIENT.index("wrote = json")
    kills = KILLS.replace("CALLS", repr(str(tmp_path / "calls")))
    client.write_text(f"WROTE = {wrote!r}\n{CLIENT[:at]}{kills}{CLIENT[at:]}")
    grid = Grid(summary="", isl=(32,), osl=(8,), batch=(1,), concurrency=(1, 2, 4), served=True, warmup=0, repeats=1)
    spec = job(tmp_path / "work", stages=("throughput",), grid=grid, client=(sys.executable, str(client)))
    assert start(spec, tmp_path).wait(timeout=120) == -signal.SIGKILL, (tmp_path / "log").read_text()
    before = lines(tmp_path / "work")
    record, notes = ended(start(spec, tmp_path), tmp_path)
    assert (tmp_path / "calls").read_text().split() == ["1", "2", "2", "4"]
    served = [(cell.concurrency, cell.valid, cell.reason) for cell in record.load if cell.mode == "served"]
    assert served == [(load, True, "") for load in (1, 2, 4)]
    kept = msgspec.convert(json.loads(before[0])[1][2], Cell)
    assert record.cells == (kept,)
    assert "goes on after the 2 cells" in notes[0], "one static batch and one served load"
    assert (tmp_path / "log").read_text().count("aiperf profile") == 4


def holding(at: Bench, cells: Durable) -> Bench:
    """The bench with cells of earlier attempts."""
    return dataclasses.replace(at, cells=cells)


class Falling(Server):
    """Ends after so many steps, as a kill would."""

    left = 10**9

    def step(self) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().step()


def test_a_sweep_in_flight_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantlab.measure import loop as loops

    server = Falling()
    monkeypatch.setattr(loops, "time", type("Clock", (), {"monotonic": staticmethod(lambda: server.now)}))
    grid = Grid(summary="", isl=(8,), osl=(5,), concurrency=(1, 2, 4), warmup=0)
    at = with_spec(bench(tmp_path, server, grid=grid, stages=("throughput",)), suite=None)

    def attempt(steps: int) -> Throughput:
        server.left = steps
        with durable(at.spec, at.reporter) as cells:
            record, _ = throughput(holding(at, cells))
        assert isinstance(record, Throughput)
        return record

    with pytest.raises(KeyboardInterrupt):
        attempt(200)
    done = len(lines(tmp_path))
    assert 0 < done < 3
    asked = len(server.lengths)
    record = attempt(10**9)
    assert [cell.concurrency for cell in record.load if cell.valid] == [1, 2, 4]
    kept = [msgspec.convert(json.loads(line)[1][2], LoadCell) for line in lines(tmp_path)[:done]]
    assert list(record.load[:done]) == kept
    again = len(server.lengths)
    attempt(0)
    assert len(server.lengths) == again > asked, "all cells were there: the engine was not asked"


class Shaky(PlainSession):
    """Answers at once; one token short while it is `ill`."""

    ill = True

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        self._begin(requests)
        short = 1 if self.ill and len(requests) == 2 else 0
        return [Completion((5,) * (one.max_tokens - short), "length", 0.5, 1.0) for one in requests]


def test_a_cell_that_failed_a_check_is_measured_again_and_another_job_reads_nothing(tmp_path: Path) -> None:
    session, heard = Shaky(tiny_folder()), list[Event]()
    at = with_spec(bench(tmp_path, session, stages=("throughput",)), suite=None)

    def attempt(spec: MeasureJob) -> list[bool]:
        with durable(spec, Reporter(heard.append)) as cells:
            record, _ = throughput(holding(with_spec(at, seed=spec.seed), cells))
        assert isinstance(record, Throughput)
        return [cell.valid for cell in record.cells]

    assert attempt(at.spec) == [True, False]
    session.ill, calls = False, session.calls
    assert attempt(at.spec) == [True, True]
    assert 0 < session.calls - calls < calls + 1, "only the second cell"
    other = msgspec.structs.replace(at.spec, seed=7)
    calls = session.calls
    assert attempt(other) == [True, True]
    assert session.calls - calls >= 8
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text().replace('"isl"', '"odd"') + '["half a li')
    assert attempt(other) == [True, True], "lines that no longer fit are measured again"
    assert [event.text for event in heard if event.kind == "note"] == [
        "goes on after the 1 cells that an attempt before it finished.",
        "goes on after the 2 cells that an attempt before it finished.",
    ]
