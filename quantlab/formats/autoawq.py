"""AutoAWQ's "gemm" layout: what vLLM, transformers and the ONNX Runtime GenAI builder read.

    <layer>.qweight   int32 [inputs, outputs / 8]: u = code + 8, transposed; eight neighbours along the outputs, in the
                      order 0 2 4 6 1 3 5 7 of AutoAWQ's first kernel
    <layer>.qzeros    int32 [inputs / group, outputs / 8]: the zero point 8 everywhere, because ModelOpt has none
    <layer>.scales    float16 [inputs / group, outputs]

The scales are float16 by convention, so each is rounded by up to 2^-11. There is no place for a `pre_quant_scale`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from quantlab.errors import Refused
from quantlab.formats import words

LAYOUT = "autoawq"
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def tensors(name: str, codes: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of one layer.

    Args:
        name: the layer's.
        codes: int8 [outputs, inputs], each in -8..7; outputs a multiple of eight.
        scale: float32 [outputs, inputs / group].

    Raises:
        Refused: a scale that is too large for float16.
    """
    scales = scale.T.contiguous().half()
    if not bool(torch.isfinite(scales).all()):
        raise Refused(
            f"a scale of {float(scale.max()):g} does not fit into float16.",
            place=f"{name}.weight_scale",
            cure="Take the layout compressed-tensors.",
        )
    zeros = torch.zeros(scale.shape[1], codes.shape[0], dtype=torch.int8)  # a code of 0 is stored as 8
    return {
        f"{name}.qweight": words.pack(codes.T.contiguous(), ORDER),
        f"{name}.qzeros": words.pack(zeros, ORDER),
        f"{name}.scales": scales,
    }


def weight(name: str, held: dict[str, torch.Tensor]) -> torch.Tensor:
    """float32 [outputs, inputs]: the weight that a layer's tensors stand for. The inverse of `tensors`."""
    codes, zeros = (words.unpack(held[f"{name}.{part}"], ORDER).float() for part in ("qweight", "qzeros"))
    scales = held[f"{name}.scales"].float()
    grouped = (codes.view(scales.shape[0], -1, codes.shape[1]) - zeros.unsqueeze(1)) * scales.unsqueeze(1)
    return grouped.flatten(0, 1).T.contiguous()


def config(group_size: int, ignored: Sequence[str]) -> dict[str, Any]:
    """`quantization_config` of config.json. `ignored`: matrices that are not quantized, by name."""
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "modules_to_not_convert": list(ignored),
    }
