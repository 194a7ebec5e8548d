"""Every way a job can fail, seen from the parent: one sentence, a cure, the trace kept, and no secret in any text."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from quantlab.errors import (
    BadInput,
    Broken,
    LedgerProblem,
    NoAccess,
    QuantlabError,
    StageFailed,
)
from quantlab.failures import TAIL_LINES, ChildTrace, death_of, failure_of, redact
from tests.test_child import ROOT, failing, job


def test_an_unexpected_error_keeps_its_trace(tmp_path: Path) -> None:
    error = failing(StageFailed, "crash", tmp_path, text="ümlaut")
    assert error.problem == "RuntimeError: the weights hate ümlaut"
    assert error.place == "stage tests.child_tasks:crash"
    assert str(tmp_path / "job" / "log.txt") in error.cure
    assert isinstance(error.__cause__, ChildTrace)
    assert "in crash" in str(error.__cause__)
    assert "in crash" in (tmp_path / "job" / "log.txt").read_text()
    assert "in crash" in failure_of(error, tmp_path).trace, "the ledger can keep it"


def test_our_own_errors_keep_class_place_and_cure(tmp_path: Path) -> None:
    error = failing(Broken, "refuse", tmp_path)
    assert str(error) == "layer 3: a scale is zero. Calibrate again."
    assert error.__cause__ is None


@pytest.mark.parametrize(
    ("task", "kind", "words"),
    [
        ("no_memory", StageFailed, "out of memory"),
        ("no_space", LedgerProblem, "the disk is full"),
        ("no_package", NoAccess, "'a_package_that_nobody_wrote' is missing"),
        ("not_finite", Broken, "seconds"),
        ("not_json", StageFailed, "TypeError"),
        ("leave", StageFailed, "SystemExit: 3"),
        ("no_such_task", StageFailed, "no_such_task"),
    ],
)
def test_foreign_errors_become_ours(tmp_path: Path, task: str, kind: type[QuantlabError], words: str) -> None:
    error = failing(kind, task, tmp_path)
    assert words in error.problem
    assert error.cure


def test_a_full_disk_is_named_with_the_bytes_left(tmp_path: Path) -> None:
    error = failing(LedgerProblem, "no_space", tmp_path)
    assert error.place == str(tmp_path), "the folder of the file that did not fit"
    assert "bytes are free" in error.problem


def test_torch_errors_are_known_by_name_without_torch(tmp_path: Path) -> None:
    kind = type("OutOfMemoryError", (RuntimeError,), {})
    text = "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"
    failure = failure_of(kind(text), tmp_path)
    assert failure.kind == "StageFailed"
    assert failure.problem == "out of GPU memory. CUDA out of memory. Tried to allocate 2.00 GiB."
    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")
    assert failure_of(cpu, tmp_path).problem.startswith("out of memory.")
    rust = RuntimeError("I/O error: No space left on device (os error 28)")
    assert failure_of(rust, tmp_path).kind == "LedgerProblem"
    assert failure_of(KeyboardInterrupt(), tmp_path).kind == "Interrupted"
    assert failure_of(ModuleNotFoundError(name="quantlab.nothing"), tmp_path).kind == "StageFailed"


def test_a_killed_child_is_explained_with_the_end_of_its_log(tmp_path: Path) -> None:
    error = failing(StageFailed, "kill", tmp_path)
    assert error.problem.startswith("killed (SIGKILL), ")
    assert "out of memory" in error.problem
    lines = error.problem.splitlines()
    assert len(lines) == 1 + TAIL_LINES
    assert lines[-1].strip() == "my token is [token]"
    assert lines[-2].strip() == "line 49"
    assert str(tmp_path / "job" / "log.txt") in error.cure


def test_the_kernels_own_count_makes_out_of_memory_certain(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("")
    assert "out of memory, as the kernel says. It printed nothing." in death_of("t", -9, log, oom=True).problem
    assert "most likely out of memory" in death_of("t", -9, log, oom=False).problem
    assert "died of SIGBUS" in death_of("t", -signal.SIGBUS, log, oom=True).problem
    assert "died of signal 63" in death_of("t", -63, log, oom=False).problem


def test_a_crash_in_c_names_its_signal_and_shows_where(tmp_path: Path) -> None:
    error = failing(StageFailed, "segfault", tmp_path)
    assert "SIGSEGV" in error.problem
    assert "in segfault" in (tmp_path / "job" / "log.txt").read_text(), "faulthandler is on"


@pytest.mark.parametrize("code", [0, 5])
def test_a_child_that_leaves_without_a_word_has_failed(tmp_path: Path, code: int) -> None:
    error = failing(StageFailed, "vanish", tmp_path, count=code)
    assert f"ended without a result (exit code {code})" in error.problem
    assert "about to vanish" in error.problem


def test_a_full_disk_while_answering_is_told_too(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, errno\nreal = os.replace\ndef replace(a, b):\n    if str(b).endswith('result.json'):\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device')\n    real(a, b)\nos.replace = replace\n"
        "print('printed before the worker took its streams')\n"
    )
    path = os.pathsep.join([str(folder), str(ROOT)])
    error = failing(LedgerProblem, "echo", tmp_path, env={"PYTHONPATH": path})
    assert "the disk is full" in error.problem
    assert "printed before" in (tmp_path / "job" / "log.txt").read_text()
    assert list((tmp_path / "job").glob(".*")) == [], "no temporary file is left"


def test_tokens_travel_in_the_environment_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_" + "T" * 34
    monkeypatch.setenv("HF_TOKEN", token)
    assert job("environment", tmp_path, text="HF_TOKEN")["HF_TOKEN"] == token
    assert token not in (tmp_path / "job" / "job.json").read_text()
    monkeypatch.setenv("HF_TOKEN", "an-enterprise-secret")
    error = failing(StageFailed, "leak", tmp_path)
    written = f"{error} {error.__cause__} {(tmp_path / 'job' / 'log.txt').read_text()}"
    written += (tmp_path / "job" / "result.json").read_text()
    assert "an-enterprise-secret" not in written
    assert "ZZZZ" not in written
    assert error.problem == "RuntimeError: 401 for header Bearer [token] and [token]"
    assert redact("hf_quant_config.json hf_transfer") == "hf_quant_config.json hf_transfer"
    assert "HF_TOKEN" in failing(BadInput, "echo", tmp_path, text=f"https://user:{token}@host").cure
