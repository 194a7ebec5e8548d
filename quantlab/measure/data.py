"""Where a task's items lie: beside its YAML, beside the suite, inside an installed package, or on the hub.

For everything but the hub a task file is written that includes the original one and replaces only the place
of the data, with absolute paths. That is lm-eval's own mechanism (`include`), so prompts, filters and metrics
cannot drift, and a machine without a network can run any task whose items it has. The file is found without
importing the package: an installed data package must not run code here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from quantlab.disk import shards
from quantlab.errors import BadInput, NoAccess
from quantlab.records import SuiteTask

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}
"""Suffix -> builder of `datasets`."""


def localize(
    ask: SuiteTask, config: dict[str, Any], definition: Path | None, suite_folder: Path, scratch: Path
) -> Path | None:
    """A task file with absolute data paths, or None where lm-eval's own definition is to be used as it is.

    Args:
        ask: the suite's line.
        config: the task's definition as lm-eval read it, includes merged.
        definition: its YAML file; None for tasks defined in Python.
        suite_folder: paths in `ask.data` are relative to this.
        scratch: the file is written to its folder `tasks`, converted data to `datasets`.

    Raises:
        BadInput: a file is missing, or a split has none.
        NoAccess: the package with the data is not installed.
    """
    if ask.package is not None:
        _folder_of(ask.package)
    files = _files(ask, config, definition, suite_folder)
    if files is None:
        return None
    place = f"task {ask.task}"
    if definition is None or "group" in config or "class" in config:
        cure = "Name the single tasks of the group instead."
        raise BadInput("local data fit a single task that is defined by a YAML file.", place=place, cure=cure)
    _require(files, place)
    override = {
        "include": str(definition.resolve()),
        "task": ask.task,
        "dataset_path": _builder(files, place),
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: [str(file.resolve()) for file in some] for split, some in files.items()},
            "cache_dir": str((scratch / "datasets").resolve()),
        },
        **_splits(ask, config, files, place),
    }
    into = scratch / "tasks" / f"{ask.task}.yaml"
    into.parent.mkdir(parents=True, exist_ok=True)
    into.write_text(yaml.safe_dump(override), encoding="utf-8")
    return into


def items_folder(ask: SuiteTask, config: dict[str, Any], definition: Path | None, suite_folder: Path) -> Path | None:
    """Folder of the items' file, against which the paths of their pictures are resolved; None for the hub."""
    files = _files(ask, config, definition, suite_folder)
    some = files and files.get(config.get("test_split") or config.get("validation_split") or "")
    return some[0].parent.resolve() if some else None


def _require(files: dict[str, list[Path]], place: str) -> None:
    every = [file for some in files.values() for file in some]
    for file in every:
        if not file.is_file():
            raise BadInput(
                f"there is no file {file}.", place=place, cure="Correct the path; it is relative to the YAML."
            )
    if empty := [file.name for file in every if not file.stat().st_size]:
        raise BadInput(f"{', '.join(empty)} is empty.", place=place, cure="Put one item a line into it.")


def _files(
    ask: SuiteTask, config: dict[str, Any], definition: Path | None, suite_folder: Path
) -> dict[str, list[Path]] | None:
    """split -> files, or None for the hub. The suite's word goes before the task's."""
    if ask.data:
        return {split: shards(suite_folder / file, split) for split, file in ask.data.items()}
    source = (config.get("metadata") or {}).get("data_package")
    if source:
        folder = _folder_of(source["package"])
        return {config["test_split"]: [folder / source["file"]]}
    named = (config.get("dataset_kwargs") or {}).get("data_files")
    if definition is None or not isinstance(named, dict) or config.get("dataset_path") not in BUILDERS.values():
        return None  # files of a set of the hub: `datasets` finds them there, or in its cache
    if any(not isinstance(file, str) or "://" in file for file in named.values()):
        return None
    return {split: [definition.parent / file] for split, file in named.items()}


def _folder_of(package: str) -> Path:
    """Folder of an installed package; nothing of it is executed."""
    spec = find_spec(package.partition(".")[0])
    if spec is None or not spec.submodule_search_locations:
        raise NoAccess(
            f"the package {package}, which holds the items, is not installed.",
            place="suite",
            cure="pip install 'quantlab[items]'",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _builder(files: dict[str, list[Path]], place: str) -> str:
    every = [file for some in files.values() for file in some]
    builders = {BUILDERS.get(file.suffix) for file in every}
    if len(builders) > 1 or None in builders:
        raise BadInput(
            f"cannot read {', '.join(file.name for file in every)}.",
            place=place,
            cure=f"All files of a task need one of the suffixes {', '.join(BUILDERS)}.",
        )
    return str(builders.pop())


def _splits(ask: SuiteTask, config: dict[str, Any], files: dict[str, list[Path]], place: str) -> dict[str, None]:
    """The splits that lm-eval must not look for, because nothing is taken from them."""
    items = config.get("test_split") or config.get("validation_split")
    if items not in files:
        raise BadInput(
            f"it takes its items from the split {items!r}, for which there is no file.",
            place=place,
            cure=f"Write `data: {{{items}: FILE}}`.",
        )
    sources = [name for name in ("fewshot_split", "training_split", "validation_split") if config.get(name)]
    shots = config.get("num_fewshot") if ask.shots is None else ask.shots
    if shots and sources and config[sources[0]] not in files:
        raise BadInput(
            f"it takes its {shots} shots from the split {config[sources[0]]!r}, for which there is no file.",
            place=place,
            cure=f"Add `{config[sources[0]]}: FILE` to `data`, or ask for `shots: 0`.",
        )
    return {name: None for name in sources if config[name] not in files}
