"""The whole child on a real engine: order, results sent one by one, and what stops it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from quantlab.errors import BadInput
from quantlab.measure.run import run
from quantlab.records import Accuracy, Artifact, Canary, Event, Fidelity, MeasureJob, Reference, SuiteTask, Throughput
from quantlab.worker import Reporter
from tests.measure_bench import PlainSession, bench, job, tiny_folder

RECORDS: dict[str, Any] = {
    "canary": Canary,
    "reference": Reference,
    "fidelity": Fidelity,
    "accuracy": Accuracy,
    "throughput": Throughput,
}


def go(spec: MeasureJob) -> tuple[dict[str, Any], list[Event]]:
    """Stage -> record as the parent would read it, and all events."""
    events: list[Event] = []
    answer = run(spec, Reporter(events.append))
    results = [event for event in events if event.kind == "result"]
    assert answer == {"done": [event.stage for event in results]}
    found = {}
    for event in results:
        assert event.result is not None
        found[event.stage] = msgspec.json.decode(event.result, type=RECORDS[event.stage])
    return found, events


def test_all_stages_on_the_torch_engine_and_the_plain_session_agrees(tmp_path: Path) -> None:
    stages = ("reference", "accuracy", "throughput")
    tasks = (SuiteTask(task="ql_facts", limit=6), SuiteTask(task="ql_cloze", limit=3, chat_template=True, shots=1))
    found, events = go(job(tmp_path / "torch", stages=stages, tasks=tasks))
    assert list(found) == list(stages)
    files = {name: path for event in events for name, path in event.files.items()}
    assert sorted(files) == ["items.parquet", "reference.npz"]
    assert all(Path(path).is_file() for path in files.values())
    assert all(cell.valid and cell.tokens_per_second.value > 0 for cell in found["throughput"].cells)

    from quantlab.measure.accuracy import accuracy

    record, plain = accuracy(bench(tmp_path / "plain", PlainSession(tiny_folder(), max_length=1024), tasks=tasks))
    assert isinstance(record, Accuracy)
    left, right = (pq.read_table(path).to_pydict() for path in (files["items.parquet"], plain["items.parquet"]))
    assert left["prompt_digest"] == right["prompt_digest"]
    assert left["answer"] == right["answer"]
    gaps = [
        np.abs(np.array(a) - np.array(b)).max()
        for a, b in zip(left["loglikelihoods"], right["loglikelihoods"], strict=True)
    ]
    assert max(gaps) < 1e-3

    again, _ = go(job(tmp_path / "again", stages=("fidelity",), reference=files["reference.npz"]))
    assert again["fidelity"].kl.value < 1e-6
    assert again["fidelity"].top1.value == 1.0


def test_a_failed_canary_is_sent_and_nothing_else_is_started(tmp_path: Path) -> None:
    found, events = go(job(tmp_path, stages=("canary", "reference", "accuracy", "throughput")))
    assert list(found) == ["canary"]
    assert not found["canary"].passed
    assert [event.stage for event in events if event.kind == "note"] == ["canary"]
    assert list(tmp_path.iterdir()) == []


def test_what_was_sent_before_an_error_stands(tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(BadInput, match="needs a grid"):
        run(job(tmp_path, stages=("reference", "throughput"), grid=None), Reporter(events.append))
    assert [event.stage for event in events if event.kind == "result"] == ["reference"]


def test_the_fake_engine_walks_all_stages_and_is_never_timed(tmp_path: Path) -> None:
    base = job(tmp_path, stages=("reference", "accuracy", "throughput"), tasks=(SuiteTask(task="ql_facts", limit=4),))
    artifact = Artifact(
        engine="fake", path=base.artifact.path, checkpoint=base.artifact.checkpoint, numerics="simulated"
    )
    found, _ = go(msgspec.structs.replace(base, engine="fake", artifact=artifact))
    assert found["accuracy"].tasks[0].n == 4
    assert not any(cell.valid for cell in found["throughput"].cells)


def test_weights_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    spec = job(tmp_path)
    bare = msgspec.structs.replace(
        spec.artifact,
        path=str(tmp_path),
        checkpoint=msgspec.structs.replace(spec.artifact.checkpoint, path=str(tmp_path)),
    )
    with pytest.raises(BadInput, match="no tokenizer"):
        go(msgspec.structs.replace(spec, artifact=bare))


def test_a_journal_of_torch_is_bit_for_bit_the_same_after_a_kill(tmp_path: Path) -> None:
    """The engine batches within a block: what a resumed run computes must be cut as before."""
    tasks = (SuiteTask(task="ql_facts", limit=12),)
    go(job(tmp_path / "whole", stages=("accuracy",), tasks=tasks))
    whole = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert len(whole) > 4
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "journal.jsonl").write_bytes(b"".join(whole[:3]) + whole[3][:40])
    go(job(tmp_path / "cut", stages=("accuracy",), tasks=tasks))
    left, right = ((tmp_path / name / "items.parquet").read_bytes() for name in ("whole", "cut"))
    assert left == right
