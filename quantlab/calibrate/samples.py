"""Calibration text -> token ids. Which tokens are fed decides every range and scale, so the choice is deterministic.

Four things matter, and three of them are silent when done wrong:

* An Instruct model sees its chat template when it is served, so it is calibrated through it. Plain text becomes the
  content of a user's turn.
* Every sample begins where a document begins. In Llama the first token (`<|begin_of_text|>`) draws activations a
  hundred times larger than any other; a static range that never saw it clips it in every request.
* The template writes that token already. A tokenizer asked to add it again gives two, which no served prompt has.
* Samples are filled with following documents, never padded: padding would enter the ranges.

Documents come in an order drawn from the seed. Of a data set on the hub the first POOL documents are drawn from, so
that streaming (no full download) and an offline cache give the same samples.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlab.errors import BadInput
from quantlab.records import Calibration, CalibrationSet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

POOL = 2000
"""Documents of a hub data set from which the samples are drawn."""
CHARACTERS_A_TOKEN = 4
"""Rough, for cutting long text into documents of about one sample."""

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Document:
    """One text, or one conversation."""

    content: str | Messages
    place: str
    """Where it stands, for errors."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What is fed."""

    ids: Tensor
    """int64 [samples, length]."""
    digest: str
    """SHA-256 over shape and ids."""
    documents: int
    """Documents that were used."""

    @property
    def count(self) -> int:
        return int(self.ids.shape[0])

    @property
    def tokens(self) -> int:
        return int(self.ids.numel())

    @property
    def largest_id(self) -> int:
        return int(self.ids.max())

    def batches(self, size: int) -> list[dict[str, Tensor]]:
        """At most `size` samples each, as the model takes them."""
        return [{"input_ids": ids} for ids in self.ids.split(size)]


def samples(
    data: CalibrationSet,
    asked: Calibration,
    folder: str | Path | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool,
    least: int | None = None,
) -> Samples:
    """Token ids chosen from the set.

    Args:
        data: the calibration set.
        asked: number and length of samples, and the seed.
        folder: of the set's YAML; its `file` is relative to it.
        tokenizer: of the model.
        chat: the model is served through its chat template.
        least: samples that are enough where the set has no more; None: all that are asked for.

    Raises:
        BadInput: a file that is missing, empty, not UTF-8 or of the wrong shape, or too little text.
        NoAccess: a hub data set that cannot be had.
    """
    import torch

    documents = _documents(data, Path(folder or "."), asked.length)
    random.Random(asked.seed).shuffle(documents)
    rows, used, total = _pack(documents, asked, tokenizer, chat)
    if len(rows) < (asked.samples if least is None else least):
        raise BadInput(
            f"too little text: {len(documents)} documents with {total:,} tokens fill {len(rows)} of "
            f"{asked.samples} samples of {asked.length} tokens.",
            place=_name(data),
            cure=f"Ask for at most {len(rows)} samples, shorten `length`, or take a larger set."
            if rows
            else "Shorten `length` or take a larger set.",
        )
    ids = torch.tensor(rows, dtype=torch.int64)
    raw = json.dumps(list(ids.shape)).encode() + ids.numpy().astype("<i8").tobytes()
    return Samples(ids, hashlib.sha256(raw).hexdigest(), used)


