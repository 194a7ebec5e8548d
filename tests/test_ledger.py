"""The ledger against what happens to a folder: several writers, kills, newer versions, damage, full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantlab import headlines
from quantlab.errors import LedgerProblem
from quantlab.ledgers import MIGRATIONS, RESULTS, Ledger
from quantlab.records import (
    SCHEMA,
    Canary,
    Failure,
)
from tests.ledger_samples import RECORDS, a_run, entry

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "läufe 1")


def document(ledger: Ledger) -> Path:
    [path] = ledger.root.glob("entries/*/*.json")
    return path


@pytest.mark.parametrize("stage", RESULTS)
def test_every_stage_comes_back_as_it_was(ledger: Ledger, stage: str) -> None:
    ledger.append(entry(stage))
    found = ledger.find(stage, "a")
    assert found is not None
    assert ledger.result(found) == RECORDS[stage]
    assert ledger.entries(stage) == [found]


def test_reading_makes_nothing_and_finds_nothing(ledger: Ledger) -> None:
    assert (ledger.find("canary", "a"), ledger.entries(), ledger.runs(), ledger.last_run()) == (
        None,
        [],
        [],
        None,
    )
    frame = ledger.frame()
    assert (len(frame), list(frame.columns)) == (0, list(headlines.COLUMNS))
    assert not ledger.root.exists()


def test_the_root_is_the_environments_or_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUANTLAB_LEDGER", raising=False)
    assert Ledger().root == tmp_path / "runs"
    monkeypatch.setenv("QUANTLAB_LEDGER", str(tmp_path / "elsewhere"))
    assert Ledger().root == tmp_path / "elsewhere"
    assert Ledger("given").root == tmp_path / "given"


def test_find_takes_the_newest_done_even_if_the_clock_went_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = Failure(kind="StageFailed", problem="killed", trace="...")
    ledger.append(entry(model="one"))
    monkeypatch.setattr(time, "time_ns", lambda: 5)
    ledger.append(entry(model="two"))
    ledger.append(entry(model="three", status="failed", result=None, failure=failure))
    found = ledger.find("canary", "a")
    assert found is not None
    assert found.model == "two"
    assert [one.model for one in ledger.entries()] == ["one", "two", "three"]
    assert ledger.result(ledger.entries()[-1]) is None
    assert ledger.find("canary", "b") is None
    assert ledger.find("verify", "a") is None


def test_an_identity_is_not_found_by_its_beginning(ledger: Ledger) -> None:
    ledger.append(entry(identity="a.b"))
    assert ledger.find("canary", "a") is None
    assert ledger.find("canary", "a.b") is not None


def test_entries_can_be_chosen(ledger: Ledger) -> None:
    for stage, model, recipe in [("canary", "1b", "fp8"), ("canary", "3b", "bf16"), ("verify", "1b", "bf16")]:
        ledger.append(entry(stage, model=model, recipe=recipe))
    assert [(one.stage, one.recipe) for one in ledger.entries(model="1b")] == [
        ("canary", "fp8"),
        ("verify", "bf16"),
    ]
    assert len(ledger.entries("canary")) == 2
    assert [one.model for one in ledger.entries("canary", recipe="bf16")] == ["3b"]


def test_what_could_not_be_read_again_is_not_written(ledger: Ledger) -> None:
    bad = Canary(passed=True, reason="", prompts=(), seconds=float("inf"))
    with pytest.raises(LedgerProblem, match="cannot be read back") as caught:
        ledger.append(entry(result=bad))
    assert "not finite" in caught.value.cure
    assert ledger.entries() == []


WRITER = """
import sys
from tests.test_ledger import Ledger, entry
ledger = Ledger(sys.argv[1])
for number in range(40):
    ledger.append(entry(identity="same", model=f"{sys.argv[2]}-{number}"))
    ledger.append(entry(identity=f"own-{sys.argv[2]}-{number}"))
    assert ledger.find("canary", "same") is not None
