"""ModelOpt's unified Hugging Face export of a calibrated model.

It packs the weights in place; the live model is useless afterwards, so the probe comes before it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from quantlab import disk
from quantlab import weights as folders
from quantlab.calibrate.quantizers import word
from quantlab.calibrate.stored import TYPES, Stored
from quantlab.errors import Broken, Refused
from quantlab.formats import names


def write(model: Any, stored: torch.dtype, recipe_name: str, folder: Path, prefix: str = "") -> None:
    """Weights, scales and configuration. Codes are made in the type of the calibration, whatever is stored beside them:
    a division in bfloat16 rounds twice, and then one FP8 code in fifty is a step off.

    Args:
        model: calibrated.
        stored: type of what stays in 16 bit.
        recipe_name: for errors.
        folder: to write into.
        prefix: only tensors whose names begin so: one block of a model.
    """
    from modelopt.torch.export import export_hf_checkpoint

    used, kind = next(model.parameters()).dtype, type(model).__name__
    save = model.save_pretrained

    def save_as_stored(into: Path, state_dict: dict[str, torch.Tensor], **options: Any) -> None:
        kept = {name: each for name, each in state_dict.items() if names.inside(name, kind).startswith(prefix)}
        save(into, state_dict={name: _stored(name, each, stored) for name, each in kept.items()}, **options)

    model.save_pretrained = save_as_stored
    try:
        export_hf_checkpoint(model, dtype=used, export_dir=folder)
    except NotImplementedError as error:
        place, cure = f"recipe {recipe_name}", "Set `export: folded` in the recipe to simulate it."
        raise Refused(f"ModelOpt has no export for it: {error}", place=place, cure=cure) from error
    except AssertionError as error:  # ModelOpt's own check of scales: a group of weights that are all zero
        place, cure = f"recipe {recipe_name}", "Look for weights that are all zero; FP8 has no groups."
        raise Broken(f"ModelOpt refuses the export: {str(error)[:200]}", place=place, cure=cure) from error
    config = folders.config(folder)
    disk.write(folder / "config.json", json.dumps(config | {"dtype": word(stored)}, indent=2).encode())


def _stored(name: str, tensor: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
    """Scales keep their float32: a scale of bfloat16 would shift a whole group by up to 0.4 %."""
    scale = name.endswith(("_scale", "_scale_2")) and not name.endswith("pre_quant_scale")
    return tensor if scale or tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16) else tensor.to(stored)


def copy(source: Stored, tensors: Sequence[str], stored: torch.dtype, file: Path) -> list[str]:
    """Write tensors of the source in the stored type to a safetensors file, one in memory at a time; returns what they
    are called there, which is what the source calls them."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, word_of = 0, {kind: name for name, kind in TYPES.items()}
    called = [str(source.headers[name]["stored"]) for name in tensors]
    for name, word_there in zip(tensors, called, strict=True):
        shape, size = source.headers[name]["shape"], stored.itemsize
        end = at + size * torch.Size(shape).numel()
        header[word_there] = {"dtype": word_of[stored], "shape": shape, "data_offsets": [at, end]}
        at = end
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    with file.open("wb") as stream:
        stream.write(len(data).to_bytes(8, "little") + data)
        for name in tensors:
            for part in source.parts(name):
                stream.write(part.to(stored).contiguous().view(torch.uint8).numpy().tobytes())
    return called


def join(parts: Sequence[Path], folder: Path, recipe_name: str) -> None:
    """The configuration of a checkpoint from those of its blocks: they differ in what they leave out."""
    for name in ("config.json", "hf_quant_config.json"):
        found = [json.loads((part / name).read_bytes()) for part in parts if (part / name).is_file()]
        if found:
            place = f"recipe {recipe_name}, {name}"
            whole = reduce(lambda left, right: _joined(left, right, place), found)
            disk.write(folder / name, json.dumps(whole, indent=2).encode())


def _joined(left: Any, right: Any, place: str) -> Any:
    if isinstance(left, dict) and isinstance(right, dict):
        both = {key: _joined(left[key], right[key], f"{place}, {key}") for key in left if key in right}
        return {**left, **right, **both}
    if isinstance(left, list) and isinstance(right, list):
        return left + [each for each in right if each not in left]
    if left != right:
        cure = "Calibrate the whole model: ModelOpt describes such a mixture only when it sees all of it."
        raise Refused(f"its blocks are quantized in different ways ({left}, {right}).", place=place, cure=cure)
    return left
