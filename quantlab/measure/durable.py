"""Throughput cells that outlive a kill: each is written down as soon as it is measured, and taken up from there.

A sweep of 90B takes an hour, the server's part of it as long again; a kill in the last cell must not cost the others.
A cell is named by its place in the grid, and the file is bound to everything that can change a number (checkpoint,
engine, config, grid, seed), so a line of another job is never read. What is not valid is not kept: a cell that failed
a check is measured again by the next attempt, for its reason may have been the kill itself, or the neighbour that is
gone by then. Which numbers come out of a valid cell decides nothing here, so no value is preferred.

Peak memory and seconds of a cell are kept beside it: a record put together from two attempts must not show the memory
of the second alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, TypeVar

import msgspec

from quantlab.measure.journal import Journal
from quantlab.measure.memory import peak_bytes
from quantlab.records import MeasureJob, Throughput, digest

STAGE, FILE = "throughput", "cells.jsonl"
WHOLE = "all but what is served"
T = TypeVar("T", bound=msgspec.Struct)


class Notes(Protocol):
    """Whoever takes a sentence for the user."""

    def note(self, stage: str, text: str) -> None: ...


class Durable:
    """Measures a cell once, over all attempts at one job. Without a journal each attempt begins anew."""

    def __init__(self, journal: Journal | None = None) -> None:
        self._journal = journal
        self.peak_bytes, self.seconds = 0, 0.0
        """Of the cells that earlier attempts measured: most memory, and time."""

    def once(self, place: tuple[object, ...], kind: type[T], measure: Callable[[], Sequence[T]]) -> list[T]:
        """What `measure` gives, or gave to an earlier attempt. It is kept if its last cell is valid.

        Args:
            place: names the cell within the job.
            kind: type of the records.
        """
        name = digest(*place)
        if (found := self._found(name, kind)) is not None:
            return found
        began = monotonic()
        made = list(measure())
        if self._journal is not None and made and _valid(made[-1]):
            plain = [msgspec.to_builtins(each) for each in made]
            self._journal.put(name, [monotonic() - began, peak_bytes(), *plain])
        return made

    def one(self, place: tuple[object, ...], kind: type[T], measure: Callable[[], T]) -> T:
        """As `once`, for a place that holds one cell."""
        return self.once(place, kind, lambda: [measure()])[0]

    def whole(self) -> Throughput | None:
        """The record to which only served cells are missing, where an earlier attempt came so far."""
        found = self._found(digest(WHOLE), Throughput)
        return found[0] if found else None

    def keep_whole(self, record: Throughput) -> None:
        """From here on the session need not be opened again."""
        if self._journal is not None and not self._journal.get(digest(WHOLE)):
            self._journal.put(digest(WHOLE), [record.seconds, record.peak_bytes, msgspec.to_builtins(record)])

    def _found(self, name: str, kind: type[T]) -> list[T] | None:
        """Cells that an earlier attempt left; a line that does not fit any more is measured again."""
        lines: list[Any] | None = self._journal.get(name) if self._journal is not None else None
        if lines is None:
            return None
        try:
            seconds, peak, *cells = lines
            found = [msgspec.convert(each, kind) for each in cells]
            self.seconds, self.peak_bytes = self.seconds + float(seconds), max(self.peak_bytes, int(peak))
        except (msgspec.ValidationError, ValueError, TypeError):
            return None
        return found


@contextmanager
def durable(spec: MeasureJob, reporter: Notes) -> Iterator[Durable]:
    """The cells of a job, in its working folder."""
    if STAGE not in spec.stages:
        yield Durable()
        return
    folder = Path(spec.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder / FILE, _binding(spec)) as journal:
        if count := len(journal) - (journal.get(digest(WHOLE)) is not None):
            reporter.note(STAGE, f"goes on after the {count} cells that an attempt before it finished.")
        try:
            yield Durable(journal)
        finally:
            if not len(journal):
                (folder / FILE).unlink(missing_ok=True)


def _binding(spec: MeasureJob) -> str:
    """Everything besides its place that can change a cell. Places of files are none of it."""
    artifact = spec.artifact
    what = [artifact.engine, artifact.engine_version, artifact.numerics, artifact.checkpoint.digest]
    how = [spec.config, spec.grid, spec.seed, spec.bandwidth, spec.compute, spec.suite.canary if spec.suite else None]
    return digest(*what, *how)


def _valid(cell: Any) -> bool:
    """A cell with pictures holds the cell that was timed."""
    return bool(getattr(cell, "cell", cell).valid)
