"""What others have published: throughput cells and accuracy losses, each with its source.
evals/published_throughput.yaml.

A published figure is a reference, not a measurement of ours: no repeats, other prompts, often no word about batch or
precision. It is read as strictly as everything else and keeps its provenance wherever it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from quantlab.catalog import strict
from quantlab.catalog.files import builtin
from quantlab.catalog.gpus import gpu
from quantlab.catalog.models import models as catalog_models
from quantlab.catalog.strict import Complaint
from quantlab.records import Model, Shape


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base: unknown fields are refused."""


class PublishedModel(Strict, frozen=True, kw_only=True):
    """A model that a table uses and models.yaml has not."""

    word: str
    parameters: int
    shape: Shape


class PublishedCell(Strict, frozen=True, kw_only=True):
    """One throughput cell."""

    model: str
    recipe: str
    isl: int
    osl: int
    batch: int | None = None
    """Sequences at once; None where the source does not say."""
    gpus: int | None = None
    """GPUs that share each layer; None: as the table says."""
    tokens_per_second: float
    """Output tokens of all sequences, prefill included."""


class PublishedAccuracy(Strict, frozen=True, kw_only=True):
    """What a precision lost on a task."""

    model: str
    recipe: str
    task: str
    drop: float
    """Points lost against 16 bit."""
    at_most: bool = False
    """The source gives a relative loss, an upper bound of the points."""


class PublishedTable(Strict, frozen=True, kw_only=True):
    """One source."""

    name: str
    source: str
    """URL."""
    engine: str
    version: str
    gpu: str
    """Word of the GPU catalog."""
    gpus: int = 1
    kv_cache: Literal["none", "fp8"] = "none"
    """Precision of the key/value cache."""
    images: int = 0
    """Images of each sequence."""
    usable: bool = True
    """False: compared only, never fitted; `notes` says why."""
    notes: str = ""
    cells: tuple[PublishedCell, ...] = ()
    accuracy: tuple[PublishedAccuracy, ...] = ()


class Published(Strict, frozen=True, kw_only=True):
    """The file."""

    models: tuple[PublishedModel, ...] = ()
    tables: tuple[PublishedTable, ...]

    def model(self, word: str) -> Model | None:
        """A model of the tables, by word."""
        for each in self.models:
            if each.word == word:
                return Model(
                    word=word,
                    source="hub",
                    location=word,
                    architecture="LlamaForCausalLM",
                    parameters=each.parameters,
                    shape=each.shape,
                    summary="only in published tables",
                )
        return None


def published(path: Path | None = None) -> Published:
    """The published tables; `path` takes another file of the same form.

    Raises:
        BadInput: a fault in the file, with its line.
    """
    return _builtin() if path is None else strict.load(path, Published, _faults)


@cache
def _builtin() -> Published:
    return strict.load(builtin() / "evals" / "published_throughput.yaml", Published, _faults)


def _faults(record: Published) -> Iterator[Complaint]:
    known = {each.word for each in catalog_models()} | {each.word for each in record.models}
    for index, table in enumerate(record.tables):
        at = ("tables", index)
        if not table.source.startswith("https://"):
            yield (*at, "source"), "a published figure needs its source.", "Write the URL."
        if gpu(table.gpu) is None:
            yield (*at, "gpu"), f"no GPU is called {table.gpu!r}.", "See quantlab ls gpus."
        if not table.usable and not table.notes:
            yield (*at, "notes"), "a table that is not usable needs the reason.", "Say it in notes."
        for position, cell in enumerate(table.cells):
            yield from _cell_faults(cell, (*at, "cells", position), known)
        for position, each in enumerate(table.accuracy):
            if not math.isfinite(each.drop):
                yield (*at, "accuracy", position, "drop"), f"{each.drop} is not a loss.", "Write points."
            if each.model not in known:
                yield (*at, "accuracy", position, "model"), f"no model is called {each.model!r}.", "Add it to models."


def _cell_faults(cell: PublishedCell, at: tuple[str | int, ...], known: set[str]) -> Iterator[Complaint]:
    if cell.model not in known:
        yield (*at, "model"), f"no model is called {cell.model!r}.", "Add it to models."
    if not (math.isfinite(cell.tokens_per_second) and cell.tokens_per_second > 0):
        yield (*at, "tokens_per_second"), f"{cell.tokens_per_second} is not a speed.", "Write tokens a second."
    for name in ("isl", "osl", "batch", "gpus"):
        value = getattr(cell, name)
        if value is not None and value < 1:
            yield (*at, name), f"{value} is too small.", "The least is 1."
