"""One stage: asked of the ledger first, otherwise run in a child under a lock and written down, done or failed.

The lock is held on the stage's identity by the parent. A second run that wants the same stage waits and then finds
the first one's entry. A killed parent loses its lock at once, and its children end with it.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from quantlab import child
from quantlab.errors import Interrupted, QuantlabError
from quantlab.ledgers import RESULTS, Ledger
from quantlab.pipeline.entry import Clock, without_paths
from quantlab.records import (
    SCHEMA,
    Accuracy,
    Calibrated,
    CalibrateJob,
    Entry,
    Event,
    Failure,
    FinishedJob,
    Host,
    MeasureJob,
    Reference,
    Verification,
    VerifyJob,
)
from quantlab.records.repair import MixJob, SearchJob, Sensitivity

T = TypeVar("T")


class Watcher(Protocol):
    """Whoever looks on: the terminal, a notebook, a test."""

    def stage(self, recipe: str, stage: str, *, cached: bool) -> None:
        """A stage begins, or was found in the ledger."""

    def event(self, recipe: str, event: Event) -> None:
        """Progress of the stage, or a note."""

    def say(self, text: str) -> None:
        """A sentence for the reader."""


class Silent:
    """A watcher that looks away."""

    def stage(self, recipe: str, stage: str, *, cached: bool) -> None: ...
    def event(self, recipe: str, event: Event) -> None: ...
    def say(self, text: str) -> None: ...


class Stages:
    """Runs stages of one model against one ledger on one host."""

    def __init__(
        self,
        ledger: Ledger,
        host: Host,
        model: str,
        watcher: Watcher,
        threads: int = 0,
        command: Sequence[str] = (),
    ) -> None:
        """Args:
        host: with the versions of the Python that the children run under.
        command: prefix of the children; empty is this Python.
        """
        self.command = command
        self.ledger = ledger
        self.host = host
        self.model = model
        self.watcher = watcher
        self.threads = threads

    def found(self, stage: str, identity: str) -> Any | None:
        """The stage's record if the ledger has it, else None."""
        entry = self.ledger.find(stage, identity)
        return None if entry is None else self.ledger.result(entry)

    def calibrate(self, identity: str, recipe: str, job: CalibrateJob) -> Calibrated:
        """Calibrate and export, or take what the ledger has; the checkpoint must still lie where it was."""
        return self._exported("calibrate", identity, recipe, job)

    def mix(self, identity: str, recipe: str, job: MixJob) -> Calibrated:
        """Put a checkpoint together out of finished exports."""
        return self._exported("mix", identity, recipe, job)

    def _exported(self, stage: str, identity: str, recipe: str, job: CalibrateJob | MixJob) -> Calibrated:
        def work(folder: Path) -> Calibrated:
            return self._kept_where(self._child(stage, recipe, job, folder))

        return self._once(stage, identity, recipe, job, work, self._still_there)

    def calibrated(self, identity: str) -> Calibrated | None:
        """What the ledger has of a calibration, if its checkpoint still lies where it was."""
        found: Calibrated | None = self.found("calibrate", identity)
        return found if found is not None and self._still_there(found) else None

    def keep_calibrated(self, identity: str, recipe: str, job: CalibrateJob, clock: Clock, result: Calibrated) -> None:
        """Write down one of several that a child calibrated."""
        self._write("calibrate", identity, recipe, job, clock, result=self._kept_where(result))

    def _kept_where(self, result: Calibrated) -> Calibrated:
        """Its checkpoint's path as an entry keeps it."""
        path = Path(result.checkpoint.path)
        inside = path.is_relative_to(self.ledger.root.resolve())
        placed = self.ledger.relative(path) if inside else str(path)
        return msgspec.structs.replace(result, checkpoint=msgspec.structs.replace(result.checkpoint, path=placed))

    def _still_there(self, result: Calibrated) -> bool:
        return self.ledger.path(result.checkpoint.path).joinpath("config.json").is_file()

    def verify(self, identity: str, recipe: str, job: VerifyJob | FinishedJob) -> Verification:
        """Hold an export against its recipe and the calibrated model, or what was made elsewhere against its model."""
        task = "inspect" if isinstance(job, FinishedJob) else "verify"

        def work(folder: Path) -> Verification:
            found: Verification = self._child(task, recipe, job, folder)
            return found

        return self._once("verify", identity, recipe, job, work)

    def search(self, identity: str, recipe: str, job: SearchJob) -> Sensitivity:
        """What each group of layers costs."""
        it: Sensitivity = self._once("search", identity, recipe, job, lambda at: self._child("search", recipe, job, at))
        return it

    def measure(
        self,
        identities: dict[str, str],
        recipe: str,
        job: Callable[[Sequence[str], Path], MeasureJob],
        collapsed: Callable[[dict[str, Any]], bool],
    ) -> dict[str, Any]:
        """Measure the stages of `identities` (stage -> identity) on one opened engine; those in the ledger are taken.

        Each finished stage is written down as it comes, so that a kill loses only the stage at work. Nothing is
        measured on what is known to have `collapsed`, now or in an earlier run.
        """
        results = {stage: self.found(stage, identity) for stage, identity in identities.items()}
        for stage in (stage for stage, result in results.items() if result is not None):
            self.watcher.stage(recipe, stage, cached=True)
        if collapsed(results) or all(result is not None for result in results.values()):
            return results
        last = identities[list(identities)[-1]]
        with self.ledger.hold(last, on_wait=lambda: self._waiting(recipe, "measuring")):
            results = {stage: self.found(stage, identity) for stage, identity in identities.items()}
            missing = [stage for stage, result in results.items() if result is None]
            if missing and not collapsed(results):
                results |= self._measure_missing(identities, missing, recipe, job, self.ledger.scratch(last))
        return results

    def _measure_missing(
        self,
        identities: dict[str, str],
        missing: list[str],
        recipe: str,
        make: Callable[[Sequence[str], Path], MeasureJob],
        folder: Path,
    ) -> dict[str, Any]:
        spec = make(missing, folder)
        results: dict[str, Any] = {}
        clock = Clock()

        def keep(event: Event) -> None:
            if event.kind != "result" or event.result is None:
                self.watcher.event(recipe, event)
                return
            identity = identities[event.stage]
            record: Any = msgspec.json.decode(event.result, type=RESULTS[event.stage])
            files = {name: self.ledger.adopt(identity, name, Path(source)) for name, source in event.files.items()}
            results[event.stage] = _placed(record, files)
            self._write(event.stage, identity, recipe, spec, clock, result=results[event.stage], files=files)

        self.watcher.stage(recipe, missing[0], cached=False)
        try:
            self._child("measure", recipe, spec, folder, keep)
        except QuantlabError as error:
            at = next((stage for stage in missing if stage not in results), missing[-1])
            self._fail(at, identities[at], recipe, spec, clock, error)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        return results

    def _once(
        self,
        stage: str,
        identity: str,
        recipe: str,
        spec: msgspec.Struct,
        work: Callable[[Path], T],
        usable: Callable[[T], bool] = lambda _: True,
    ) -> T:
        found = self.found(stage, identity)
        if found is not None and usable(found):
            self.watcher.stage(recipe, stage, cached=True)
            kept: T = found
            return kept
        with self.ledger.hold(identity, on_wait=lambda: self._waiting(recipe, stage)):
            found = self.found(stage, identity)
            if found is not None and usable(found):
                other: T = found
                return other
            self.watcher.stage(recipe, stage, cached=False)
            clock = Clock()
            folder = self.ledger.scratch(identity)
            try:
                result = work(folder)
            except QuantlabError as error:
                self._fail(stage, identity, recipe, spec, clock, error)
                raise
            self._write(stage, identity, recipe, spec, clock, result=result)
            shutil.rmtree(folder, ignore_errors=True)
            return result

    def _child(
        self,
        task: str,
        recipe: str,
        spec: Any,
        folder: Path,
        on_event: Callable[[Event], None] | None = None,
    ) -> Any:
        return child.run(
            task,
            spec,
            workdir=folder,
            threads=self.threads,
            command=self.command,
            on_event=on_event or (lambda event: self.watcher.event(recipe, event)),
        )

    def _waiting(self, recipe: str, stage: str) -> None:
        self.watcher.say(f"{recipe}: another run is at {stage}; waiting for its result.")

    def _fail(self, stage: str, identity: str, recipe: str, spec: Any, clock: Clock, error: QuantlabError) -> None:
        if isinstance(error, Interrupted):
            return
        failure = Failure(
            kind=type(error).__name__,
            problem=error.problem,
            place=error.place,
            cure=error.cure,
            trace=_trace(error),
        )
        self._write(stage, identity, recipe, spec, clock, failure=failure)

    def _write(
        self,
        stage: str,
        identity: str,
        recipe: str,
        spec: Any,
        clock: Clock,
        *,
        result: Any = None,
        failure: Failure | None = None,
        files: dict[str, str] | None = None,
    ) -> None:
        self.ledger.append(
            Entry(
                schema=SCHEMA,
                stage=stage,  # type: ignore[arg-type]
                identity=identity,
                model=self.model,
                recipe=recipe,
                status="failed" if failure else "done",
                spec=without_paths(msgspec.to_builtins(spec)),
                host=self.host,
                started=clock.started,
                seconds=clock.lap(),
                result=None if result is None else msgspec.to_builtins(result),
                failure=failure,
                files=files or {},
            )
        )


def _placed(record: Any, files: dict[str, str]) -> Any:
    """Point the record at its file in the ledger."""
    if isinstance(record, Accuracy):
        return msgspec.structs.replace(record, items=files["items.parquet"])
    if isinstance(record, Reference):
        return msgspec.structs.replace(record, path=files["reference.npz"])
    return record


def _trace(error: QuantlabError) -> str:
    cause = error.__cause__
    return "".join(traceback.format_exception(cause)) if cause is not None else ""
