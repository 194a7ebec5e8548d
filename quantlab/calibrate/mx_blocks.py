"""MXFP8 and MXFP4 on a CPU: ModelOpt rounds their blocks by a GPU kernel only, so its tensor classes do it here.

They are what the export packs weights with, so the calibrated model and the export round alike. Beside modelopt.py the
only file that imports modelopt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

BACKEND = "quantlab_mx"
POWERS = (8, 0)
"""Bits of exponent and mantissa of a block's scale: a power of two."""


def round_without_gpu(model: nn.Module) -> None:
    """Give every quantizer with power-of-two scales a backend that needs no GPU."""
    from modelopt.torch.quantization.nn import TensorQuantizer
    from modelopt.torch.quantization.nn.modules import tensor_quantizer as backends

    if not backends.is_registered_quant_backend(BACKEND):
        backends.register_quant_backend(BACKEND, _round)
    for module in model.modules():
        blocks = module.block_sizes if isinstance(module, TensorQuantizer) and module.is_enabled else None
        if (blocks or {}).get("scale_bits") == POWERS:
            module.backend = BACKEND


def _round(inputs: torch.Tensor, quantizer: Any) -> torch.Tensor:
    from modelopt.torch.quantization.qtensor import MXFP4QTensor, MXFP8QTensor

    kind = MXFP8QTensor if tuple(quantizer.num_bits) == (4, 3) else MXFP4QTensor
    made, scale = kind.quantize(inputs.contiguous(), None)
    back: torch.Tensor = made.dequantize(inputs.dtype, scale=scale, block_sizes=quantizer.block_sizes)
    return back.reshape(inputs.shape)
