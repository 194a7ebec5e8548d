"""A candidate word that is no recipe: a folder, or a repository of the hub, that holds a finished checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from quantlab.catalog.files import SUFFIXES, Found, words
from quantlab.catalog.models import HUB_ID, model
from quantlab.errors import BadInput, Refused
from quantlab.records import Model

KIND = "finished"
"""`Found.kind` of such a candidate; its record is a Model, which says where the files come from."""


def elsewhere(word: str) -> Found | None:
    """The finished checkpoint that `word` means; None where it means a recipe or nothing.

    A recipe's name comes before a folder of the same name. What has a slash and is neither file nor folder nor starts
    like a path here is taken for a hub id, with an optional "@revision".

    Raises:
        Refused: a GGUF file, or a folder with nothing else.
        BadInput: a folder without config.json.
    """
    path = os.path.expanduser(word)
    if word.lower().endswith(".gguf") or (os.path.isdir(path) and _gguf(Path(path))):
        raise Refused(
            "GGUF is llama.cpp's file, which no engine here opens.",
            place=word,
            cure="Judge it with llama.cpp, or give a checkpoint of safetensors.",
        )
    if word.endswith(SUFFIXES) or word in words("recipe") or not (os.path.isdir(path) or _hub(word)):
        return None
    found = model(word)
    name = Path(found.location).name if found.source == "path" else word
    return Found(KIND, name, Path(found.location), found, "")


def distinct(found: list[Found]) -> list[Found]:
    """The same with names that tell them apart: folders of one name get their parent's name before it.

    Raises:
        BadInput: two candidates whose names cannot be told apart.
    """
    import msgspec

    names = [each.name for each in found]
    made = []
    for each in found:
        name = each.name
        if names.count(name) > 1 and each.kind == KIND and _model(each).source == "path":
            name = "/".join(each.path.parts[-2:])
        made.append(msgspec.structs.replace(each, name=name))
    taken = [each.name for each in made]
    twice = next((name for name in taken if taken.count(name) > 1), "")
    if twice and any(each.kind == KIND for each in made if each.name == twice):
        raise BadInput("two candidates have this name.", place=twice, cure="Rename one of the folders.")
    return made


def _model(found: Found) -> Model:
    assert isinstance(found.record, Model)
    return found.record


def _hub(word: str) -> bool:
    first = word.partition("/")[0]
    return HUB_ID.fullmatch(word) is not None and not word.startswith((".", "~")) and not os.path.exists(first)


def _gguf(folder: Path) -> bool:
    return any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors"))
