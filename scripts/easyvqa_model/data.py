"""easy-VQA as tensors: pictures cut into 2 x 2 tiles, questions as token ids, and batches of both."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from items import easyvqa
from PIL import Image

SQUARE = 6
"""Aspect-ratio id of 2 x 2 tiles, the seventh of the list counted from 1: what 64 x 64 pixels are cut into."""


@dataclass(frozen=True)
class Split:
    """One half of easy-VQA."""

    prompts: list[list[int]]
    answers: list[int]
    kinds: list[str]
    of_picture: list[list[int]]
    """Questions of each picture."""
    picture_of: list[int]
    pixels: torch.Tensor
    """float32 [pictures, 3, 64, 64]"""


def words() -> set[str]:
    """All words of questions and answers."""
    questions, _, _ = easyvqa.split("train")
    texts = {word for text, answer, _ in questions for word in (*text.lower().replace("?", " ?").split(), answer)}
    return texts | {answer for choices in easyvqa.KINDS.values() for answer in choices}


def load(name: str, tool: Any) -> Split:
    """ "train" or "test", through the processor."""
    questions, paths, _ = easyvqa.split(name)
    numbers = sorted({picture for _, _, picture in questions})
    place = {number: index for index, number in enumerate(numbers)}
    of_picture: dict[int, list[int]] = defaultdict(list)
    for index, (_, _, picture) in enumerate(questions):
        of_picture[place[picture]].append(index)
    encode = tool.tokenizer
    return Split(
        [
            encode("<|image|><|begin_of_text|>" + text, add_special_tokens=False)["input_ids"]
            for text, _, _ in questions
        ],
        [encode.convert_tokens_to_ids(answer) for _, answer, _ in questions],
        [easyvqa.kind_of(answer) for _, answer, _ in questions],
        [of_picture[index] for index in range(len(numbers))],
        [place[picture] for _, _, picture in questions],
        whole(pixels([paths[number] for number in numbers], tool)),
    )


def pixels(paths: list[str], tool: Any) -> torch.Tensor:
    """[pictures, 1, 4, 3, 32, 32]"""
    found = []
    for start in range(0, len(paths), 256):
        some = [[Image.open(path).convert("RGB")] for path in paths[start : start + 256]]
        made = tool.image_processor(some, return_tensors="pt")
        assert bool((made["aspect_ratio_ids"] == SQUARE).all())
        found.append(made["pixel_values"])
    return torch.cat(found)


def whole(tiled: torch.Tensor) -> torch.Tensor:
    """[n, 1, 4, 3, h, w] -> [n, 3, 2h, 2w]"""
    n, _, _, c, h, w = tiled.shape
    return tiled.view(n, 2, 2, c, h, w).permute(0, 3, 1, 4, 2, 5).reshape(n, c, 2 * h, 2 * w)


def tiled(pictures: torch.Tensor) -> torch.Tensor:
    """The inverse of `whole`."""
    n, c, height, width = pictures.shape
    h, w = height // 2, width // 2
    return pictures.view(n, c, 2, h, 2, w).permute(0, 2, 4, 1, 3, 5).reshape(n, 1, 4, c, h, w).contiguous()


def turned(pictures: torch.Tensor) -> torch.Tensor:
    """Each mirrored, turned or neither, at random: no question depends on it."""
    flips = torch.rand(len(pictures), 3) < 0.5
    for place, change in enumerate((lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.transpose(2, 3))):
        pictures = torch.where(flips[:, place].view(-1, 1, 1, 1), change(pictures), pictures)
    return pictures


def batch(split: Split, questions: list[int], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids with the answer appended [n, length], the place that predicts it [n], and the answer [n]."""
    rows = [[*split.prompts[one], split.answers[one]] for one in questions]
    ids = torch.full((len(rows), max(map(len, rows))), pad)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    return ids, torch.tensor([len(row) - 2 for row in rows]), torch.tensor([row[-1] for row in rows])
