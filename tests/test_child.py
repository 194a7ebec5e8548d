"""Jobs in real processes: what comes back, what is killed, and that nothing of it outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantlab import child, disk
from quantlab.errors import (
    BadInput,
    Interrupted,
    LedgerProblem,
    QuantlabError,
    StageFailed,
)
from quantlab.host import physical_cores
from quantlab.records import Canary, Event
from quantlab.records.jobs import FetchJob
from quantlab.worker import TASKS, Answer, Reporter
from tests.child_tasks import Ask

ROOT = Path(__file__).resolve().parent.parent
TESTING = {"QUANTLAB_TEST_TASKS": "1"}


def job(task: str, folder: Path, *, text: str = "", count: int = 0, **words: Any) -> Any:
    env = {**TESTING, **words.pop("env", {})}
    spec = Ask(text=text, folder=str(folder), count=count)
    return child.run(f"tests.child_tasks:{task}", spec, workdir=folder / "job", env=env, **words)


def failing(error: type[QuantlabError], task: str, folder: Path, **words: Any) -> QuantlabError:
    with pytest.raises(QuantlabError) as caught:
        job(task, folder, **words)
    assert type(caught.value) is error, caught.value
    return caught.value


def until(happens: Callable[[], Any]) -> Any:
    """Wait for it; a test that waits in vain fails."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if value := happens():
            return value
        time.sleep(0.02)
    raise AssertionError("it did not happen within 30 s")


def pids(folder: Path) -> list[int]:
    path = folder / "pids"
    until(path.exists)
    return [int(word) for word in path.read_text().split()]


def dead(pid: int) -> bool:
    """Gone, or a zombie that its new parent has not collected yet."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_record_comes_back_through_every_kind_of_text(tmp_path: Path) -> None:
    text = 'ü 模型 🦙 "quotes" \\ \n\t\u2028 end'
    events: list[Event] = []
    folder = tmp_path / "köln 目录"
    folder.mkdir()
    assert job("echo", folder, text=text, count=7, on_event=events.append) == {"text": text, "count": 7}
    assert [(event.kind, event.text) for event in events] == [("note", text)]
    assert job("record", folder, text=text) == {"name": "size", "passed": True, "finding": text}


def test_events_arrive_in_order_and_progress_is_thinned(tmp_path: Path) -> None:
    events: list[Event] = []
    assert job("talk", tmp_path, count=200_000, on_event=events.append) == 200_000
    progress = [event.done for event in events if event.kind == "progress"]
    assert progress == sorted(progress)
    assert progress[-1] == 200_000
    assert len(progress) < 1000
    assert events[-1].files == {"items": str(tmp_path)}
    assert events[-1].result is not None
    assert msgspec.json.decode(events[-1].result, type=Canary).reason == "größer ✓"


def test_ten_megabytes_of_chatter_go_to_the_log_and_not_into_the_events(tmp_path: Path) -> None:
    events: list[Event] = []
    assert job("noisy", tmp_path, count=100_000, on_event=events.append) == "done"
    log = (tmp_path / "job" / "log.txt").read_bytes()
    assert len(log) > 10_000_000
    assert log.endswith("from C: ä\nfrom a grandchild\n".encode())
    assert events == []
    job("echo", tmp_path)
    assert (tmp_path / "job" / "log.txt").stat().st_size == 0, "the log is that of the last attempt"


def test_an_answer_of_an_earlier_attempt_is_never_believed(tmp_path: Path) -> None:
    assert job("echo", tmp_path, text="first")["text"] == "first"
    old = (tmp_path / "job" / "result.json").read_bytes()
    failing(StageFailed, "vanish", tmp_path)
    assert not (tmp_path / "job" / "result.json").exists()
    # An orphan of an earlier attempt that writes at the last moment is told by its attempt.
    (tmp_path / "job" / "result.json").write_bytes(old)
    assert child._read(tmp_path / "job" / "result.json", "another attempt") is None
    assert msgspec.json.decode(old, type=Answer).failure is None


def test_grandchildren_end_with_the_job(tmp_path: Path) -> None:
    assert job("orphan", tmp_path) == "done"
    until(lambda: all(dead(pid) for pid in pids(tmp_path)))


def test_a_finished_child_that_hangs_in_its_teardown_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "LINGER_SECONDS", 0.5)
    monkeypatch.setattr(child, "GRACE_SECONDS", 0.5)
    assert job("linger", tmp_path) == "done"


PARENT = """
import sys
from pathlib import Path
from tests import test_child
test_child.job(sys.argv[1], Path(sys.argv[2]))
"""


def parent(task: str, folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **TESTING, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PARENT, task, str(folder)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)


@pytest.mark.parametrize("task", ["family", "stubborn", "chatter"])
def test_kill_nine_of_the_parent_ends_the_whole_family(tmp_path: Path, task: str) -> None:
    process = parent(task, tmp_path)
    family = pids(tmp_path)
    assert not any(dead(pid) for pid in family)
    process.kill()
    process.communicate()
    until(lambda: all(dead(pid) for pid in family))
    assert not (tmp_path / "job" / "result.json").exists()


def test_ctrl_c_ends_the_whole_family_and_says_so(tmp_path: Path) -> None:
    process = parent("family", tmp_path)
    family = pids(tmp_path)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert b"Interrupted: stopped by Ctrl-C" in errors
    assert all(dead(pid) for pid in family)


def test_ctrl_c_does_not_wait_for_a_deaf_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GRACE_SECONDS", 0.5)

    def press() -> None:
        pids(tmp_path)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    failing(Interrupted, "stubborn", tmp_path)
    thread.join()
    assert all(dead(pid) for pid in pids(tmp_path))


def test_an_error_of_the_listener_ends_the_child(tmp_path: Path) -> None:
    def listen(event: Event) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        job("chatter", tmp_path, on_event=listen)
    assert all(dead(pid) for pid in pids(tmp_path))


def test_threads_are_set_and_what_the_user_set_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in child.thread_policy():
        monkeypatch.delenv(name, raising=False)
    assert child.thread_policy()["OMP_NUM_THREADS"] == str(physical_cores())
    names = " ".join(child.thread_policy())
    seen = job("environment", tmp_path, text=names, threads=3)
    seen.pop("path")
    assert seen == {
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "OMP_WAIT_POLICY": "passive",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    policy = child.thread_policy()
    assert (policy["OMP_NUM_THREADS"], policy["MKL_NUM_THREADS"]) == ("5", "5")
    assert policy["OMP_WAIT_POLICY"] == "active"
    assert child.thread_policy(2)["OMP_NUM_THREADS"] == "2", "an argument is more explicit than the environment"


def test_a_file_in_the_users_folder_is_not_taken_for_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path) not in job("environment", tmp_path)["path"].split()


def test_test_tasks_are_refused_without_the_switch(tmp_path: Path) -> None:
    assert "no task" in failing(BadInput, "echo", tmp_path, env={"QUANTLAB_TEST_TASKS": "0"}).problem


def test_a_job_of_another_version_is_explained(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="does not fit the quantlab of") as caught:
        child.run("verify", Ask(), workdir=tmp_path / "job")
    assert "same version" in caught.value.cure


def test_bad_places_are_explained(tmp_path: Path) -> None:
    assert "no Python" in failing(BadInput, "echo", tmp_path, command=[str(tmp_path / "python")]).problem
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerProblem, match="a file stands where a folder is needed"):
        child.run("verify", Ask(), workdir=tmp_path / "file" / "job")


def test_an_interpreter_without_quantlab_shows_what_it_said(tmp_path: Path) -> None:
    """As another environment's Python would: it starts, and cannot import the worker."""
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    fake.chmod(0o755)
    assert "No module named" in failing(StageFailed, "echo", tmp_path, command=[str(fake)]).problem


