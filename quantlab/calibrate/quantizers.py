"""ModelOpt's quantizers in a live model: put in, looked at, and their scales brought into the export's state.

What ModelOpt does silently, and what is done about it here:

* After AWQ each of q, k, v (and gate, up) has its own input scale; the export averages them and rounds the weights
  again (NVFP4: one common range), so it is another model than the calibrated one.
  `requantize_resmooth_fused_llm_layers` does that to the live model first; from then on both are the same.
* A quantizer that never saw data has no `amax` and is exported without a scale: checked before the export.
* NVFP4's blocks are rounded by a GPU kernel. On a CPU ModelOpt's tensor class does it, as a quantizer's backend (MX:
  mx_blocks.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from quantlab.calibrate import mx_blocks
from quantlab.errors import Broken, Refused

BLOCKS = "quantlab_nvfp4"


def insert(model: nn.Module, config: dict[str, Any]) -> tuple[str, ...]:
    """Put quantizers in, without calibrating; returns the names of the layers whose weights they quantize."""
    import modelopt.torch.quantization as mtq

    name = type(model).__name__
    cure = "Use bf16 for it, or a model of the Llama family."
    try:
        mtq.quantize(model, config | {"algorithm": None})
    except (RuntimeError, NotImplementedError, KeyError, AttributeError) as error:
        first = str(error).partition("\n")[0]
        raise Refused(f"ModelOpt cannot quantize it: {first}", place=name, cure=cure) from error
    layers = tuple(owner.removesuffix(".weight_quantizer") for owner in enabled(model, "weight_quantizer"))
    if not layers:
        raise Refused("ModelOpt finds no layer to quantize in it.", place=name, cure=cure)
    for layer in layers:
        _check_group(layer, model.get_submodule(layer))
    if next(model.parameters()).device.type == "cpu":
        round_blocks_without_gpu(model)
        mx_blocks.round_without_gpu(model)
    return layers


def round_blocks_without_gpu(model: nn.Module) -> None:
    """Give NVFP4's quantizers a backend that needs no GPU."""
    from modelopt.torch.quantization.nn.modules import tensor_quantizer as backends

    if not backends.is_registered_quant_backend(BLOCKS):
        backends.register_quant_backend(BLOCKS, _nvfp4)
    for quantizer in in_blocks(model):
        quantizer.backend = BLOCKS


def in_blocks(model: nn.Module) -> Iterator[Any]:
    """NVFP4's quantizers."""
    for name in enabled(model):
        quantizer: Any = model.get_submodule(name)
        if (getattr(quantizer, "block_sizes", None) or {}).get("scale_bits") == (4, 3):
            yield quantizer


def _nvfp4(inputs: torch.Tensor, quantizer: Any) -> torch.Tensor:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    second = quantizer._get_amax(inputs).float() / (6 * 448)
    made, scale, _ = NVFP4QTensor.quantize(inputs, quantizer.block_sizes[-1], None, second)
    blocks = quantizer.block_sizes
    back: torch.Tensor = made.dequantize(inputs.dtype, scale=scale, double_scale=second, block_sizes=blocks)
    return back.reshape(inputs.shape)


def _check_group(name: str, layer: nn.Module) -> None:
    blocks = getattr(layer.weight_quantizer, "block_sizes", None) or {}
    size, width = blocks.get(-1), layer.weight.shape[-1]
    if size and int(width) % size:
        raise Refused(
            f"its input width {width} is no multiple of the group size {size}, and the export cannot pack that.",
            place=name,
            cure="Write group_size: auto in the recipe.",
        )


def enabled(model: nn.Module, suffix: str = "") -> Iterator[str]:
    """Names of enabled quantizers. A W4A8 weight has two in a row; the row's own name counts."""
    from modelopt.torch.quantization.nn import SequentialQuantizer, TensorQuantizer

    for name, module in model.named_modules():
        if isinstance(module, TensorQuantizer | SequentialQuantizer) and name.endswith(suffix) and module.is_enabled:
            yield name


def check_saw_data(model: nn.Module) -> None:
    """Every enabled static quantizer has a finite, positive range."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    bad = []
    for name in enabled(model):
        quantizer = model.get_submodule(name)
        if isinstance(quantizer, TensorQuantizer) and not _is_dynamic(quantizer):
            amax = quantizer.amax
            if amax is None or not bool((torch.isfinite(amax) & (amax >= 0)).all()) or not bool((amax > 0).any()):
                bad.append(name)
    if bad:
        cure = "Calibrate with data that reach these layers, or switch them off with an override."
        raise Broken(
            f"{len(bad)} quantizers saw no usable data, e.g. {', '.join(bad[:3])}.", place="calibrate", cure=cure
        )


def _is_dynamic(quantizer: Any) -> bool:
    blocks = quantizer.block_sizes or {}
    return bool(getattr(quantizer, "_dynamic", False)) or blocks.get("type") == "dynamic"


def resmooth(model: nn.Module, method: str) -> list[str]:
    if not (method.startswith("awq") or method == "smoothquant" or any(in_blocks(model))):
        return []
    from modelopt.torch.export.unified_export_hf import requantize_resmooth_fused_llm_layers

    requantize_resmooth_fused_llm_layers(model)
    return ["layers that share an input were given one common scale before the probe, as the export does"]


def as_stored(model: nn.Module, stored: torch.dtype) -> list[str]:
    """Round to the stored type what the export keeps in it; quantized weights are rounded to their own codes."""
    used = next(model.parameters()).dtype
    if stored is used:
        return []
    with torch.no_grad():
        for tensor in _sixteen_bit(model):
            tensor.copy_(tensor.to(stored))
    return [f"calibrated in {word(used)}, stored in {word(stored)}"]


def _sixteen_bit(model: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and scales that are not replaced by codes."""
    codes = {name.removesuffix("_quantizer") for name in enabled(model, "weight_quantizer")}
    yield from (parameter for name, parameter in model.named_parameters() if name not in codes)
    yield from (buffer for name, buffer in model.named_buffers() if name.endswith("_pre_quant_scale"))


def word(dtype: torch.dtype) -> str:
    """ "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def activations(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and quantizers of activations: layers' inputs, queries, keys and values; switched on or not."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    for name, module in model.named_modules():
        if isinstance(module, TensorQuantizer) and not any(
            part.endswith("weight_quantizer") for part in name.split(".")
        ):
            yield name, module
