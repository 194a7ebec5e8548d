"""The graph against torch: the same pictures, the same weights, differences said in numbers.

Pictures are brought into every aspect ratio that the model knows, in turn, so that padding tiles, mask and each row of
the tables take part: photographs of one shape would leave seven of eight rows unread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantlab.encoder.ranges import Batch
from quantlab.encoder.runtime import OnnxTower
from quantlab.encoder.towers import TorchTower
from quantlab.formats.seeing import image_processor
from quantlab.images import opened
from quantlab.records.encoder import Difference


class Pictures:
    """What the checkpoint's own image processor makes of some files.

    Raises:
        Broken: the folder has no image processor.
    """

    def __init__(self, folder: Path, files: Sequence[str], tile: int, ratios: Sequence[Sequence[int]]) -> None:
        self._processor, self._files = image_processor(folder), files
        self._tile, self._ratios = tile, ratios

    def batch(self, count: int) -> Batch:
        """`count` pictures, each in another aspect ratio, as far as there are. Raises BadInput for a bad file."""
        found = [opened(self._files[at % len(self._files)]) for at in range(count)]
        shaped = [one.resize(self._size(at)) for at, one in enumerate(found)]
        return self._prepared(shaped)

    def batches(self, size: int = 8) -> list[Batch]:
        """All files as they are."""
        found = [opened(file) for file in self._files]
        return [self._prepared(found[at : at + size]) for at in range(0, len(found), size)]

    def _size(self, at: int) -> tuple[int, int]:
        high, wide = self._ratios[at % len(self._ratios)]
        return wide * self._tile, high * self._tile

    def _prepared(self, pictures: list[Any]) -> Batch:
        made = self._processor([[one] for one in pictures], return_tensors="pt")
        return made["pixel_values"], made["aspect_ratio_ids"], made["aspect_ratio_mask"]


def differences(tower: TorchTower, graph: OnnxTower, pictures: Pictures, batches: Sequence[int]) -> list[Difference]:
    """One for each size of batch."""

    def run(*batch: torch.Tensor) -> np.ndarray:
        return graph(*(one.numpy() for one in batch))

    return [_difference(tower, run, pictures.batch(size)) for size in batches]


def _difference(tower: TorchTower, run: Callable[..., np.ndarray], batch: Batch) -> Difference:
    with torch.inference_mode():
        wanted = tower(*batch).numpy()
    return difference(wanted, run(*batch))


def difference(wanted: np.ndarray, found: np.ndarray) -> Difference:
    """Of two arrays of states of the same pictures, batch first."""
    gap = found.astype(np.float64) - wanted
    largest = float(np.abs(gap).max())
    return Difference(
        batch=len(wanted),
        absolute=largest,
        relative=largest / float(np.abs(wanted).max()),
        norm=float(np.linalg.norm(gap) / np.linalg.norm(wanted.astype(np.float64))),
    )