def test_a_job_can_be_repeated_by_hand(tmp_path: Path) -> None:
    """No parent to watch: it runs to its end, and leaves the process group of the caller alone."""
    job("echo", tmp_path, text="again")
    (tmp_path / "job" / "result.json").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "quantlab.worker", str(tmp_path / "job")],
        env={**os.environ, **TESTING},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["text"] == "again"
    assert json.loads((tmp_path / "job" / "result.json").read_text())["result"]["text"] == "again"


def test_every_task_names_its_records() -> None:
    kept = {
        "fetch",
        "calibrate",
        "calibrate_all",
        "search",
        "mix",
        "verify",
        "inspect",
        "ask",
        "build",
        "measure",
        "convert",
        "onnx",
    }
    assert set(TASKS) == kept | {"encoder", "plan"}
    assert TASKS["fetch"][1] is FetchJob
    events: list[Event] = []
    Reporter(events.append).note("fetch", "hf_" + "A" * 34)
    assert events[0].text == "[token]"
    Reporter().progress("fetch", 1, 2)


def test_importing_the_parent_side_loads_nothing_heavy() -> None:
    code = "import sys, quantlab.ledgers, quantlab.child, quantlab.host, quantlab.doctor; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"numpy", "pandas", "torch", "subprocess", "asyncio"} & set(loaded.stdout.split())


def test_a_document_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write(tmp_path / "document", b"old")

    def stop(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        disk.write(tmp_path / "document", b"new")
    assert (tmp_path / "document").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["document"]


def test_what_the_user_asked_of_glibc_stays() -> None:
    assert child.tunables("") == "glibc.malloc.hugetlb=1"
    assert child.tunables("glibc.malloc.arena_max=2") == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
    assert child.tunables("glibc.malloc.hugetlb=0") == "glibc.malloc.hugetlb=0"
