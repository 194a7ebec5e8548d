"""What is started on a leash ends with us, however we end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quantlab import leash

ROOT = Path(__file__).resolve().parent.parent
FAMILY = """
import os, pathlib, signal, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(300)"
child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
child.stdout.readline()  # from here on it is deaf
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
part = pathlib.Path(sys.argv[1] + ".part")
part.write_text(f"{os.getpid()} {child.pid}")
part.rename(sys.argv[1])
time.sleep(300)
"""
"""A program that starts another one which does not listen to SIGTERM."""


def _until(true: Callable[[], bool], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.05)


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.parametrize("way", ["listens", "deaf"])
def test_stop_ends_the_program_and_what_it_started(tmp_path: Path, way: str) -> None:
    said = tmp_path / "pids"
    with (tmp_path / "log").open("wb") as log:
        process = leash.start([sys.executable, "-c", FAMILY, str(said), way], os.environ, log)
        _until(said.exists)
        leash.stop(process)
    # SIGKILL was sent; the kernel carries it out a moment later.
    _until(lambda: all(_gone(int(pid)) for pid in said.read_text().split()), seconds=5)


@pytest.mark.parametrize("way", ["listens", "deaf"])
def test_a_kill_of_the_one_who_holds_the_leash_ends_all(tmp_path: Path, way: str) -> None:
    said = tmp_path / "pids"
    code = (
        "import os, sys, time\nfrom quantlab import leash\n"
        f"words = [sys.executable, '-c', {FAMILY!r}, {str(said)!r}, {way!r}]\n"
        f"leash.start(words, os.environ, open({str(tmp_path / 'log')!r}, 'wb'))\n"
        "time.sleep(300)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    _until(said.exists)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    _until(lambda: all(_gone(int(pid)) for pid in said.read_text().split()))


def test_its_exit_code_is_the_programs_and_a_missing_program_says_so(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for words, code in (([sys.executable, "-c", "raise SystemExit(7)"], 7), (["/no/such/program"], 127)):
        with log.open("wb") as file:
            process = leash.start(words, os.environ, file)
            assert process.wait() == code
            leash.stop(process)
    assert "cannot be started" in log.read_text()
