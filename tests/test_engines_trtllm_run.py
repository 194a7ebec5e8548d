"""Throughput of engine "trtllm" through trtllm-bench: what is typed, what is believed, and what is not.

trtllm-bench itself runs on no machine of ours (docs/engines.md); a stand-in has exactly the contract's flags and keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantlab.engines import Bencher, engine, trtllm_run
from quantlab.errors import Broken
from quantlab.measure.run import run
from quantlab.records import EngineConfig, Event, Grid, MeasureJob, Throughput
from quantlab.worker import Reporter
from tests import trtllm_standin as standin
from tests.test_engines_trtllm import built, described, with_flow

STANDIN = Path(__file__).resolve().parent / "trtllm_bench_standin.py"
GRID = Grid(summary="", isl=(16,), osl=(8,), batch=(1, 4), repeats=2)


@pytest.fixture(params=["engine", "pytorch"])
def job(
    request: pytest.FixtureRequest, tiny_fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MeasureJob]:
    """Throughput of an FP8 checkpoint, with the stand-ins of both SDK and program."""
    place = tmp_path / "bin"
    place.mkdir()
    place.joinpath("trtllm-bench").symlink_to(STANDIN)
    STANDIN.chmod(0o755)
    monkeypatch.setenv("PATH", str(place), prepend=":")
    monkeypatch.setenv("BENCH_LOG", str(tmp_path / "log"))
    config: EngineConfig = with_flow(request.param)
    with standin.installed(standin.contract(), "1.2.1", tmp_path / "site"):
        artifact = built(described(tiny_fp8, "fp8", group_size=None), tmp_path / "made", config)
        yield MeasureJob(
            engine="trtllm",
            artifact=artifact,
            config=config,
            stages=("throughput",),
            folder=str(tmp_path / "job"),
            grid=GRID,
            grid_name="two",
        )


def measured(job: MeasureJob) -> tuple[Throughput, list[Event]]:
    events: list[Event] = []
    assert run(job, Reporter(events.append)) == {"done": ["throughput"]}
    (result,) = [event.result for event in events if event.kind == "result"]
    assert result is not None
    return msgspec.json.decode(result, type=Throughput), events


def test_a_grid_that_was_killed_goes_on_at_the_cell_it_lacked(job: MeasureJob, tmp_path: Path) -> None:
    """Two runs a cell: the first cell's are not typed again, and its numbers stay as they were."""

    def killed(event: Event) -> None:
        if event.kind == "progress" and event.text.endswith("4 in flight"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, Reporter(killed))
    (kept,) = [json.loads(line)[1][2] for line in (Path(job.folder) / "cells.jsonl").read_text().splitlines()[1:]]
    begun = len(typed(tmp_path))
    found, events = measured(job)
    loads = [int(given.get("--concurrency", 1)) for _, given, _ in typed(tmp_path)]
    assert set(loads[:begun]) == {1}
    assert set(loads[begun:]) == {4}
    assert found.cells[0] == msgspec.convert(kept, type(found.cells[0]))
    assert [(cell.batch, cell.valid) for cell in found.cells] == [(1, True), (4, True)]
    notes = [event.text for event in events if event.kind == "note"]
    assert "goes on after the 1 cells that an attempt before it finished." in notes


def typed(tmp_path: Path) -> list[tuple[str, dict[str, str], list[int]]]:
    return [tuple(json.loads(line)) for line in (tmp_path / "log").read_text().splitlines()]


def test_each_cell_is_timed_by_the_right_program_on_what_was_scored(job: MeasureJob, tmp_path: Path) -> None:
    found, _ = measured(job)
    assert isinstance(engine("trtllm"), Bencher)
    assert [(cell.batch, cell.valid, cell.reason) for cell in found.cells] == [(1, True, ""), (4, True, "")]
    speed = found.cells[1].tokens_per_second
    assert speed is not None
    assert (speed.value, speed.n, speed.provenance) == (200.0, 2, "measured")
    assert found.cells[0].ttft_seconds is not None
    assert found.cells[0].ttft_seconds.value == 0.02
    assert found.cells[0].prefill_tokens_per_second is None
    assert "latency" in found.source
    assert "in-flight" in found.source
    words = typed(tmp_path)
    assert [part for part, _, _ in words] == ["latency", "latency", "throughput", "throughput"]
    assert words[2][1]["--concurrency"] == "4"
    assert words[2][1]["--num_requests"] == "32"
    assert len({tuple(tokens) for _, _, tokens in words}) == 4, "every run has prompts of its own"
    if job.artifact.engine_version.endswith("engine flow"):
        assert Path(words[0][1]["--engine_dir"]).parent == Path(job.artifact.path)


