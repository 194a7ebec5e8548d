"""ModelOpt's unified Hugging Face export -> a transformers model that computes with the quantized numbers.

What lies in the folder (ModelOpt 0.47), beside config.json and the tokenizer:

    hf_quant_config.json     quantization: {quant_algo, kv_cache_quant_algo, group_size, exclude_modules}
    <layer>.weight           FP8: float8_e4m3fn [out, in]       INT4: uint8 [out / 2, in], see packing.py
    <layer>.weight_scale     FP8: float32, one number           INT4: float32 [out, in / group]
    <layer>.input_scale      FP8: float32, one number (calibrated largest magnitude / 448)
    <layer>.pre_quant_scale  INT4-AWQ: [in], only where it could not be folded into the layer before
                             (INT8 SmoothQuant: every layer)
    <k_proj>.k_scale, <v_proj>.v_scale    FP8 key/value cache: float32, one number a layer

declared.py reads the words, readers.py makes a layer of its tensors; here they become a model in which every tensor of
the file has its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantlab.errors import Broken, Refused
from quantlab.formats import names
from quantlab.formats.blocks import alone
from quantlab.formats.declared import Quantization, read_quantization
from quantlab.formats.foreign import coded, quantization_of
from quantlab.formats.packing import pack_codes, pack_int4, unpack_codes, unpack_int4
from quantlab.formats.readers import Reader, kinds_with
from quantlab.formats.tensors import Tensors

__all__ = [
    "Quantization",
    "open_block",
    "open_model",
    "pack_codes",
    "pack_int4",
    "read_quantization",
    "unpack_codes",
    "unpack_int4",
]


def open_model(folder: str | Path, dtype: torch.dtype, device: str | torch.device, *, native_fp8: bool) -> nn.Module:
    """The model of `folder`, computing as it is quantized, on `device`, for inference.

    Args:
        folder: config.json and safetensors (one file or shards with an index).
        dtype: arithmetic of all that is not quantized.
        native_fp8: use the FP8 matrix product of the GPU instead of emulating it.

    Raises:
        Refused: an algorithm that is not known.
        Broken: a tensor that is missing, left over, of the wrong shape or type, or a scale that is not a positive
            finite number; the text names it.
    """
    folder, quantization = Path(folder), quantization_of(folder)
    _require_known(folder, quantization)
    if quantization.algorithm is None and quantization.kv_cache is None:
        return _plain(folder, dtype).to(device).eval().requires_grad_(False)
    tensors = Tensors(folder)
    model = _empty(folder, dtype, quantization)
    reader = Reader(tensors, quantization, dtype, torch.device(device), native_fp8)
    for name, layer in _quantized_layers(model, reader):
        model.set_submodule(name, layer)
    if quantization.kv_cache is not None:
        _place_kv_scales(model, tensors, torch.device(device))
    _place_rest(model, tensors, dtype, torch.device(device))
    _none(tensors.left(), "is in the checkpoint and no layer uses it")
    return model.to(device).eval().requires_grad_(False)


def open_block(folder: str | Path, index: int, dtype: torch.dtype, device: str | torch.device) -> nn.Module:
    """As `open_model`, one decoder block of it (blocks.py). Tensors that are left over are not looked for.

    Raises:
        Refused: an algorithm or an architecture that is not known.
        Broken: a tensor of the block that is missing or does not fit.
    """
    folder, place, quantization = Path(folder), torch.device(device), read_quantization(folder)
    tensors, model = Tensors(folder), alone(_empty(folder, dtype, quantization), index, dtype, place)
    for name, layer in _quantized_layers(model, Reader(tensors, quantization, dtype, place)):
        model.set_submodule(name, layer)
    if quantization.kv_cache is not None:
        _place_kv_scales(model, tensors, place)
    _place_rest(model, tensors, dtype, place)
    return model.to(place).eval().requires_grad_(False)


def _require_known(folder: Path, quantization: Quantization) -> None:
    if quantization.unknown:
        raise Refused(
            f"quantlab does not compute {quantization.unknown}.",
            place=str(folder),
            cure="An engine that takes the folder as it is may: --engine vllm.",
        )


def _plain(folder: Path, dtype: torch.dtype) -> nn.Module:
    """16-bit weights need no help: transformers' own loader, but what it only warns about is an error here."""
    from safetensors import SafetensorError

    try:
        model, info = auto_class(folder).from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise Broken(f"cannot be loaded ({error}).", place=str(folder), cure="Fetch or export it again.") from None
    _none(sorted(info["missing_keys"]), "has no tensor in the checkpoint")
    _none(sorted(info["unexpected_keys"]), "is in the checkpoint and no layer uses it")
    assert isinstance(model, nn.Module)
    return model


