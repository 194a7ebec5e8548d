"""Tower and projector out of a checkpoint: 1.8 GB of 11B's 21 GB in 16 bit; nothing else is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from quantlab import weights
from quantlab.encoder.shape import TowerShape, tower_shape
from quantlab.encoder.towers import TorchTower
from quantlab.errors import Broken, Refused
from quantlab.formats.arrays import PLAIN, Arrays
from quantlab.formats.declared import read_quantization
from quantlab.formats.names import SIGHT


def source_of(folder: Path) -> Callable[[str], np.ndarray]:
    """A checkpoint's weights of tower and projector, float32, by name.

    Raises:
        Refused: they are quantized already.
    """
    arrays, prefix = Arrays(folder), ""
    headers = weights.headers(folder)
    seen = [name for name in headers if SIGHT.search(name)]
    if any(headers[name]["dtype"] not in PLAIN for name in seen) or any(name.endswith("_scale") for name in seen):
        said = read_quantization(folder).algorithm
        cure = "Give the original weights and say --precision here."
        raise Refused(f"its vision tower is quantized already ({said}).", place=str(folder), cure=cure)
    if seen and "model.vision_model.class_embedding" in headers:
        prefix = "model."

    def take(name: str) -> np.ndarray:
        return arrays.take(prefix + name, PLAIN).float32()

    return take


def open_tower(folder: Path, dtype: torch.dtype, device: str = "cpu") -> tuple[TorchTower, TowerShape]:
    """The tower of a checkpoint, ready to compute.

    Raises:
        BadInput, Refused: not a Mllama, or a quantized tower.
        Broken: a weight is missing, or has another shape.
    """
    from transformers import AutoConfig

    shape, source = tower_shape(weights.config(folder)), source_of(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tower = TorchTower(config.vision_config, shape.out)
    own = {name: torch.from_numpy(source(name)) for name in tower.state_dict()}
    for name, one in tower.state_dict().items():
        if own[name].shape != one.shape:
            cure = "Fetch config.json and weights again; they belong together."
            said = f"has shape {list(own[name].shape)}, and config.json says {list(one.shape)}."
            raise Broken(said, place=name, cure=cure)
    tower.load_state_dict(own)
    return tower.to(device, dtype).eval(), shape
