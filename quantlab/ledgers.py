"""The memory of quantlab: a folder of append-only records that any number of processes may share.

    ledger.json                                 {"schema": 1}
    entries/<stage>/<identity>.<utc ns>.json    one Entry a finished or failed stage; never changed
    files/<identity>/<name>                     what belongs to an entry: item results, references
    checkpoints/<identity>/                     exported models
    work/<identity>/                            job folders and half-done work; survives a kill, so a run goes on
    locks/<identity>.lock                       who is at it
    runs/<utc>-<digest>.json                    what a report shows

The name of a stage's result is its identity, the digest of everything that can change the number: resuming, sharing
and not measuring twice are one question: is there an entry? There is no database: a document is written in one step
(`disk.write`) and read without a lock; the kernel's lock below, gone with its process, saves two runs one stage.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from quantlab import disk
from quantlab.errors import LedgerProblem
from quantlab.records import (
    SCHEMA,
    Accuracy,
    Artifact,
    Calibrated,
    Canary,
    Entry,
    Fidelity,
    Reference,
    Run,
    Throughput,
    Verification,
    digest,
    encode,
)
from quantlab.records.repair import Sensitivity

if TYPE_CHECKING:
    import pandas as pd

RESULTS: dict[str, type[msgspec.Struct]] = {
    "calibrate": Calibrated,
    "verify": Verification,
    "build": Artifact,
    "canary": Canary,
    "reference": Reference,
    "fidelity": Fidelity,
    "accuracy": Accuracy,
    "throughput": Throughput,
    "search": Sensitivity,
    "mix": Calibrated,
}
"""Stage -> type of its result."""

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Schema n -> what makes a document of it one of schema n + 1; applied on reading, never written."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_ENTRY = re.compile(r"(?P<identity>[A-Za-z0-9_-][A-Za-z0-9._-]*)\.(?P<nanoseconds>\d+)\.json")
_Document = TypeVar("_Document", Entry, Run)


class Ledger:
    """One ledger. Opening it makes nothing; the folder appears with the first record."""

    def __init__(self, root: Path | str | None = None) -> None:
        """Args:
            root: the folder; None is $QUANTLAB_LEDGER, or ./runs.

        Raises:
            LedgerProblem: a file stands there, or a newer quantlab has written there.
        """
        self.root = Path(root or os.environ.get("QUANTLAB_LEDGER") or "runs").expanduser().absolute()
        if self.root.exists() and not self.root.is_dir():
            raise disk.problem(NotADirectoryError(errno.ENOTDIR, "not a folder"), self.root)
        self._marker = self.root / "ledger.json"
        if self._marker.exists():
            _schema(_load(self._marker), self._marker)

    def find(self, stage: str, identity: str) -> Entry | None:
        """The newest entry of this identity that is done, or None."""
        for path in reversed(self._documents(stage, identity)):
            entry = read(path, Entry)
            if entry.status == "done":
                return entry
        return None

    def append(self, entry: Entry) -> None:
        """Keep an entry for ever. It must be readable again, or it is refused here and not by a later reader.

        Raises:
            LedgerProblem: the disk says no, or the entry holds a number that is not finite.
        """
        data = encode(entry)
        try:
            self.result(msgspec.json.decode(data, type=Entry))
        except msgspec.ValidationError as error:
            raise LedgerProblem(
                f"the record cannot be read back: {error}.",
                place=f"stage {entry.stage}",
                cure="A null stands for a number that is not finite.",
            ) from error
        self._mark()
        last = [_nanoseconds(path) for path in self._documents(entry.stage, entry.identity)[-1:]]
        # A clock that was set back must not make the newest entry look old.
        moment = max([time.time_ns(), *(value + 1 for value in last)])
        disk.write(self._place("entries", entry.stage) / f"{_safe(entry.identity)}.{moment}.json", data)

    def entries(self, stage: str | None = None, model: str | None = None, recipe: str | None = None) -> list[Entry]:
        """All entries, or those of one stage, model word or recipe name; oldest first."""
        found = [read(path, Entry) for path in self._documents(stage or "*")]
        return [one for one in found if model in (None, one.model) and recipe in (None, one.recipe)]

    def result(self, entry: Entry) -> Any:
        """The typed record of a done entry (see RESULTS); None for a failed one."""
        if entry.status != "done":
            return None
        return msgspec.convert(entry.result, RESULTS[entry.stage])

    def adopt(self, identity: str, name: str, source: Path) -> str:
        """Move a finished file or folder into the ledger, in one step. What had this name before is replaced.

        Returns:
            Its path, relative to the ledger, as an entry keeps it.
        """
        target = self._make(self._place("files", identity)) / _safe(name)
        with disk.trouble(target):
            disk.move(source, target)
        return self.relative(target)

    def path(self, relative: str) -> Path:
        """Where something of an entry lies: the opposite of `relative`. Absolute paths stay as they are."""
        return self.root / relative

    def relative(self, path: Path | str) -> str:
        """A path as an entry keeps it: relative to the ledger when it lies inside, absolute otherwise."""
        for root, inner in (
            (self.root, Path(os.path.abspath(path))),
            (self.root.resolve(), Path(path).resolve()),
        ):
            if inner.is_relative_to(root):
                return inner.relative_to(root).as_posix()
        return os.path.abspath(path)

    @contextmanager
    def hold(self, identity: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """While inside, no other process works on `identity`. Not re-entrant.

        Args:
            identity: of a stage, or any other safe name.
            on_wait: called once if somebody else holds it, before waiting.
        """
        path = self._make(self._place("locks")) / f"{_safe(identity)}.lock"
        with disk.trouble(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _locked(descriptor, path, wait=False):
                if on_wait is not None:
                    on_wait()
                _locked(descriptor, path, wait=True)
            yield
        finally:
            os.close(descriptor)

    def scratch(self, identity: str) -> Path:
        """The folder for half-done work and job folders of `identity`; made when missing."""
        return self._make(self._place("work", identity))

    def checkpoint_folder(self, identity: str) -> Path:
        """Where the checkpoint of `identity` belongs. Not made: exporting ends with a rename to here."""
        return self._make(self._place("checkpoints")) / _safe(identity)

    def save_run(self, run: Run) -> Path:
        """Keep what a report shows; returns the document's path."""
        self._mark()
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        moment = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(seconds))
        path = self._place("runs") / f"{moment}.{nanoseconds:09d}Z-{digest(run)[:8]}.json"
        disk.write(path, encode(run))
        return path

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        return [read(path, Run) for path in self.run_documents()]

    def last_run(self) -> Run | None:
        """The newest run, or None."""
        newest = self.run_documents()[-1:]
        return read(newest[0], Run) if newest else None

    def frame(self) -> pd.DataFrame:
        """One row an entry, oldest first, with the headline numbers of its stage (see headlines.py)."""
        import pandas as pd

        from quantlab.headlines import COLUMNS, row

        rows = [row(entry, self.result(entry)) for entry in self.entries()]
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(COLUMNS))

    def _place(self, *parts: str) -> Path:
        return self.root.joinpath(*(_safe(part) for part in parts))

    def _make(self, folder: Path) -> Path:
        self._mark()
        with disk.trouble(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _mark(self) -> None:
        """Write ledger.json if missing or older: an older quantlab must refuse what it cannot read."""
        if not self._marker.exists() or _schema(_load(self._marker), self._marker) < SCHEMA:
            disk.write(self._marker, encode({"schema": SCHEMA}))

    def _documents(self, stage: str, identity: str | None = None) -> list[Path]:
        """Documents of a stage ("*": of all), oldest first. Temporary files and strangers do not match."""
        found = []
        for path in (self.root / "entries").glob(f"{stage}/*.json"):
            match = _ENTRY.fullmatch(path.name)
            if match and identity in (None, match["identity"]):
                found.append(path)
        return sorted(found, key=lambda path: (_nanoseconds(path), path.name))

    def run_documents(self) -> list[Path]:
        """Files of all runs, oldest first."""
        return sorted(path for path in (self.root / "runs").glob("*.json") if _NAME.fullmatch(path.name))


def _locked(descriptor: int, path: Path, *, wait: bool) -> bool:
    """Take the kernel's lock on an open file. The file stays: deleting it would split those who wait."""
    with disk.trouble(path):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
    return True


def _safe(name: str) -> str:
    """The name, if it is one path component that cannot lead out of the ledger."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be the name of anything in a ledger")
    return name


def _nanoseconds(path: Path) -> int:
    return int(path.name.split(".")[-2])


def read(path: Path, kind: type[_Document]) -> _Document:
    """A document of any schema up to ours, as a record of ours."""
    document = _load(path)
    for schema in range(_schema(document, path), SCHEMA):
        if schema not in MIGRATIONS:
            raise _corrupt(path, f"no way from schema {schema} to {schema + 1}")
        document = {**MIGRATIONS[schema](document), "schema": schema + 1}
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise _corrupt(path, str(error)) from error


def _load(path: Path) -> dict[str, Any]:
    with disk.trouble(path):
        data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _corrupt(path, str(error)) from error


def _schema(document: dict[str, Any], path: Path) -> int:
    schema = document.get("schema")
    if not isinstance(schema, int) or schema < 0:
        raise _corrupt(path, "it names no schema")
    if schema > SCHEMA:
        raise LedgerProblem(
            f"written by a newer quantlab (schema {schema}, this one reads up to {SCHEMA}).",
            place=str(path),
            cure="Upgrade quantlab, or choose another folder with QUANTLAB_LEDGER.",
        )
    return schema


def _corrupt(path: Path, why: str) -> LedgerProblem:
    return LedgerProblem(
        f"the document is damaged: {why}.",
        place=str(path),
        cure="Restore it from a copy, or delete it: its stage is then run again.",
    )