def auto_class(folder: str | Path) -> Any:
    """The class of transformers that opens a folder: for a model with images the one that keeps its vision tower, which
    AutoModelForCausalLM drops without a word."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if names.sees(folder) else AutoModelForCausalLM


def _empty(folder: Path, dtype: torch.dtype, quantization: Quantization) -> nn.Module:
    """The model without weights: parameters on `meta` (no memory), buffers real (rotary frequencies are computed)."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    from quantlab.formats.layers import KV_ATTENTION

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    attention = "sdpa" if quantization.kv_cache is None else KV_ATTENTION
    with init_empty_weights(include_buffers=False):
        model = auto_class(folder).from_config(config, dtype=dtype, attn_implementation=attention)
    assert isinstance(model, nn.Module)
    return model


def _quantized_layers(model: nn.Module, reader: Reader) -> Iterator[tuple[str, nn.Module]]:
    """Name and replacement of every linear layer that the file holds quantized, one at a time."""
    if reader.quantization.algorithm is None:
        return
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    said = reader.quantization
    foreign = {n for n in linear if said.layout != "modelopt" and coded(n, said.layout, reader.tensors)}
    held = [n for n in linear if (n in foreign or f"{n}.weight" in reader.tensors) and not said.excludes(n)]
    reader = replace(reader, rescaled=kinds_with(held, reader.tensors, "pre_quant_scale"))
    for name in held:
        outputs, inputs = linear[name].weight.shape
        yield name, reader.layer(name, (outputs, inputs))


def _place_kv_scales(model: nn.Module, tensors: Tensors, device: torch.device) -> None:
    """Give every attention with keys and values its two scales."""
    for name, module in model.named_modules():
        if hasattr(module, "k_proj") and hasattr(module, "v_proj"):
            for letter in "kv":
                own = f"{name}.{letter}_proj.{letter}_scale"  # compressed-tensors leaves the layer's name out
                short = f"{name}.{letter}_scale"
                scale = tensors.scale(short if short in tensors else own, device, sizes=(1,))
                module.register_buffer(f"{letter}_scale", scale.reshape(()), persistent=False)


def _place_rest(model: nn.Module, tensors: Tensors, dtype: torch.dtype, device: torch.device) -> None:
    """Embeddings, norms and unquantized layers; then nothing may be missing."""
    for name, empty in list(model.named_parameters(remove_duplicate=False)):
        if empty.is_meta and name in tensors:
            weight = tensors.take(name, device, shape=tuple(empty.shape))
            if not weight.is_floating_point() or weight.element_size() < 2:
                raise Broken(
                    f"is {weight.dtype} in a layer that is not quantized.", place=name, cure="Export it again."
                )
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(weight.to(dtype), requires_grad=False))
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    _none(missing, "has no tensor in the checkpoint")


def _none(names: list[str], problem: str) -> None:
    if names:
        more = f" (and {len(names) - 1} more: {', '.join(names[1:4])} ...)" if len(names) > 1 else ""
        raise Broken(f"{problem}{more}.", place=names[0], cure="The checkpoint is incomplete; export it again.")
