"""The tensors of a safetensors checkpoint as numpy arrays: mapped, not read, each taken once, without torch.

numpy knows neither bfloat16 nor FP8, so an array comes with the name of its type and holds the bits: a bfloat16 is the
upper half of a float32, and widening it is a shift. What nobody took can be named, as in tensors.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantlab import weights
from quantlab.errors import Broken

BITS: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F8_E4M3": np.uint8,
    "U8": np.uint8,
}
"""safetensors type -> what numpy holds it in."""
PLAIN = ("F32", "F16", "BF16")
"""Types of numbers that are not quantized."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of the file."""

    name: str
    kind: str
    """As safetensors says it: "BF16"."""
    bits: np.ndarray

    def float32(self) -> np.ndarray:
        """The numbers; exact, because no plain type is wider."""
        if self.kind == "BF16":
            return (self.bits.astype(np.uint32) << 16).view(np.float32)
        return self.bits.astype(np.float32)


class Arrays:
    """Names -> tensors of a folder.

    Raises:
        BadInput, Broken: no safetensors, or a file that broke off (see weights.py).
    """

    def __init__(self, folder: Path) -> None:
        self._left = weights.headers(folder)
        names = {one["file"] for one in self._left.values()}
        self._files = {name: np.memmap(folder / name, dtype=np.uint8, mode="r") for name in names}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def left(self) -> list[str]:
        """Names that nobody took, sorted."""
        return sorted(self._left)

    def take(self, name: str, kinds: tuple[str, ...], shape: tuple[int, ...] | None = None) -> Stored:
        """The tensor, of one of `kinds` and of `shape`.

        Raises:
            Broken: it is missing, or is something else.
        """
        if name not in self._left:
            raise Broken("is missing from the checkpoint.", place=name, cure="Export it again.")
        one = self._left.pop(name)
        kind, found = str(one["dtype"]), tuple(int(size) for size in one["shape"])
        if kind not in kinds:
            raise Broken(f"is {kind}, not {' or '.join(kinds)}.", place=name, cure="Export it again.")
        if shape is not None and found != shape:
            raise Broken(f"has shape {list(found)}, not {list(shape)}.", place=name, cure="Export it again.")
        file = self._files[one["file"]]
        start = 8 + int.from_bytes(file[:8].tobytes(), "little")
        begin, end = (start + int(place) for place in one["data_offsets"])
        return Stored(name, kind, file[begin:end].view(BITS[kind]).reshape(found))

    def scale(self, name: str) -> np.ndarray:
        """A tensor of scales in float32: finite and positive."""
        scale = self.take(name, PLAIN).float32()
        if not bool((np.isfinite(scale) & (scale > 0)).all()):
            raise Broken("holds a scale that is zero, negative or not finite.", place=name, cure="Calibrate again.")
        return scale
