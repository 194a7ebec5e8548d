"""The child's side of a job: `python -m quantlab.worker JOB_FOLDER`.

It reads job.json, calls the task and writes result.json (temporary name, fsync, rename) with a record or a
Failure. The three standard streams have a fixed meaning, so that no other descriptor has to cross the process
wall and a job can be repeated by hand in a terminal:

    stdin   a pipe of which the parent holds the other end and into which it never writes: end of file means
    that
            the parent is dead, however it died
    stdout  one Event a line. SDKs print there as they please, so it is moved away before any of them is
    imported stderr  the log; the SDKs' stdout goes there too

A task is `(spec, reporter) -> record`; whatever it raises becomes a Failure.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, get_type_hints

import msgspec

from quantlab import disk
from quantlab.errors import BadInput, Broken, LedgerProblem, StageFailed
from quantlab.failures import failure_of, redact
from quantlab.records import (
    Artifact,
    Calibrated,
    CalibrateJob,
    CalibrateJobs,
    Converted,
    ConvertJob,
    Event,
    FetchJob,
    FinishedJob,
    MeasureJob,
    OnnxJob,
    OnnxModel,
    Verification,
    VerifyJob,
    Weights,
    encode,
)
from quantlab.records.encoder import Encoder, EncoderJob, EncoderPlan, PlanJob
from quantlab.records.engines import Asked, AskJob, BuildJob
from quantlab.records.jobs import Outcome, Spec
from quantlab.records.repair import MixJob, SearchJob, Sensitivity

TASKS: dict[str, tuple[str, type[Spec], Any]] = {
    "fetch": ("quantlab.fetch:run", FetchJob, Weights),
    "calibrate": ("quantlab.calibrate.modelopt:run", CalibrateJob, Calibrated),
    "calibrate_all": ("quantlab.calibrate.modelopt:run_all", CalibrateJobs, dict),
    "search": ("quantlab.calibrate.sensitivity:run", SearchJob, Sensitivity),
    "mix": ("quantlab.calibrate.compose:run", MixJob, Calibrated),
    "verify": ("quantlab.calibrate.verify:run", VerifyJob, Verification),
    "inspect": ("quantlab.calibrate.finished:run", FinishedJob, Verification),
    "ask": ("quantlab.engines.building:ask", AskJob, Asked),
    "build": ("quantlab.engines.building:build", BuildJob, Artifact),
    "measure": ("quantlab.measure.run:run", MeasureJob, dict),
    "onnx": ("quantlab.formats.onnx_model:run", OnnxJob, OnnxModel),
    "encoder": ("quantlab.encoder.make:run", EncoderJob, Encoder),
    "plan": ("quantlab.encoder.make:plan", PlanJob, EncoderPlan),
    "convert": ("quantlab.formats.convert:run", ConvertJob, Converted),
}
"""task -> ("module:function", type of the spec, type of the record)."""

PROGRESS_SECONDS = 0.1
"""A stage's progress is sent at most this often; its end always."""

_OOM_SCORE = "300"


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """job.json."""

    task: str
    """Key of TASKS."""
    attempt: str
    """Chosen anew by the parent for each start; only an answer that repeats it is believed."""
    spec: msgspec.Raw
    """The task's spec."""


class Answer(Outcome, frozen=True, kw_only=True):
    """result.json: an Outcome that says which attempt it belongs to."""

    attempt: str


class Reporter:
    """What a task says while it runs. Threads may share it.

    When the parent is gone no method raises: the process ends, with everything it started.
    """

    def __init__(self, send: Callable[[Event], None] = lambda event: None) -> None:
        """Args:
        send: takes each event: a pipe in a child, `list.append` in a test; by default nothing listens.
        """
        self._send = send
        self._sent: dict[str, float] = {}

    def about(self, recipe: str) -> Reporter:
        """The same, and every event says that it is about `recipe`."""
        return Reporter(lambda event: self._send(msgspec.structs.replace(event, recipe=recipe)))

    def progress(self, stage: str, done: float, total: float, text: str = "") -> None:
        """`done` of `total` units (samples, items, bytes) are done. Cheap enough for the innermost loop."""
        now = time.monotonic()
        if done < total and now - self._sent.get(stage, -1.0) < PROGRESS_SECONDS:
            return
        self._sent[stage] = now
        self._send(Event(kind="progress", stage=stage, done=done, total=total, text=redact(text)))

    def note(self, stage: str, text: str) -> None:
        """A sentence for the user: a changed group size, a download that starts."""
        self._send(Event(kind="note", stage=stage, text=redact(text)))

    def result(self, stage: str, record: msgspec.Struct, files: dict[str, str] | None = None) -> None:
        """A stage of this job is finished.

        Args:
            stage: "canary", "accuracy" ...
            record: the stage's record; refused as Broken when it holds a number that is not finite.
            files: name -> absolute path of finished files, which the parent moves into the ledger.
        """
        raw = msgspec.Raw(_checked(stage, record, type(record)))
        self._send(Event(kind="result", stage=stage, result=raw, files=files or {}))


