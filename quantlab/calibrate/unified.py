"""ModelOpt's unified Hugging Face export of a calibrated model.

It packs the weights in place; the live model is useless afterwards, so the probe comes before it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from quantlab import disk
from quantlab import weights as folders
from quantlab.calibrate.quantizers import word
from quantlab.errors import Broken, Refused


def write(model: Any, stored: torch.dtype, recipe_name: str, folder: Path) -> None:
    """Weights, scales and configuration. Codes are made in the type of the calibration, whatever is stored beside them:
    a division in bfloat16 rounds twice, and then one FP8 code in fifty is a step off."""
    from modelopt.torch.export import export_hf_checkpoint

    used = next(model.parameters()).dtype
    save = model.save_pretrained

    def save_as_stored(into: Path, state_dict: dict[str, torch.Tensor], **options: Any) -> None:
        save(into, state_dict={name: _stored(name, each, stored) for name, each in state_dict.items()}, **options)

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
