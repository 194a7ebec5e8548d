"""From a word to a model: a catalog word, a directory, or the id of a repository on the Hugging Face hub.

Only JSON is read here. The dimensions are enough to say whether a model fits, which group size divides its
layers and how much a decode step must read; the weights themselves are looked at later, by `fetch`.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from quantlab.catalog import strict
from quantlab.errors import BadInput
from quantlab.records import Model, Shape

HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+(@[\w./-]+)?")
"""org/name, with an optional @revision."""
ENOUGH_BYTES = 20_000_000
"""Largest JSON file read; a tokenizer_config.json can have some megabytes."""


_NEEDED = frozenset(
    "num_hidden_layers hidden_size intermediate_size num_attention_heads vocab_size".split()  # noqa: SIM905
)


class Models(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """models.yaml."""

    models: tuple[Model, ...]


@cache
def models() -> tuple[Model, ...]:
    """The models of the catalog, in the order of the file."""
    return strict.load(Path(__file__).with_name("models.yaml"), Models).models


def model(word: str) -> Model:
    """The model that `word` means.

    Args:
        word: a catalog word ("3b"), a directory with config.json, or "org/name" with an optional "@revision".

    Raises:
        BadInput: none of these, with "did you mean" and the list; or a directory that holds no model.
    """
    known = {each.word: each for each in models()}
    if word in known:
        return known[word]
    if word.strip() and os.path.isdir(os.path.expanduser(word)):
        return from_folder(word)
    if os.path.isfile(os.path.expanduser(word)):
        cure = "Give the directory that holds config.json and the safetensors files."
        raise BadInput("is a file, not a model directory.", place=word, cure=cure)
    if HUB_ID.fullmatch(word) and not word.startswith("."):
        return _from_hub(word)
    hint = strict.nearest(word, known)
    cure = f"{hint} Known: {', '.join(known)}; or a directory, or a hub id (org/name).".strip()
    raise BadInput(f"no model is called {word!r}.", cure=cure)


def from_folder(word: str) -> Model:
    """A model directory described from its config.json and tokenizer files.

    Raises:
        BadInput: no config.json, or one that is not a JSON object.
    """
    folder = Path(word).expanduser()
    config = _json(folder / "config.json")
    if config is None:
        cure = "Give a directory in Hugging Face format: config.json, *.safetensors and the tokenizer."
        raise BadInput("holds no config.json.", place=word, cure=cure)
    architectures = config.get("architectures")
    return Model(
        word=word,
        source="path",
        location=str(folder.resolve()),
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else None,
        modality="vision" if "vision_config" in config else "text",
        chat=_has_chat_template(folder),
        shape=shape_of(config),
        summary=f"local directory {folder.name}",
    )


def shape_of(config: dict[str, Any]) -> Shape | None:
    """Dimensions from a config.json, or None where it does not use the usual names.

    A model with images keeps its language model's dimensions in `text_config`.
    """
    text = config.get("text_config")
    inner: dict[str, Any] = {**config, **text} if isinstance(text, dict) else config
    size = {name: value for name, value in inner.items() if _positive(value)}
    if not size.keys() >= _NEEDED:
        return None
    cross = inner.get("cross_attention_layers")
    crossing = len(cross) if isinstance(cross, list) else 0
    heads = size["num_attention_heads"]
    usual = str(inner.get("model_type", "")).startswith("gemma")
    return Shape(
        layers=size["num_hidden_layers"] - crossing,
        hidden=size["hidden_size"],
        intermediate=size["intermediate_size"],
        heads=heads,
        kv_heads=size.get("num_key_value_heads", heads),
        head_dim=size.get("head_dim", size["hidden_size"] // heads),
        vocabulary=size["vocab_size"],
        # transformers leaves a field out of config.json when it has the class's default
        tied=bool(inner.get("tie_word_embeddings", usual)),
        cross_layers=crossing,
        context=size.get("max_position_embeddings", 131072),
    )


def _from_hub(word: str) -> Model:
    name, _, revision = word.partition("@")
    for each in models():
        if each.source == "hub" and each.location.lower() == name.lower():
            return msgspec.structs.replace(each, word=word, revision=revision or each.revision)
    return Model(word=word, source="hub", location=name, revision=revision or None, summary="from the hub")


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    return bool((_json(folder / "tokenizer_config.json") or {}).get("chat_template"))


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no file."""
    import json

    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            plain = json.loads(file.read(ENOUGH_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        cure = "Download or export the model again."
        raise BadInput(f"is not readable JSON ({error}).", place=strict.show(path), cure=cure) from None
    if not isinstance(plain, dict):
        raise BadInput("is not a JSON object.", place=strict.show(path), cure="Export the model again.")
    return plain