def main(folder: Path) -> int:
    """Do the job that lies in `folder`; returns the exit code."""
    events = _take_streams()
    job = msgspec.json.decode((folder / "job.json").read_bytes(), type=Job)
    answer = perform(job, Reporter(_writer(events)), folder)
    try:
        disk.write(folder / "result.json", encode(answer))
    except LedgerProblem as error:
        print(f"{error}", file=sys.stderr)
        return error.exit_code
    finally:
        # End of file: all is said, even if an SDK's thread keeps this process from ending.
        os.dup2(2, events)
    return 0 if answer.failure is None else 1


def perform(job: Job, reporter: Reporter, folder: Path) -> Answer:
    """Call the job's task. Never raises: SystemExit and KeyboardInterrupt are answers too."""
    try:
        return Answer(attempt=job.attempt, result=msgspec.Raw(_work(job, reporter)))
    except BaseException as error:  # noqa: BLE001 - the wall of the process: all of it is told to the parent
        failure = failure_of(error, folder)
        print(failure.trace or f"{failure.place} {failure.problem} {failure.cure}", file=sys.stderr)
        return Answer(attempt=job.attempt, failure=failure)


def _work(job: Job, reporter: Reporter) -> bytes:
    """Call the task; its record as JSON."""
    where, spec_type, record_type = _lookup(job.task)
    if spec_type is not None:
        _spec(job, spec_type)  # before an SDK is imported, which takes seconds and may fail by itself
    module, name = where.split(":")
    function = getattr(import_module(module), name)
    record = function(_spec(job, spec_type or get_type_hints(function)["spec"]), reporter)
    return _checked(job.task, record, record_type)


def _lookup(task: str) -> tuple[str, type[Spec] | None, Any]:
    """The task's line in TASKS. Tests name a function instead; its annotation says what its spec is."""
    if task in TASKS:
        return TASKS[task]
    if ":" in task and os.environ.get("QUANTLAB_TEST_TASKS") == "1":
        return task, None, Any
    raise BadInput(f"no task {task!r}.", cure=f"Tasks: {', '.join(TASKS)}.")


def _spec(job: Job, spec_type: Any) -> Any:
    try:
        return msgspec.json.decode(job.spec, type=spec_type)
    except msgspec.ValidationError as error:
        raise StageFailed(
            f"the job does not fit the quantlab of {sys.executable}: {error}.",
            cure="Install the same version of quantlab in both environments.",
        ) from error


def _checked(stage: str, record: Any, record_type: Any) -> bytes:
    """The record as JSON that can be read back. JSON has no NaN or infinity: they come out as null."""
    data = encode(record)
    try:
        msgspec.json.decode(data, type=record_type)
    except msgspec.ValidationError as error:
        raise Broken(
            f"the record cannot be read back: {error}.",
            place=f"stage {stage}",
            cure="A null stands for a number that is not finite: look at weights and earlier checks.",
        ) from error
    return data


def _take_streams() -> int:
    """Keep what the parent handed over, leave the SDKs harmless streams, and watch the parent.

    Returns:
        The descriptor for events.
    """
    watch, events = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        # The log must be complete up to the moment of a kill, and take any character in any locale.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    if _has_parent():
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)
        _guard(watch, events)
        _volunteer()
    return events


def _has_parent() -> bool:
    """Somebody holds our standard input: the parent made us lead a session, or says so across an init (launch.py).

    Otherwise somebody repeats a job by hand.
    """
    return os.getsid(0) == os.getpid() or os.environ.get("QUANTLAB_WATCHED") == "1"


def _guard(watch: int, events: int) -> None:
    """Fork a process that kills the whole group when the parent is gone.

    A thread would not do: it needs the GIL, which a long call into C may hold for minutes. PR_SET_PDEATHSIG
    would not do either: it spares the grandchildren, and exists on Linux only.
    """
    if os.fork():
        os.close(watch)
        return
    os.close(events)
    try:
        while os.read(watch, 1):
            pass
    finally:
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _volunteer() -> None:
    """Let the kernel's out-of-memory killer take this process and not the user's shell or notebook."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists() and os.access(score, os.W_OK):
        score.write_text(_OOM_SCORE)


def _writer(pipe: int) -> Callable[[Event], None]:
    lock = Lock()

    def send(event: Event) -> None:
        line = msgspec.json.encode(event) + b"\n"
        try:
            with lock:
                while line:
                    line = line[os.write(pipe, line) :]
        except OSError:
            print("the parent process is gone.", file=sys.stderr)
            if _has_parent():
                os.killpg(os.getpgrp(), signal.SIGKILL)
            os._exit(1)

    return send


if __name__ == "__main__":
    # Tasks import `quantlab.worker`: run that module and not this second copy, or classes would differ.
    from quantlab.worker import main as run_job

    sys.exit(run_job(Path(sys.argv[1])))
