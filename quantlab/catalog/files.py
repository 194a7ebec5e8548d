"""From a word to a file: the five kinds of YAML that a person may write, and where they are looked for.

The directory listing is the vocabulary: `fp8` is calibration/fp8.yaml. A word is looked up in three places,
the nearest first: an explicit path, the folder in the working directory, the built-in folder. So a user
changes a recipe by putting a file of the same name beside the work, and `Found.path` and `Found.digest` say
which one was used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from quantlab.catalog import sense, strict
from quantlab.errors import BadInput
from quantlab.records import CalibrationSet, Grid, Model, Policy, Recipe, Suite

Record = Recipe | CalibrationSet | Suite | Grid | Policy | Model
PACKAGE = Path(__file__).resolve().parents[1]
"""Folder of the package `quantlab`."""
SUFFIXES = (".yaml", ".yml")


class Found(msgspec.Struct, frozen=True):
    """A file that was found and read."""

    kind: str
    """recipe, set, suite, grid, policy or model."""
    name: str
    """File name without suffix: the word for it."""
    path: Path
    """The file that was used."""
    record: Record
    digest: str
    """SHA-256 of the file's bytes."""


class Kind(msgspec.Struct, frozen=True):
    """One kind of file."""

    folder: str
    """Below the working directory and below the built-in root."""
    record: type
    check: Callable[[Any], Any]


KINDS: dict[str, Kind] = {
    "recipe": Kind("calibration", Recipe, sense.recipe),
    "set": Kind("calibration/sets", CalibrationSet, sense.calibration_set),
    "suite": Kind("evals/suites", Suite, sense.suite),
    "grid": Kind("evals/grids", Grid, sense.grid),
    "policy": Kind("evals/policies", Policy, sense.policy),
}
PLURALS = {"policies": "policy"} | {f"{kind}s": kind for kind in KINDS if kind != "policy"}


def builtin() -> Path:
    """Root of the built-in folders: package data in a wheel, the repository when running from a checkout."""
    shipped = PACKAGE / "_data"
    return shipped if shipped.is_dir() else PACKAGE.parent


def find(kind: str, word: str) -> Found:
    """The file that `word` means, read and checked.

    Raises:
        BadInput: no such word (with "did you mean" and the list), no such file, or a fault in the file.
    """
    path = _path_of(word) if is_path(word) else words(kind).get(word)
    if path is None:
        known = sorted(words(kind))
        hint = strict.nearest(word, known)
        cure = f"{hint} Known: {', '.join(known)}. A path to a YAML file works too.".strip()
        raise BadInput(f"no {PLURALS.get(kind, kind)} is called {word!r}.", cure=cure)
    return _read(kind, path)


def is_path(word: str) -> bool:
    """A word with a separator or a suffix means a file, never a name."""
    return "/" in word or os.sep in word or word.endswith(SUFFIXES)


def words(kind: str) -> dict[str, Path]:
    """Word -> file, the nearer place first; nothing is read."""
    found: dict[str, Path] = {}
    for root in (Path(), builtin()):
        folder = root / _kind(kind).folder
        for path in sorted(folder.glob("*.y*ml")) if folder.is_dir() else ():
            if path.suffix in SUFFIXES:
                found.setdefault(path.stem, path)
    return found


def listing(kind: str) -> tuple[list[Found], list[BadInput]]:
    """All files of a kind by name, and what is wrong with those that cannot be read."""
    good: list[Found] = []
    bad: list[BadInput] = []
    for _, path in sorted(words(kind).items()):
        try:
            good.append(_read(kind, path))
        except BadInput as error:
            bad.append(error)
    return good, bad


def copy(kind: str, word: str, to: str | Path) -> Path:
    """Copy a file so that it can be changed.

    Args:
        kind: recipe, set, suite, grid or policy.
        word: as for `find`.
        to: a new word ("mine" -> calibration/mine.yaml in the working directory), a file, or a folder.

    Returns:
        The new file. Files it names relatively keep being found, see `base`.

    Raises:
        BadInput: `to` exists already or cannot be written.
    """
    source = find(kind, word).path
    target = _target(kind, source.name, str(to))
    if os.path.lexists(target):
        raise BadInput("exists already.", place=strict.show(target), cure="Choose another name.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(source.read_bytes())
    except OSError as error:
        cure = "Choose another place."
        raise BadInput(f"cannot be written ({error.strerror}).", place=strict.show(target), cure=cure) from error
    return target


def folder(name: str) -> Path:
    """Folder of a kind, or of lm-eval's task files ("tasks"): in the working directory, else the built-in one."""
    relative = "evals/tasks" if name == "tasks" else _kind(name).folder
    return Path(relative).resolve() if Path(relative).is_dir() else builtin() / relative


def base(found: Found) -> Path:
    """Folder against which the relative files of a set or a suite are resolved.

    It is the YAML's own folder. A copied file would lose its neighbours there, so when nothing of what it
    names lies beside it, the built-in folder of its kind is taken.
    """
    own = found.path.resolve().parent
    named = _named(found.record)
    if not named or any((own / name).is_file() for name in named):
        return own
    home = (builtin() / _kind(found.kind).folder).resolve()
    return home if all((home / name).is_file() for name in named) else own


def resolve(found: Found, relative: str) -> Path:
    """A file that a set or a suite names, as an absolute path.

    Raises:
        BadInput: it does not exist.
    """
    path = (base(found) / Path(relative).expanduser()).resolve()
    if not path.is_file():
        cure = f"The path is taken relative to {strict.show(found.path.parent)}."
        raise BadInput(f"names {relative!r}, which does not exist.", place=strict.show(found.path), cure=cure)
    return path


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kind(kind: str) -> Kind:
    kind = PLURALS.get(kind, kind)
    if kind not in KINDS:
        hint = strict.nearest(kind, KINDS)
        raise BadInput(f"no kind {kind!r}.", cure=f"{hint} Kinds: {', '.join(KINDS)}.".strip())
    return KINDS[kind]


def _read(kind: str, path: Path) -> Found:
    data = strict.read(path)
    spec = _kind(kind)
    kind = PLURALS.get(kind, kind)
    record: Record = strict.parse(data, strict.show(path), spec.record, spec.check)
    return Found(kind, path.stem, path, record, hashlib.sha256(data).hexdigest())


def _path_of(word: str) -> Path:
    path = Path(word).expanduser()
    if not os.path.isfile(path):
        raise BadInput("does not exist, or is not a file.", place=word, cure="Check the path, or give a name.")
    return path


def _target(kind: str, name: str, to: str) -> Path:
    if os.path.isdir(to) or to.endswith(("/", os.sep)):
        return Path(to) / name
    return Path(to) if is_path(to) else Path(_kind(kind).folder) / f"{to}.yaml"


def _named(record: Record) -> list[str]:
    """Relative files that a set or a suite names itself; data of packages lies in the packages."""
    if isinstance(record, CalibrationSet):
        return [record.file] if record.file else []
    if isinstance(record, Suite):
        data = [name for task in record.tasks for name in (task.data or {}).values()]
        data += [one.image for one in record.sights]
        return [*data, *([record.fidelity.text] if record.fidelity else [])]
    return []