def _pack(
    documents: Sequence[Document], asked: Calibration, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> tuple[list[list[int]], int, int]:
    """Rows of exactly `length` ids; what overhangs is dropped. Also: documents used, tokens seen."""
    rows: list[list[int]] = []
    row: list[int] = []
    total = 0
    for used, document in enumerate(documents, start=1):
        ids = _encode(document, tokenizer, chat)
        total += len(ids)
        row += ids
        if len(row) >= asked.length:
            rows.append(row[: asked.length])
            row = []
        if len(rows) == asked.samples:
            return rows, used, total
    return rows, len(documents), total


def _encode(document: Document, tokenizer: PreTrainedTokenizerBase, chat: bool) -> list[int]:
    content = document.content
    if chat and tokenizer.chat_template:
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        text, special = _rendered(messages, tokenizer, document.place), False
    else:
        text = content if isinstance(content, str) else "\n\n".join(turn["content"] for turn in content)
        special = True
    ids = [int(number) for number in tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        cure = "Take it out of the text: the tokenizer or the chat template adds it."
        raise BadInput(
            f"begins with {tokenizer.bos_token!r}, which would then come twice.", place=document.place, cure=cure
        )
    return ids


def _rendered(messages: Messages, tokenizer: PreTrainedTokenizerBase, place: str) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateError as error:
        cure = "Roles are system, user and assistant, in turn."
        raise BadInput(f"the chat template refuses this conversation ({error}).", place=place, cure=cure) from None


def _name(data: CalibrationSet) -> str:
    return f"calibration set {data.dataset or data.file}"


def _documents(data: CalibrationSet, folder: Path, length: int) -> list[Document]:
    if data.source == "hub":
        return list(_from_hub(data))
    if not data.file:
        raise BadInput("source file without a `file`.", place=_name(data), cure="Name a .txt, .md or .jsonl file.")
    path = (folder / Path(data.file).expanduser()).resolve()
    if path.suffix not in (".txt", ".md", ".jsonl"):
        raise BadInput(
            f"{path.suffix or 'no ending'}: not a format read here.", place=str(path), cure="Use .txt, .md or .jsonl."
        )
    if path.suffix == ".jsonl":
        found = list(_from_jsonl(path, data.column))
    else:
        text = _decoded(_bytes(path), str(path))
        found = [Document(piece, str(path)) for piece in pieces(text, length * CHARACTERS_A_TOKEN)]
    if not found:
        raise BadInput("holds no text.", place=str(path), cure="Give a file with text in it.")
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror}).", place=str(path), cure="Check the set's `file`.") from None


def _decoded(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        cure = "Convert it, e.g. with `iconv -t UTF-8`."
        raise BadInput(f"not UTF-8 at byte {error.start}.", place=place, cure=cure) from None


def pieces(text: str, size: int) -> Iterator[str]:
    """Cut text into documents of at most `size` characters, at a paragraph, a line or a space where there is one."""
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            cuts = (text.rfind(mark, start + size // 2, end) for mark in ("\n\n", "\n", " "))
            end = next((cut for cut in cuts if cut > start), end)
        if piece := text[start:end].strip():
            yield piece
        start = end


def _from_jsonl(path: Path, column: str) -> Iterator[Document]:
    for row, place in rows_of(path):
        if (document := _from_row(row, column, place)) is not None:
            yield document


def rows_of(path: Path) -> Iterator[tuple[Any, str]]:
    """The objects of a JSONL file, each with its place. Raises BadInput for a file or line that cannot be read."""
    for number, line in enumerate(_bytes(path).split(b"\n"), start=1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            yield json.loads(_decoded(line, place)), place
        except ValueError as error:
            raise BadInput(f"not JSON ({error}).", place=place, cure="Each line is one JSON object.") from None


def _from_row(row: Any, column: str, place: str) -> Document | None:
    """None for an empty text, of which WikiText has many."""
    if not isinstance(row, dict) or column not in row:
        has = f"has {', '.join(map(repr, row))}" if isinstance(row, dict) else "is no JSON object"
        raise BadInput(f"no field {column!r}; it {has}.", place=place, cure="Set `column` in the calibration set.")
    content = row[column]
    if isinstance(content, str):
        return Document(content, place) if content.strip() else None
    if isinstance(content, list) and content and all(_is_turn(turn) for turn in content):
        return Document([{"role": turn["role"], "content": turn["content"]} for turn in content], place)
    cure = 'Text, or a list like [{"role": "user", "content": "..."}].'
    raise BadInput(f"field {column!r} is neither text nor chat messages.", place=place, cure=cure)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def _from_hub(data: CalibrationSet) -> Iterator[Document]:
    import datasets
    from huggingface_hub.constants import HF_HUB_OFFLINE

    from quantlab.hub import hub_says, missing_data

    if not data.dataset:
        raise BadInput("source hub without a `dataset`.", place="calibration set", cure="Name one as owner/name.")
    offline = HF_HUB_OFFLINE or datasets.config.HF_DATASETS_OFFLINE
    with hub_says(data.dataset, data.revision, "datasets/"):
        try:
            table = datasets.load_dataset(
                data.dataset, data.config, split=data.split, revision=data.revision, streaming=not offline
            )
            rows = list(islice(table, POOL))
        except datasets.exceptions.DatasetNotFoundError as error:
            raise missing_data(data.dataset, error) from error
        except ValueError as error:  # what `datasets` raises for an unknown configuration or split
            raise BadInput(f"{error}", place=_name(data), cure="Check `config` and `split`.") from error
    for number, row in enumerate(rows):
        document = _from_row(row, data.column, f"{_name(data)}, row {number}")
        if document is not None:
            yield document
