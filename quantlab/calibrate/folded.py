"""Rounded weights written back in the source's type: how a format without an export is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from quantlab.calibrate import source
from quantlab.records import CalibrateJob


def write(spec: CalibrateJob, live: nn.Module, layers: Sequence[str], folder: Path) -> None:
    """The rounded weights in a plain checkpoint of the source's type: a simulation for formats without an export."""
    folded = live.state_dict()
    for name in layers:
        layer: Any = live.get_submodule(name)
        weight = layer.weight_quantizer(layer.weight)
        scale = getattr(layer.input_quantizer, "_pre_quant_scale", None)
        folded[f"{name}.weight"] = weight if scale is None else weight * scale
    plain: Any = source.load(msgspec.structs.replace(spec, device="cpu", gpus=0))  # GPUs have no room for it twice
    stored = source.stored_type(spec.weights.path)
    plain.load_state_dict({name: folded[name] for name in plain.state_dict()})
    plain.to(stored).save_pretrained(folder)
