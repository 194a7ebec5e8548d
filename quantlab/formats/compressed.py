"""compressed-tensors' "pack-quantized" W4A16: what vLLM and transformers read.

    <layer>.weight_packed   int32 [outputs, inputs / 8]: u = code + 8, eight neighbours along the inputs, straight order
    <layer>.weight_scale    [outputs, inputs / group], the very layout of ModelOpt
    <layer>.weight_shape    int64 [2]: outputs, inputs

The scales stay float32, as ModelOpt wrote them, so nothing is lost in the file; vLLM rounds them to the type it
computes in when it loads (2^-9 in bfloat16, 2^-11 in float16). There is no place for a `pre_quant_scale`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from quantlab.formats import words

LAYOUT = "compressed-tensors"


def tensors(name: str, codes: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of one layer.

    Args:
        name: the layer's.
        codes: int8 [outputs, inputs], each in -8..7; inputs a multiple of eight.
        scale: float32 [outputs, inputs / group].
    """
    return {
        f"{name}.weight_packed": words.pack(codes),
        f"{name}.weight_scale": scale.contiguous(),
        f"{name}.weight_shape": torch.tensor(codes.shape, dtype=torch.int64),
    }


def weight(name: str, held: dict[str, torch.Tensor]) -> torch.Tensor:
    """float32 [outputs, inputs]: the weight that a layer's tensors stand for. The inverse of `tensors`."""
    scale = held[f"{name}.weight_scale"].float()
    codes = words.unpack(held[f"{name}.weight_packed"])
    outputs, inputs = (int(number) for number in held[f"{name}.weight_shape"])
    grouped = codes[:, :inputs].float().view(outputs, scale.shape[1], -1) * scale.unsqueeze(-1)
    return grouped.view(outputs, inputs)


def config(group_size: int, ignored: Sequence[str]) -> dict[str, Any]:
    """`quantization_config` of config.json. `ignored`: matrices that are not quantized, by name."""
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group_size,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "format": "pack-quantized"}},
        "ignore": list(ignored),
    }
