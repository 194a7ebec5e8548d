"""Writing so that no reader ever sees half a file, and what the disk's refusals mean.

A plain `open(path, "w")` truncates first: whoever reads then, or a `kill -9` in that moment, leaves an empty
document. So every document is written under a hidden temporary name, forced to the disk (`fsync`, or a power
cut can leave a renamed but empty file) and renamed over the old one, which POSIX makes atomic. A leftover
temporary starts with a dot and ends in `.tmp`; readers look for neither.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantlab.errors import LedgerProblem

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of a used-up quota."""

_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NOT_A_FOLDER = (errno.ENOTDIR, errno.EEXIST)
_ELSEWHERE = "choose another folder with QUANTLAB_LEDGER."


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step, and make its folder where it is missing.

    Raises:
        LedgerProblem: full disk, no permission, or a file where the folder should be.
    """
    temporary = _hidden(path)
    with trouble(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not tempfile: its files are private to the user, and a ledger may be shared by a team.
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def trouble(place: Path) -> Iterator[None]:
    """Inside it, an OSError becomes a LedgerProblem about `place`, with a cure."""
    try:
        yield
    except OSError as error:
        raise problem(error, place) from error


def problem(error: OSError, place: Path) -> LedgerProblem:
    """What `error` means for somebody who wants to keep something at `place`."""
    if error.errno in FULL:
        return full(place)
    if error.errno in _CLOSED:
        text, cure = "permission denied.", f"Make it readable and writable, or {_ELSEWHERE}"
    elif error.errno in _NOT_A_FOLDER:
        text, cure = "a file stands where a folder is needed.", f"Move it away, or {_ELSEWHERE}"
    else:
        text, cure = f"the disk says: {error}.", f"Mend it, or {_ELSEWHERE}"
    return LedgerProblem(text, place=str(place), cure=cure)


def full(place: Path) -> LedgerProblem:
    """The error for a full disk, with the bytes that are left."""
    return LedgerProblem(
        f"the disk is full ({free_bytes(place):,} bytes are free).",
        place=str(place),
        cure=f"Free some space and start again, what was finished is kept; or {_ELSEWHERE}",
    )


def free_bytes(place: Path) -> int:
    """Bytes an ordinary user may still write where `place` lies, or will lie."""
    there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    state = os.statvfs(there)
    return state.f_bavail * state.f_frsize


def move(source: Path, target: Path) -> None:
    """Move a file or folder to `target`, whose folder exists, so that `target` is never half there.

    Within one file system this is a rename; across two a copy beside the target, then a rename. What has the
    name before is replaced.
    """
    for path in (source, *source.rglob("*")) if source.is_dir() else (source,):
        if not path.is_symlink():
            sync(path)
    try:
        _rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        staged = _hidden(target)
        try:
            _copy(source, staged)
            _rename(staged, target)
        finally:
            _remove(staged)
        _remove(source)
    sync(target.parent)


def _hidden(path: Path) -> Path:
    """A name beside `path` that no reader looks at and no other process chooses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


def _rename(source: Path, target: Path) -> None:
    """`os.replace` for folders too: the old one steps aside, because only an empty one can be replaced."""
    if not target.is_dir():
        os.replace(source, target)
        return
    aside = _hidden(target)
    os.rename(target, aside)
    try:
        os.rename(source, target)
    except OSError:
        os.rename(aside, target)
        raise
    _remove(aside)


def _copy(source: Path, target: Path) -> None:
    import shutil

    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target)


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def shards(path: Path, split: str) -> list[Path]:
    """The files of one split: the file itself, or the Parquet or Arrow files of a folder that a set of the hub was
    downloaded into, those called `split-...` where there are such."""
    if not path.is_dir():
        return [path]
    every = sorted(file for file in path.iterdir() if file.suffix in (".parquet", ".arrow") and file.is_file())
    return [file for file in every if file.name.startswith(f"{split}-")] or every or [path]
