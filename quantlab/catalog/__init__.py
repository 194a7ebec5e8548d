"""From words to records: `recipe("fp8")`, `suite("quick")`, `model("3b")`, `gpu("h100")`.

    strict    YAML -> record; every fault with file, line and field
    sense     values that are well-typed and still mean nothing
    files     word -> file, listing, copying, relative files
    models    word -> Model           models.yaml
    elsewhere word -> a checkpoint that somebody else made, in the place of a recipe
    gpus      name -> Datasheet       gpus.yaml
    published Model -> scores that others published, evals/published.yaml
    digests   what a suite or a set really reads, as one digest

Only this room reads `calibration/` and `evals/`. It imports nothing heavy, so that `quantlab ls` is instant.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from quantlab.catalog.digests import package_file, set_digest, sights_digest, suite_digest
from quantlab.catalog.elsewhere import distinct, elsewhere
from quantlab.catalog.files import (
    KINDS,
    SUFFIXES,
    Found,
    base,
    builtin,
    copy,
    file_digest,
    find,
    folder,
    listing,
    resolve,
    words,
)
from quantlab.catalog.gpus import Datasheet, gpu, gpus, target
from quantlab.catalog.models import model, models
from quantlab.catalog.published import Published, published
from quantlab.catalog.scores import published_scores
from quantlab.catalog.strict import nearest, show
from quantlab.errors import BadInput
from quantlab.records import CalibrationSet, digest

__all__ = [
    "KINDS",
    "Datasheet",
    "Found",
    "Published",
    "base",
    "builtin",
    "calibration_set",
    "copy",
    "distinct",
    "elsewhere",
    "file_digest",
    "find",
    "folder",
    "gpu",
    "gpus",
    "grid",
    "listing",
    "model",
    "models",
    "names",
    "nearest",
    "package_file",
    "policy",
    "published",
    "published_scores",
    "recipe",
    "resolve",
    "set_digest",
    "show",
    "sights_digest",
    "suite",
    "suite_digest",
    "target",
    "text",
    "words",
]

DATA = (".txt", ".jsonl")
"""Suffixes of a user's own calibration data."""


def recipe(word: str) -> Found:
    """The recipe called `word`, or in the file `word`. Raises BadInput."""
    return find("recipe", word)


def calibration_set(word: str, near: Path | None = None) -> Found:
    """The calibration set called `word`, in the file `word`, or the text itself: a .txt or .jsonl file.

    Args:
        word: name, YAML file or data file.
        near: folder of the recipe that names the set; a relative path is looked for there first.

    Raises:
        BadInput: no such set or file, or a fault in it.
    """
    path = near / word if near and word.endswith((*DATA, *SUFFIXES)) and (near / word).is_file() else None
    if not word.endswith(DATA):
        return find("set", str(path) if path else word)
    file = path or Path(word).expanduser()
    if not file.is_file():
        raise BadInput("does not exist, or is not a file.", place=word, cure="Check the path.")
    record = CalibrationSet(summary=f"your own file {file.name}", source="file", file=file.name)
    return Found("set", file.stem, file, record, file_digest(file))


def suite(word: str) -> Found:
    """The suite called `word`, or in the file `word`. Raises BadInput."""
    return find("suite", word)


def grid(word: str) -> Found:
    """The throughput grid called `word`, or in the file `word`. Raises BadInput."""
    return find("grid", word)


def policy(word: str) -> Found:
    """The policy called `word`, or in the file `word`. Raises BadInput."""
    return find("policy", word)


def names(kind: str) -> list[Found]:
    """All of a kind ("recipe" or "recipes"; also "models"); `listing` says what is wrong with the others."""
    if kind in ("model", "models"):
        file = Path(__file__).with_name("models.yaml")
        return [Found("model", each.word, file, each, digest(each)) for each in models()]
    return listing(kind)[0]


def text(kind: str, word: str) -> str:
    """What `quantlab show` prints: the file as it was written, or a model's or GPU's entry as YAML.

    Raises:
        BadInput: no such word.
    """
    if kind in KINDS:
        return find(kind, word).path.read_text("utf-8")
    if kind not in ("model", "gpu"):
        known = [*KINDS, "model", "gpu"]
        cure = f"{nearest(kind, known)} Known: {', '.join(known)}.".strip()
        raise BadInput(f"nothing is called {kind} {word!r}.", cure=cure)
    record = model(word) if kind == "model" else target(word)
    import yaml

    return str(yaml.safe_dump(msgspec.to_builtins(record), sort_keys=False, allow_unicode=True, width=110))
