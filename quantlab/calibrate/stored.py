"""Tensors read from safetensors as bytes, one at a time, instead of mapped.

A mapped file is counted as resident memory page by page as it is read, and a pass over all weights ends with all of
them counted. A read tensor is a tensor, and gone when it is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantlab import weights as folders
from quantlab.errors import Broken
from quantlab.formats import names

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
         "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
         "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
"""By the names in a safetensors header."""
PART_ELEMENTS = 1 << 24
"""Of a large tensor that are in memory at once where it is read in parts."""


class Stored:
    """The tensors of a folder under the model's own names.

    Raises:
        BadInput, Broken: as quantlab.weights.headers.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.headers: dict[str, dict[str, Any]] = names.headers(folder)
        self._begins: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.headers

    def under(self, prefix: str) -> list[str]:
        """Names that begin so."""
        return [name for name in self.headers if name.startswith(prefix)]

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor of its own type on the CPU; some of its rows (a slice without a step) where asked."""
        if name not in self.headers:
            raise Broken("is missing.", place=name, cure="Fetch the model again.")
        one = self.headers[name]
        shape, (begin, end) = list(one["shape"]), one["data_offsets"]
        if one["dtype"] not in TYPES:
            raise Broken(f"has the type {one['dtype']}.", place=name, cure="Weights are 16- or 32-bit floats.")
        if rows is not None:
            first, last, _ = rows.indices(shape[0])
            row = (end - begin) // shape[0]
            shape[0], begin, end = last - first, begin + first * row, begin + last * row
        return _tensor(self.folder / one["file"], self._begin(one["file"]) + begin, end - begin, shape, one["dtype"])

    def parts(self, name: str) -> Iterator[Tensor]:
        """A tensor, some of its rows at a time where it is a large matrix."""
        shape = self.headers[name]["shape"]
        if len(shape) < 2:
            yield self.read(name)
            return
        step = max(1, PART_ELEMENTS // max(1, torch.Size(shape[1:]).numel()))
        yield from (self.read(name, slice(first, first + step)) for first in range(0, shape[0], step))

    def _begin(self, file: str) -> int:
        """Where the tensors of a file begin."""
        if file not in self._begins:
            self._begins[file] = _begin(self.folder / file)
        return self._begins[file]


def held(file: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file. They stay when it is taken away."""
    start, found = _begin(file), {}
    for name, one in folders.header(file).items():
        begin, end = one["data_offsets"]
        found[name] = _tensor(file, start + begin, end - begin, one["shape"], one["dtype"])
    return found


def _begin(file: Path) -> int:
    """Tensors begin after eight bytes of length and the header."""
    with file.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def _tensor(file: Path, begin: int, size: int, shape: list[int], dtype: str) -> Tensor:
    if not size:
        return torch.empty(shape, dtype=TYPES[dtype])
    with file.open("rb") as stream:
        stream.seek(begin)
        data = bytearray(size)
        stream.readinto(data)
    return torch.frombuffer(data, dtype=TYPES[dtype]).reshape(shape)
