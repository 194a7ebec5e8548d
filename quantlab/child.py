"""The parent's side of a job: one heavy stage in its own process, under any interpreter.

Why a process: torch and CUDA give memory back only when their process ends; an SDK may crash, be killed for
its memory or call `exit`; TensorRT-LLM, vLLM and ModelOpt pin different versions of torch and live in
different environments.

    workdir/job.json      what to do, written by the parent
    workdir/result.json   the record or the Failure, written by the child
    workdir/log.txt       everything the SDKs print, of the last attempt

Another interpreter, or a container, is a prefix of words before `-m quantlab.worker`; launch.py says which.

The child leads its own session, so that Ctrl-C in the terminal reaches the parent alone and the parent ends
the child's whole group, grandchildren included. POSIX only (Linux, macOS, WSL).

The thread policy stands here because it must be in the environment before the child loads OpenMP. After a
parallel region OpenMP's threads spin for a while instead of sleeping. Where cores are shared or few, they
spin on cores that others need, and torch becomes several times slower. And one thread a physical core: two
hyperthreads share the one vector unit a matrix product needs.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from quantlab import disk, launch
from quantlab.errors import BadInput, Interrupted, QuantlabError, StageFailed
from quantlab.failures import death_of, error_of, oom_kills, redact
from quantlab.host import physical_cores
from quantlab.records import Event, encode
from quantlab.records.jobs import Spec
from quantlab.worker import TASKS, Answer, Job

if TYPE_CHECKING:
    from subprocess import Popen

POLL_SECONDS = 0.2
"""How often a silent child is looked at, in case a grandchild keeps its pipe open."""
GRACE_SECONDS = 2.0
"""Between SIGTERM and SIGKILL."""
NO_PROGRAM = (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.EISDIR, errno.ENOEXEC, errno.ELOOP)
"""Error numbers of a file that is no program of this machine."""
LINGER_SECONDS = 10.0
"""A child that has its result and hangs in an SDK's teardown is waited for this long at most twice."""


class _Line(Event, frozen=True, kw_only=True):
    """An Event as it is decoded: msgspec takes `Raw | None` for null alone."""

    result: msgspec.Raw = msgspec.Raw(b"null")


def run(
    task: str,
    spec: Spec,
    *,
    workdir: Path,
    threads: int = 0,
    command: Sequence[str] = (),
    on_event: Callable[[Event], None] | None = None,
    env: Mapping[str, str] | None = None,
) -> Any:
    """Do one job in a child process and return its record, of the type that `worker.TASKS` names.

    Args:
        task: key of `worker.TASKS`.
        spec: the task's spec.
        workdir: folder of this job. One process at a time may use it: hold the ledger's lock.
        threads: for OpenMP and MKL; 0 leaves it to `thread_policy`.
        command: what stands before Python's arguments, for another Python or a container; empty is this Python.
        on_event: called in this thread for each Event. If it raises, the child is ended.
        env: variables on top of everything else.

    Raises:
        QuantlabError: what the child raised, of the same class.
        StageFailed: the child died without an answer.
        Interrupted: Ctrl-C; the child's process group has ended.
        LedgerProblem: the work folder cannot be written.
        BadInput: the command cannot be started, or a secret stands in the spec.
    """
    attempt = _prepare(task, spec, workdir)
    log, kills = workdir / "log.txt", oom_kills()
    variables = environment(command, workdir, threads, env)
    if task.startswith("calibrate"):
        variables["GLIBC_TUNABLES"] = tunables(variables.get("GLIBC_TUNABLES", ""))
    words = launch.expanded(command, msgspec.to_builtins(spec), workdir, variables) or [sys.executable]
    process = _start(words, workdir, variables)
    code = _supervise(process, on_event, workdir)
    answer = _read(workdir / "result.json", attempt)
    if answer is None:
        raise death_of(task, code, log, oom=oom_kills() > kills)
    if answer.failure is not None:
        raise _located(error_of(answer.failure), task, log)
    return msgspec.convert(answer.result, TASKS[task][2] if task in TASKS else Any)


