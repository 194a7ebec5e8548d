"""The tensors of a safetensors checkpoint, each taken once, so that what nobody took can be named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from quantlab.errors import Broken
from quantlab.formats.names import inside, of


class Tensors:
    """Names -> tensors of model.safetensors, or of the shards named in model.safetensors.index.json.

    Only headers are read here; a tensor is read when it is taken. Names are the model's own, also where
    the file spells them differently (names.py).

    Raises:
        Broken: no safetensors, an unreadable or truncated file, a shard without a tensor that the index promises.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        architecture = of(folder)
        self._files: dict[str, tuple[Any, str]] = {}
        for path in _files(folder):
            try:
                file = safe_open(path, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise Broken(f"cannot be read ({error}).", place=str(path), cure="Fetch it again.") from None
            names: list[str] = list(file.keys())  # type: ignore[no-untyped-call]
            self._files.update({inside(name, architecture): (file, name) for name in names})

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def left(self) -> list[str]:
        """Names that nobody took, sorted."""
        return sorted(self._files)

    def take(
        self,
        name: str,
        device: torch.device,
        *,
        dtype: torch.dtype | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> torch.Tensor:
        """The tensor, on `device`; `dtype` and `shape` are what it must have.

        Raises:
            Broken: it is missing, or is something else.
        """
        if name not in self._files:
            raise Broken("is missing from the checkpoint.", place=name, cure="Export it again.")
        file, stored = self._files.pop(name)
        tensor: torch.Tensor = file.get_tensor(stored)
        if dtype is not None and tensor.dtype is not dtype:
            raise Broken(f"is {tensor.dtype}, not {dtype}.", place=name, cure="Export it again.")
        if shape is not None and tuple(tensor.shape) != shape:
            raise Broken(f"has shape {list(tensor.shape)}, not {list(shape)}.", place=name, cure="Export it again.")
        return tensor.to(device)

    def optional(self, name: str, device: torch.device) -> torch.Tensor | None:
        return self.take(name, device) if name in self else None

    def scale(self, name: str, device: torch.device, sizes: tuple[int, ...] = ()) -> torch.Tensor:
        """A tensor of scales in float32: finite and positive, with one of `sizes` numbers when given."""
        scale = self.take(name, device).float()
        if sizes and scale.numel() not in sizes:
            allowed = " or ".join(map(str, sizes))
            raise Broken(f"holds {scale.numel()} numbers, not {allowed}.", place=name, cure="Export it again.")
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise Broken("holds a scale that is zero, negative or not finite.", place=name, cure="Calibrate again.")
        return scale


def _files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise Broken("holds no model.safetensors.", place=str(folder), cure="Fetch or export the weights again.")
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        raise Broken("is no index of safetensors shards.", place=str(index), cure="Fetch it again.") from None
    return [folder / name for name in sorted(named)]
