"""Pictures inside a data set -> files, so that everything after it knows one kind of picture: a path.

The sets of the hub carry their pictures in the rows. `datasets` decodes one each time a row is looked at, lm-eval looks
at every row several times and keeps what it saw: a few thousand pages of DocVQA would fill the memory. So the bytes are
written out once, undecoded, under the digest of their content, and the row keeps the path. Two things come for free:
questions about the same picture are known to belong together (the `cluster` of their intervals), and a broken picture
is found by the same check as any file, with the number of its row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantlab import disk
from quantlab.errors import BadInput

SUFFIX = ".picture"
"""Pillow reads what a file is from its first bytes."""
UNANSWERED: tuple[Any, ...] = (None, "", [], ())
REFERENCES = ("answers", "label")
"""Columns that hold what a question's answer is compared with, where several are right."""


@contextmanager
def undecoded() -> Iterator[None]:
    """Inside, lm-eval's tasks get the pictures of their data as bytes. Loading alone looks at all rows of some splits,
    and one broken picture among 200,000 would end it with a message that names no row."""
    from lm_eval.api.task import ConfigurableTask

    download = ConfigurableTask.download

    def plain(task: Any, *arguments: Any, **words: Any) -> None:
        download(task, *arguments, **words)
        for split, rows in task.dataset.items():
            task.dataset[split] = _undecoded(rows)

    ConfigurableTask.download = plain
    try:
        yield
    finally:
        ConfigurableTask.download = download


def on_disk(task: Any, folder: Path, limit: int | None, place: str) -> None:
    """Exchange the pictures in a task's rows for paths in `folder`. A set whose pictures are files stays as it is.

    Args:
        task: lm-eval's, with its data loaded; the split that is asked is cut to `limit` rows.
        folder: where the files are written.
        limit: first rows only, None for all.
        place: of an error.

    Raises:
        BadInput: a row without answers to compare with.
    """
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    rows = task.dataset[split]
    named = _columns(rows)
    if not named:
        return
    if limit is not None and limit < len(rows):
        rows = rows.select(range(limit))
    task.dataset[split] = _rewritten(rows, named, folder, f"{place}, {split}")
    task.task_docs = task.eval_docs


def _columns(rows: Any) -> list[str]:
    """Columns of pictures: marked as such, or with the two fields that the hub's Parquet files keep them in."""
    return [name for name, feature in rows.features.items() if _is_picture(feature)]


def _is_picture(feature: Any) -> bool:
    from datasets import Image

    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _undecoded(rows: Any) -> Any:
    from datasets import Image

    for name in _columns(rows):
        if isinstance(rows.features[name], Image):
            rows = rows.cast_column(name, Image(decode=False))
    return rows


def _rewritten(rows: Any, named: list[str], folder: Path, place: str) -> Any:
    """The rows with paths, and with a cluster of their pictures where they name none."""
    from datasets import Dataset, concatenate_datasets

    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list[Any]] = {name: [] for name in named} | {"cluster": []}
    for number, row in enumerate(rows):
        _require_answers(row, f"{place}, row {number}")
        files = {name: _written(row[name], folder, f"{place}, row {number}") for name in named}
        for name in named:
            columns[name].append(files[name])
        columns["cluster"].append(" ".join(Path(file).stem for file in files.values() if file))
    kept = [name for name in rows.column_names if name not in columns]
    # Plain columns only: lm-eval goes through the rows many times, and nothing is decoded on the way.
    return concatenate_datasets([rows.select_columns(kept), Dataset.from_dict(columns)], axis=1)


def _require_answers(row: Mapping[str, Any], place: str) -> None:
    for name in REFERENCES:
        if name in row and row[name] in UNANSWERED:
            cure = "Take a split with answers: a test split often comes without."
            raise BadInput(f"its {name} are empty: nothing to compare an answer with.", place=place, cure=cure)


def _written(cell: Any, folder: Path, place: str) -> str | None:
    """Path of one cell's picture; None where the cell is empty (MMMU has up to seven columns)."""
    if cell is None or (not cell["bytes"] and not cell["path"]):
        return None
    if not cell["bytes"]:
        return str(Path(cell["path"]).resolve())
    path = folder / f"{hashlib.sha256(cell['bytes']).hexdigest()[:32]}{SUFFIX}"
    if not path.exists():
        disk.write(path, cell["bytes"])
    return str(path.resolve())


def listed(found: Any) -> Iterator[str]:
    """What a task's `doc_to_image` gave, as paths: one, or a list."""
    for one in found if isinstance(found, list) else [found]:
        if isinstance(one, str) and one.strip():
            yield one
        else:
            yield ""
