"""What a suite or a calibration set really reads, as one digest.

The name of a suite says little: its numbers come from task files, items and texts beside it. Edit one item
and the scores before and after must not be compared, nor an old result reused. So the digest goes over the
record and over the bytes of every file that lm-eval will read for it.

Tasks that are lm-eval's own enter by name only; the version of lm-eval belongs to the stage's identity.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from quantlab.catalog import strict
from quantlab.catalog.files import SUFFIXES, Found, base, file_digest, folder, resolve
from quantlab.disk import shards
from quantlab.errors import BadInput
from quantlab.records import CalibrationSet, Suite, SuiteTask, digest

Part = Literal["all", "accuracy", "fidelity"]


def suite_digest(found: Found, part: Part = "all") -> str:
    """SHA-256 over a suite and every file it reads.

    Args:
        found: the suite.
        part: "accuracy" leaves out the held-out text and "fidelity" the tasks, so that a new task does not make
            the fidelity measured before worthless. The one-line summary never counts.

    Raises:
        BadInput: a file that the suite names is missing.
    """
    suite = found.record
    if not isinstance(suite, Suite):
        raise BadInput(f"is a {found.kind}, not a suite.", place=strict.show(found.path))
    pieces: list[Any] = [part]
    if part != "fidelity":
        known = _definitions(folder("tasks"))
        pieces.append([suite.tasks, [_task_pieces(found, task, known) for task in suite.tasks]])
    if part != "accuracy" and suite.fidelity:
        pieces.append([suite.fidelity, file_digest(resolve(found, suite.fidelity.text))])
    if part != "fidelity" and suite.controls:
        known = _definitions(folder("tasks"))
        pieces.append([suite.controls, [_task_pieces(found, task, known) for task in suite.controls]])
    if part == "all":
        pieces.append([suite.canary, suite.synthetic, sights_digest(found)])
    return digest(*pieces)


def sights_digest(found: Found) -> str:
    """SHA-256 over the pictures of the canary, "" where there are none.

    Raises:
        BadInput: a picture is missing.
    """
    suite = found.record
    if not isinstance(suite, Suite) or not suite.sights:
        return ""
    return digest(suite.sights, [file_digest(resolve(found, one.image)) for one in suite.sights])


def set_digest(found: Found) -> str:
    """SHA-256 over a calibration set and the bytes of its file, if it has one.

    Raises:
        BadInput: the file is missing.
    """
    record = found.record
    if not isinstance(record, CalibrationSet):
        raise BadInput(f"is a {found.kind}, not a set.", place=strict.show(found.path))
    file = resolve(found, record.file) if record.file else None
    content = file_digest(file) if file else None
    place = [record.source, record.dataset, record.config, record.split, record.revision, record.column]
    if record.image is None or file is None:
        return digest(place, content)
    return digest(place, content, record.image, [file_digest(one) for one in pictures(file, record.image)])


def _task_pieces(found: Found, task: SuiteTask, known: dict[str, Path]) -> list[list[str]]:
    data = [file for split, name in sorted((task.data or {}).items()) for file in shards(_placed(found, name), split)]
    files = [*data, *sorted(_files_of(task.task, known, set()))]
    files += [picture for file in files if file.suffix == ".jsonl" for picture in pictures(file)]
    return [[path.name, file_digest(path)] for path in files]


def _placed(found: Found, name: str) -> Path:
    """A file or folder that the suite names. Raises BadInput for what is not there."""
    folder_ = base(found) / name
    return folder_ if folder_.is_dir() else resolve(found, name)


def _files_of(task: str, known: dict[str, Path], seen: set[Path]) -> Iterator[Path]:
    """The task file that defines `task`, and all it reads: items, included files, functions, package data."""
    if task in known:
        yield from _reads(known[task], known, seen)


def _reads(path: Path, known: dict[str, Path], seen: set[Path]) -> Iterator[Path]:
    if path in seen:
        return
    seen.add(path)
    yield path
    if path.suffix not in SUFFIXES:
        return
    for word in _strings(_tree(path)):
        beside = path.parent / word
        if len(word) < 200 and "\n" not in word and word.strip() and beside.is_file():
            yield from _reads(beside.resolve(), known, seen)
        else:
            yield from _files_of(word, known, seen)


def pictures(file: Path, field: str = "image") -> list[Path]:
    """The picture files that the lines of a JSONL name in `field`, relative to it, each once and sorted. What cannot be
    read is left to whoever reads the items, who says line and field."""
    raw = file.read_bytes()
    if f'"{field}"'.encode() not in raw:
        return []
    named: set[str] = set()
    for line in raw.split(b"\n"):
        try:
            row = json.loads(line) if line.strip() else {}
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get(field), str):
            named.add(row[field])
    return [path for path in (file.parent / name for name in sorted(named)) if path.is_file()]


def definition(task: str) -> dict[str, Any] | None:
    """The file of one of our own tasks as plain data; None for lm-eval's."""
    path = _definitions(folder("tasks")).get(task)
    tree = _plain(path) if path else None
    return tree if isinstance(tree, dict) else None


def _definitions(tasks: Path) -> dict[str, Path]:
    """Task or group name -> file, from the line `task: name` that lm-eval files begin with."""
    names: dict[str, Path] = {}
    for path in sorted(tasks.glob("*.y*ml")):
        for name in re.findall(r"^(?:task|group):[ \t]*([\w.-]+)[ \t]*$", path.read_text("utf-8"), re.M):
            names.setdefault(name, path.resolve())
    return names


def _tree(path: Path) -> Any:
    """The task file as plain data, and with it the absolute path of data in an installed package."""
    tree = _plain(path)
    metadata = tree.get("metadata") if isinstance(tree, dict) else None
    package = metadata.get("data_package") if isinstance(metadata, dict) else None
    if not isinstance(package, dict):
        return tree
    return [tree, package_file(str(package.get("package", "")), str(package.get("file", "")))]


def _plain(path: Path) -> Any:
    """YAML -> plain data; `!function a.b` becomes "a.py"."""
    import yaml

    class Loader(yaml.SafeLoader):
        """safe_load that knows lm-eval's one tag."""

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
        return f"{str(node.value).split('.')[0]}.py"

    Loader.add_constructor("!function", function)
    try:
        return Loader(path.read_text("utf-8")).get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        cure = "Correct the task file."
        raise BadInput(f"is no task file ({error}).", place=strict.show(path), cure=cure) from None


def package_file(package: str, file: str) -> str:
    """Absolute path of a data file in an installed package, which is not imported; "" where it is missing."""
    spec = importlib.util.find_spec(package.partition(".")[0]) if package else None
    roots = list(spec.submodule_search_locations or []) if spec else []
    return next((str(Path(root) / file) for root in roots if (Path(root) / file).is_file()), "")


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _strings(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _strings(value)