@pytest.mark.parametrize("says", [{"engine.quantization": None}, {"engine.quantization": "W4A16_AWQ"}])
def test_another_quantization_than_was_meant_ends_the_stage(
    job: MeasureJob, monkeypatch: pytest.MonkeyPatch, says: dict[str, Any]
) -> None:
    monkeypatch.setenv("BENCH_SAYS", json.dumps(says))
    with pytest.raises(Broken, match="FP8 was meant"):
        measured(job)


def test_a_doubtful_cell_and_a_dead_program_are_invalid_with_the_reason(
    job: MeasureJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_SAYS", json.dumps({"request_info.avg_output_length": 3.0}))
    assert [cell.valid for cell in measured(job)[0].cells] == [False, False]
    assert "3 out" in measured(job)[0].cells[0].reason
    monkeypatch.setenv("BENCH_DIES", "1")
    assert "exit code 1 and no report" in measured(job)[0].cells[0].reason
    long = msgspec.structs.replace(job, grid=msgspec.structs.replace(GRID, isl=(4096,)))
    assert "do not fit" in measured(long)[0].cells[0].reason


def test_a_report_of_an_earlier_run_is_not_read(
    job: MeasureJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(job)
    assert (tmp_path / "job" / "bench" / "report.json").is_file()
    monkeypatch.setenv("BENCH_DIES", "1")
    another = msgspec.structs.replace(job, seed=job.seed + 1)  # the same one would be taken from the journal of cells
    assert not any(cell.valid for cell in measured(another)[0].cells)


def test_without_the_program_a_session_is_timed_and_it_is_said(
    job: MeasureJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trtllm_run, "program", lambda: None)
    found, events = measured(job)
    assert found.source == ""
    assert any("neither beside this Python" in event.text for event in events if event.kind == "note")


@pytest.mark.parametrize("flag", ["--report_json", "--concurrency", "--config", "--dataset", "--num_requests"])
def test_a_flag_of_another_name_makes_no_valid_cell(
    job: MeasureJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    """The contract with one flag renamed: the stand-in then refuses what we type."""
    folder = tmp_path / "renamed"
    (folder / "contracts").mkdir(parents=True)
    text = (STANDIN.parent / "contracts" / "trtllm_1_2_1.json").read_text()
    (folder / "contracts" / "trtllm_1_2_1.json").write_text(text.replace(flag, f"{flag}_new"))
    program = folder / "trtllm-bench"
    program.write_bytes(STANDIN.read_bytes())
    program.chmod(0o755)
    monkeypatch.setattr(trtllm_run, "program", lambda: str(program))
    assert not any(cell.valid for cell in measured(job)[0].cells)


def test_a_sweep_keeps_that_many_requests_in_flight_and_finds_its_knee(job: MeasureJob, tmp_path: Path) -> None:
    """In the stand-in every sequence makes 50 tokens a second, whatever the load, so there is no knee."""
    grid = Grid(summary="", isl=(16,), osl=(8,), concurrency=(1, 2, 4), repeats=2)
    found, _ = measured(msgspec.structs.replace(job, grid=grid))
    assert found.cells == ()
    assert [(cell.concurrency, cell.valid, cell.mode) for cell in found.load] == [
        (1, True, "offline"),
        (2, True, "offline"),
        (4, True, "offline"),
    ]
    four = found.load[2]
    assert four.source == "trtllm-bench throughput, in-flight batching"
    assert four.tokens_per_second is not None
    assert (four.tokens_per_second.value, four.tokens_per_second.n, four.requests) == (200.0, 2, 2 * 32)
    assert four.ttft is not None
    assert (four.ttft.p99, four.waiting) == (0.02, None), "trtllm-bench does not say who waited"
    assert [given["--concurrency"] for _, given, _ in typed(tmp_path)] == ["1", "1", "2", "2", "4", "4"]
    assert found.knees[0].concurrency is None


def test_a_doubtful_load_is_invalid(job: MeasureJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_SAYS", json.dumps({"request_info.avg_num_concurrent_requests": 1.5}))
    grid = Grid(summary="", isl=(16,), osl=(8,), concurrency=(4,), repeats=1)
    (cell,) = measured(msgspec.structs.replace(job, grid=grid))[0].load
    assert not cell.valid
    assert "1.5 requests in flight on average, 4 were asked" in cell.reason