def thread_policy(threads: int = 0) -> dict[str, str]:
    """The environment variables a child gets for its threads and SDKs.

    Args:
        threads: explicit number, stronger than the environment; 0 takes the user's OMP_NUM_THREADS, or else
        one
            thread a physical core this process may use. Every other variable the user has set stays as it is.
    """
    count = str(threads) if threads else os.environ.get("OMP_NUM_THREADS") or str(physical_cores())
    policy = {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "passive",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if threads else ()
    return {name: ours if name in counts else os.environ.get(name, ours) for name, ours in policy.items()}


def tunables(asked: str) -> str:
    """GLIBC_TUNABLES of a child that calibrates: what the user asked for, and huge pages for large blocks.

    Such a child returns every large block when it is freed (calibrate/feed.py), and gets the next one as zeroed pages
    of 4 KB, one fault each. Pages of 2 MB (madvise) took FP8 of SmolLM2 from 27 to 11 s in the kernel, at the same peak
    within 0.2 %.
    """
    mine = "glibc.malloc.hugetlb"
    return asked if mine in asked else ":".join(filter(None, (asked, f"{mine}=1")))


def environment(
    command: Sequence[str], workdir: Path, threads: int = 0, env: Mapping[str, str] | None = None
) -> dict[str, str]:
    """This process's environment, the thread policy, and the way to this very quantlab; `env` on top."""
    result = {**os.environ, **thread_policy(threads)}
    if path := launch.python_path(command, workdir):
        result["PYTHONPATH"] = path
    if launch.in_container(command):
        result[launch.WATCHED] = "1"
    return {**result, **(env or {})}


def _prepare(task: str, spec: Spec, workdir: Path) -> str:
    """Write job.json and take away the answer of an earlier attempt; returns the name of this attempt."""
    attempt = os.urandom(8).hex()
    data = encode(Job(task=task, attempt=attempt, spec=msgspec.Raw(encode(spec))))
    text = data.decode()
    if redact(text) != text:
        raise BadInput("a hub token stands in the job.", place=f"stage {task}", cure="Give it as HF_TOKEN instead.")
    with disk.trouble(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "result.json").unlink(missing_ok=True)
        (workdir / "log.txt").write_bytes(b"")
    disk.write(workdir / "job.json", data)
    return attempt


def _start(words: Sequence[str], workdir: Path, variables: dict[str, str]) -> Popen[bytes]:
    from subprocess import PIPE, Popen

    # -P: a file called datasets.py in the user's folder must not be taken for the package.
    command = [*words, "-P", "-m", "quantlab.worker", str(workdir.absolute())]
    with (workdir / "log.txt").open("ab") as log:
        try:
            return Popen(command, stdin=PIPE, stdout=PIPE, stderr=log, env=variables, start_new_session=True)
        except OSError as error:
            if error.errno not in NO_PROGRAM:
                raise
            raise BadInput(
                f"no Python can be started there: {error.strerror}.",
                place=words[0],
                cure="Give the path of the environment's bin/python.",
            ) from error


def _supervise(process: Popen[bytes], on_event: Callable[[Event], None] | None, workdir: Path) -> int:
    """Pass events on until the child ends, and leave nothing of its group behind. Returns the exit code."""
    try:
        _listen(process, on_event or (lambda event: None), workdir / "log.txt")
        _wait(process, workdir / "result.json")
    except KeyboardInterrupt:
        raise Interrupted("stopped by Ctrl-C.", cure="The same command goes on where it was.") from None
    finally:
        _end(process)
    return process.returncode


def _listen(process: Popen[bytes], hear: Callable[[Event], None], log: Path) -> None:
    import selectors

    assert process.stdout is not None
    pipe, rest = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if selector.select(POLL_SECONDS):
                chunk = os.read(pipe, 1 << 16)
                if not chunk:
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    _hear(line, hear, log)
            elif process.poll() is not None:
                return


def _hear(line: bytes, hear: Callable[[Event], None], log: Path) -> None:
    try:
        event: Event = msgspec.json.decode(line, type=_Line)
    except msgspec.DecodeError:
        # Printed before the worker had taken its streams, by a sitecustomize for example.
        with log.open("ab") as file:
            file.write(line + b"\n")
    else:
        hear(event if event.kind == "result" else msgspec.structs.replace(event, result=None))


def _wait(process: Popen[bytes], result: Path) -> None:
    from subprocess import TimeoutExpired

    while process.poll() is None:
        with suppress(TimeoutExpired):
            process.wait(LINGER_SECONDS)
        if result.exists():
            return


def _end(process: Popen[bytes]) -> None:
    """End the child's process group: ask, wait, kill; wait for the child and close its pipes."""
    from signal import SIGKILL, SIGTERM
    from subprocess import TimeoutExpired

    try:
        if process.poll() is None:
            _signal(process.pid, SIGTERM)
            with suppress(TimeoutExpired):
                process.wait(GRACE_SECONDS)
    finally:
        _signal(process.pid, SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _signal(group: int, number: int) -> None:
    # Nobody left is what we want; macOS says "not permitted" for a group of which only zombies are left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _read(path: Path, attempt: str) -> Answer | None:
    """The answer of this attempt, or None: also when an orphan of an earlier attempt wrote in between."""
    if not path.exists():
        return None
    with disk.trouble(path):
        answer = msgspec.json.decode(path.read_bytes(), type=Answer)
    return answer if answer.attempt == attempt else None


def _located(error: QuantlabError, task: str, log: Path) -> QuantlabError:
    error.place = error.place or f"stage {task}"
    if isinstance(error, StageFailed):
        error.cure = f"{error.cure} The log is {log}.".strip()
    return error
