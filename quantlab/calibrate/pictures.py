"""Pictures with questions -> what a model with images is calibrated on.

Llama 3.2 Vision skips its cross-attention layers when there is no image, in silence: calibrated on text they have no
ranges, FP8 weights come out without `input_scale`, and AWQ folds nothing there. So every sample is a picture and a
question, put together by the model's own processor, as a request is.

Questions are never padded, because padding would enter the ranges: those of equal length go together instead. An
Instruct model is asked through its chat template.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlab.calibrate.samples import rows_of
from quantlab.errors import BadInput
from quantlab.formats.seeing import processor, spell
from quantlab.images import opened, pixel_digest
from quantlab.records import Calibration, CalibrationSet

if TYPE_CHECKING:
    from torch import Tensor

TAKEN = ("input_ids", "attention_mask", "pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask")
"""What the model takes of what the processor makes."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One picture and the question about it."""

    picture: Path
    question: str
    place: str
    """Where it stands, for errors."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """What is fed: groups of equal length, each a batch as the model takes it."""

    groups: tuple[dict[str, Tensor], ...]
    digest: str
    """SHA-256 over token ids and pixels, in order."""

    @property
    def count(self) -> int:
        return sum(len(group["input_ids"]) for group in self.groups)

    @property
    def tokens(self) -> int:
        """Of the questions; what the vision tower makes of a picture is not counted."""
        return sum(group["input_ids"].numel() for group in self.groups)

    @property
    def largest_id(self) -> int:
        return max(int(group["input_ids"].max()) for group in self.groups)

    def batches(self, size: int) -> list[dict[str, Tensor]]:
        """At most `size` samples each, all of one length."""
        found = []
        for group in self.groups:
            for start in range(0, len(group["input_ids"]), size):
                found.append({name: tensor[start : start + size] for name, tensor in group.items()})
        return found

    def probe(self) -> dict[str, Tensor]:
        """Two samples of the commonest length, to remember what the calibrated model computes on them."""
        largest = max(self.groups, key=lambda group: len(group["input_ids"]))
        return {name: tensor[:2].clone() for name, tensor in largest.items()}


def pictures(
    data: CalibrationSet, asked: Calibration, folder: str | Path | None, weights: Path, *, chat: bool
) -> Pictures:
    """Chosen from a set with images.

    Args:
        data: a set of `source: file` with `image`.
        asked: how many pictures, and the seed.
        folder: of the set's YAML; its `file` is relative to it, the pictures are relative to that file.
        weights: folder of the model, for its processor.
        chat: the model is served through its chat template.

    Raises:
        BadInput: a file or picture that is missing or damaged, a question without a picture, too few of them.
        Broken: the model's folder has no processor.
    """
    found = list(read(data, Path(folder or ".")))
    random.Random(asked.seed).shuffle(found)
    if len(found) < asked.images:
        cure = f"Set calibration.images to at most {len(found)}, or take a larger set."
        raise BadInput(f"{len(found)} pictures where {asked.images} are asked for.", place=str(data.file), cure=cure)
    return together(found[: asked.images], processor(weights), chat=chat)


def read(data: CalibrationSet, folder: Path) -> Iterator[Asked]:
    """All pairs of a set's JSONL, in order."""
    path = (folder / str(data.file)).resolve()
    if path.suffix != ".jsonl":
        cure = 'One object a line: {"question": "...", "image": "photos/1.png"}.'
        raise BadInput("pictures with questions come from a .jsonl file.", place=str(path), cure=cure)
    for row, place in rows_of(path):
        question, picture = (row.get(name) if isinstance(row, dict) else None for name in (data.column, data.image))
        if not isinstance(question, str) or not question.strip():
            raise BadInput(f"no question in the field {data.column!r}.", place=place, cure="Set `column` in the set.")
        if not isinstance(picture, str) or not picture.strip():
            cure = "Set `image` in the set, and give each question its picture."
            raise BadInput(f"a question without a picture in the field {data.image!r}.", place=place, cure=cure)
        yield Asked(path.parent / picture, question, place)


def together(found: Sequence[Asked], tool: Any, *, chat: bool) -> Pictures:
    """Through the processor, questions of equal length together; shortest first."""
    return _grouped([(opened(one.picture), prompt(one.question, tool, chat=chat)) for one in found], tool)


def noise(weights: Path) -> Pictures:
    """Two pictures of noise: what a model with images is probed with where nothing was calibrated."""
    from PIL import Image

    tool, draw = processor(weights), random.Random(0)
    drawn = [Image.frombytes("RGB", (64, 64), draw.randbytes(64 * 64 * 3)) for _ in range(2)]
    return _grouped([(picture, prompt("what is this ?", tool, chat=False)) for picture in drawn], tool)


def _grouped(pairs: Sequence[tuple[Any, str]], tool: Any) -> Pictures:
    import torch

    by_length: dict[int, list[tuple[Any, str]]] = defaultdict(list)
    seen = []
    for picture, text in pairs:
        ids = tool.tokenizer(text, add_special_tokens=False)["input_ids"]
        by_length[len(ids)].append((picture, text))
        seen.append([ids, pixel_digest(picture)])
    groups = []
    for _, alike in sorted(by_length.items()):
        texts, images = [text for _, text in alike], [[picture] for picture, _ in alike]
        made = tool(images=images, text=texts, add_special_tokens=False, return_tensors="pt")
        groups.append({name: torch.as_tensor(made[name]) for name in TAKEN})
    return Pictures(tuple(groups), hashlib.sha256(json.dumps(seen).encode()).hexdigest())


def prompt(question: str, tool: Any, *, chat: bool) -> str:
    """The question with its image token, through the chat template where the model is served so."""
    if chat and tool.tokenizer.chat_template:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return str(tool.tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
    return spell(tool.image_token + question, tool.image_token, tool.tokenizer.bos_token)