"""


def python(code: str, *words: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_four_processes_append_at_once_and_nothing_is_lost(ledger: Ledger) -> None:
    writers = [python(WRITER, ledger.root, number) for number in range(4)]
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    found = ledger.entries()
    assert len(found) == 4 * 80
    assert len({one.model for one in found if one.identity == "same"}) == 160
    assert list(ledger.root.rglob("*.tmp")) == []


HOLDER = """
import sys, time
from tests.test_ledger import Ledger
with Ledger(sys.argv[1]).hold("stage"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_keeps_others_waiting_and_goes_with_its_killed_holder(ledger: Ledger) -> None:
    holder = python(HOLDER, ledger.root)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with ledger.hold("another", on_wait=lambda: pytest.fail("nobody holds this one")):
        pass
    # Only when told that we wait is the holder killed: without a working lock nobody would kill it.
    with ledger.hold("stage", on_wait=holder.kill):
        assert holder.wait(timeout=60) == -signal.SIGKILL
    holder.communicate()
    with ledger.hold("stage", on_wait=lambda: pytest.fail("it was released")):
        pass


def test_a_lock_is_released_by_an_error_and_keeps_threads_apart(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError), ledger.hold("stage"):
        raise ZeroDivisionError
    order: list[str] = []
    inside, waiting = threading.Event(), threading.Event()

    def second() -> None:
        inside.wait()
        with ledger.hold("stage", on_wait=waiting.set):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with ledger.hold("stage"):
        inside.set()
        assert waiting.wait(30)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_newer_schema_is_refused_by_name(ledger: Ledger) -> None:
    ledger.append(entry())
    path = document(ledger)
    path.write_bytes(path.read_bytes().replace(b'"schema":1', b'"schema":2'))
    with pytest.raises(LedgerProblem, match="written by a newer quantlab") as caught:
        ledger.entries()
    assert caught.value.place == str(path)
    assert "Upgrade" in caught.value.cure
    (ledger.root / "ledger.json").write_text('{"schema": 2}')
    with pytest.raises(LedgerProblem, match="newer quantlab"):
        Ledger(ledger.root)
    with pytest.raises(LedgerProblem, match="newer quantlab"):
        ledger.append(entry())


def test_an_older_schema_is_migrated_on_reading(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.append(entry())
    path = document(ledger)
    old = msgspec.json.decode(path.read_bytes())
    old |= {"schema": 0, "precision": old.pop("recipe")}
    path.write_bytes(msgspec.json.encode(old))
    (ledger.root / "ledger.json").write_text('{"schema": 0}')
    with pytest.raises(LedgerProblem, match="no way from schema 0 to 1"):
        ledger.entries()

    def rename(document: dict[str, Any]) -> dict[str, Any]:
        return {("recipe" if key == "precision" else key): value for key, value in document.items()}

    monkeypatch.setitem(MIGRATIONS, 0, rename)
    again = Ledger(ledger.root)
    assert [(one.recipe, one.schema) for one in again.entries()] == [("fp8", 1)]
    assert b"precision" in path.read_bytes(), "reading changes nothing on the disk"
    again.append(entry(identity="b"))
    assert msgspec.json.decode((ledger.root / "ledger.json").read_bytes()) == {"schema": SCHEMA}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"schema":1}', b'{"schema":"1"}'])
def test_a_damaged_document_is_named_and_never_skipped(ledger: Ledger, damage: bytes) -> None:
    ledger.append(entry(identity="good"))
    ledger.append(entry("verify"))
    [path] = (ledger.root / "entries" / "verify").iterdir()
    path.write_bytes(damage)
    for read in (ledger.entries, ledger.frame, lambda: ledger.find("verify", "a")):
        with pytest.raises(LedgerProblem, match="is damaged") as caught:
            read()
        assert caught.value.place == str(path)
        assert caught.value.cure
    assert ledger.find("canary", "good") is not None, "what does not need the document still works"
    path.unlink()
    assert len(ledger.entries()) == 1


def test_leftovers_and_strangers_are_no_entries(ledger: Ledger) -> None:
    ledger.append(entry())
    folder = document(ledger).parent
    (folder / ".a.123.json.77-abcd.tmp").write_bytes(b"{half")
    (folder / "notes.json").write_text("{}")
    (folder / "README.md").write_text("mine")
    assert len(ledger.entries()) == 1


def test_runs_come_back_in_order(ledger: Ledger) -> None:
    paths = [ledger.save_run(a_run(text)) for text in ("eins", "zwei ✓")]
    assert sorted(paths) == paths
    assert [run.summary for run in ledger.runs()] == ["eins", "zwei ✓"]
    last = ledger.last_run()
    assert last == a_run("zwei ✓")


def test_the_frame_has_a_row_an_entry_with_its_headlines(ledger: Ledger) -> None:
    for stage in RESULTS:
        ledger.append(entry(stage))
    failure = Failure(kind="StageFailed", problem="killed")
    ledger.append(entry("accuracy", status="failed", result=None, failure=failure))
    frame = ledger.frame()
    assert len(frame) == len(RESULTS) + 1
    rows = frame[frame.status == "done"].set_index("stage")
    assert rows.score["accuracy"] == pytest.approx(0.6)
    assert rows["score.facts"]["accuracy"] == 0.5
    assert rows.kl["fidelity"] == 0.03
    assert rows.top1["fidelity"] == 0.93
    assert rows.tokens_per_second["throughput"] == 30.0, "the best cell that is valid"
    assert rows.ttft_seconds["throughput"] == pytest.approx(1 / 30)
    assert rows.failed_checks["verify"] == "amax"
    assert rows.perplexity["reference"] == 14.5
    assert rows.checkpoint_bytes["calibrate"] == 5
    assert rows.groups["search"] == 1
    assert rows.engine_version["build"] == "vllm 0.24.0"
    assert frame.failure.iloc[-1] == "StageFailed: killed"
