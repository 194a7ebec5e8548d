"""One quantized linear layer out of a checkpoint's tensors, for every algorithm that is known here.

What cannot be decided from one layer is decided from its siblings: if some o_proj has a pre_quant_scale and another has
none, a tensor was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from quantlab.errors import Broken
from quantlab.formats.declared import Quantization
from quantlab.formats.foreign import quantization_of
from quantlab.formats.names import kind
from quantlab.formats.packing import unpack_int4
from quantlab.formats.tensors import Tensors
from quantlab.records import FORMATS

if TYPE_CHECKING:
    from quantlab.formats.layers import QuantizedLinear

Shape = tuple[int, int]
"""Outputs and inputs."""


@dataclass(frozen=True)
class Reader:
    """Makes layers out of the tensors of one checkpoint."""

    tensors: Tensors
    quantization: Quantization
    dtype: torch.dtype
    """Of what comes out of a layer, and of all that is not quantized in it."""
    device: torch.device
    native_fp8: bool = False
    """Use the FP8 matrix product of the GPU instead of emulating it."""
    rescaled: frozenset[str] = frozenset()
    """Kinds of layers (o_proj, ...) that have a pre_quant_scale."""

    def layer(self, name: str, shape: Shape) -> QuantizedLinear:
        """The layer `name`, computing as it is quantized; its tensors are taken.

        Raises:
            Broken: a tensor that is missing or does not fit; the text names it.
        """
        from quantlab.formats.foreign_layers import FOREIGN

        own = self.quantization.of(name)
        read = FOREIGN.get(str(own.algorithm)) or READERS[str(own.algorithm)]
        return read(replace(self, quantization=own), name, shape)


def reader_of(folder: Path, names: Sequence[str]) -> Reader:
    """A reader for the layers `names` of a checkpoint, one at a time, in float32 on the CPU.

    Raises:
        Refused, Broken: as `quantization_of` and `Tensors`.
    """
    tensors = Tensors(folder)
    rescaled = kinds_with(names, tensors, "pre_quant_scale")
    return Reader(tensors, quantization_of(folder), torch.float32, torch.device("cpu"), rescaled=rescaled)


def kinds_with(names: Sequence[str], tensors: Tensors, part: str) -> frozenset[str]:
    """Kinds of the layers `names` of which at least one has the tensor `part`."""
    return frozenset(kind(name) for name in names if f"{name}.{part}" in tensors)


def _fp8(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
    from quantlab.formats.layers import Fp8Linear

    tensors, device = reader.tensors, reader.device
    codes = tensors.take(f"{name}.weight", device, dtype=torch.float8_e4m3fn, shape=shape)
    weight_scale = tensors.scale(f"{name}.weight_scale", device, sizes=(1, shape[0]))
    input_scale = tensors.scale(f"{name}.input_scale", device, sizes=(1,))
    bias = tensors.optional(f"{name}.bias", device)
    return Fp8Linear(codes, weight_scale, input_scale, bias, reader.dtype, native=reader.native_fp8)


def _fp8_rowwise(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
    from quantlab.formats.eight_bit import Fp8RowLinear

    tensors, device = reader.tensors, reader.device
    codes = tensors.take(f"{name}.weight", device, dtype=torch.float8_e4m3fn, shape=shape)
    scale = tensors.scale(f"{name}.weight_scale", device, sizes=(shape[0],))
    return Fp8RowLinear(codes, scale, tensors.optional(f"{name}.bias", device), reader.dtype)


def _int8(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
    from quantlab.formats.eight_bit import Int8Linear

    tensors, device = reader.tensors, reader.device
    codes = tensors.take(f"{name}.weight", device, dtype=torch.int8, shape=shape)
    scale = tensors.scale(f"{name}.weight_scale", device, sizes=(shape[0],))
    input_scale = tensors.scale(f"{name}.input_scale", device, sizes=(1,))
    bias = tensors.optional(f"{name}.bias", device)
    return Int8Linear(codes, scale, input_scale, _rescale(reader, name, shape[1]), bias, reader.dtype)


def _int4(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
    from quantlab.formats.layers import Int4Linear

    weight, bias = _grouped(reader, name, shape), reader.tensors.optional(f"{name}.bias", reader.device)
    return Int4Linear(weight, _rescale(reader, name, shape[1]), bias, reader.dtype)


def _w4a8(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
    from quantlab.formats.eight_bit import W4A8Linear

    second, input_scale = _two_scales(reader, name)
    weight, bias = _grouped(reader, name, shape), reader.tensors.optional(f"{name}.bias", reader.device)
    return W4A8Linear(weight, second, input_scale, _rescale(reader, name, shape[1]), bias, reader.dtype)


def _nvfp4(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
    from quantlab.formats.fp4 import BLOCK, Nvfp4Linear

    tensors, device = reader.tensors, reader.device
    packed = tensors.take(f"{name}.weight", device, dtype=torch.uint8, shape=(shape[0], shape[1] // 2))
    scale = tensors.scale(f"{name}.weight_scale", device)
    _require_blocks(name, scale, shape, BLOCK)
    second, input_scale = _two_scales(reader, name)
    bias = tensors.optional(f"{name}.bias", device)
    return Nvfp4Linear(packed, scale, second, input_scale, _rescale(reader, name, shape[1]), bias, reader.dtype)


def _mxfp8(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
    codes = reader.tensors.take(f"{name}.weight", reader.device, dtype=torch.float8_e4m3fn, shape=shape)
    return _mx(reader, name, codes, FORMATS["mxfp8"].end)


def _mxfp4(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
    from quantlab.formats.fp4 import unpack_e2m1

    packed = (shape[0], shape[1] // 2)
    codes = reader.tensors.take(f"{name}.weight", reader.device, dtype=torch.uint8, shape=packed)
    return _mx(reader, name, unpack_e2m1(codes), FORMATS["mxfp4"].end)


def _mx(reader: Reader, name: str, codes: torch.Tensor, end: float) -> QuantizedLinear:
    from quantlab.formats.mx import BLOCK, MxLinear

    shape = (codes.shape[0], codes.shape[1])
    exponents = reader.tensors.take(f"{name}.weight_scale", reader.device, dtype=torch.uint8)
    if exponents.numel() == codes.numel() // BLOCK:
        exponents = exponents.reshape(shape[0], -1)
    _require_blocks(name, exponents, shape, BLOCK)
    return MxLinear(codes, exponents, end, reader.tensors.optional(f"{name}.bias", reader.device), reader.dtype)


def _require_blocks(name: str, scale: torch.Tensor, shape: Shape, block: int) -> None:
    if shape[1] % block or tuple(scale.shape) != (shape[0], shape[1] // block):
        raise Broken(
            f"{list(scale.shape)} does not fit a weight of {list(shape)} in blocks of {block}.",
            place=f"{name}.weight_scale",
            cure="Export it again.",
        )


def _int8_weights(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
    """Weights alone: expanded once, as int4's are."""
    from quantlab.formats.layers import Int4Linear

    tensors, device = reader.tensors, reader.device
    codes = tensors.take(f"{name}.weight", device, dtype=torch.int8, shape=shape)
    scale = tensors.scale(f"{name}.weight_scale", device, sizes=(shape[0],))
    weight = codes.float() * scale.float().reshape(-1, 1)
    return Int4Linear(weight, None, tensors.optional(f"{name}.bias", device), reader.dtype)


def _two_scales(reader: Reader, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale of all scales of the weight, and that of the input."""
    parts = ("weight_scale_2", "input_scale")
    second, first = (reader.tensors.scale(f"{name}.{part}", reader.device, sizes=(1,)) for part in parts)
    return second, first


def _rescale(reader: Reader, name: str, inputs: int) -> torch.Tensor | None:
    if kind(name) not in reader.rescaled:
        return None
    return reader.tensors.scale(f"{name}.pre_quant_scale", reader.device, sizes=(inputs,))


def _grouped(reader: Reader, name: str, shape: Shape) -> torch.Tensor:
    """float32 [outputs, inputs]: int4 codes times the scales of their groups."""
    outputs, inputs = shape
    tensors, device, group_size = reader.tensors, reader.device, reader.quantization.group_size
    packed = tensors.take(f"{name}.weight", device, dtype=torch.uint8, shape=(outputs // 2, inputs))
    scale = tensors.scale(f"{name}.weight_scale", device)
    groups = scale.shape[-1]
    if tuple(scale.shape) != (outputs, groups) or inputs % groups or (group_size or 0) not in (0, inputs // groups):
        raise Broken(
            f"{list(scale.shape)} does not fit a weight of {[outputs, inputs]} in groups of {group_size}.",
            place=f"{name}.weight_scale",
            cure="Export it again.",
        )
    return unpack_int4(packed, scale)


READERS: dict[str, Callable[[Reader, str, Shape], QuantizedLinear]] = {
    "FP8": _fp8,
    "FP8_PER_CHANNEL_PER_TOKEN": _fp8_rowwise,
    "W8A8_SQ_PER_CHANNEL": _int8,
    "W8A16": _int8_weights,
    "W4A8_AWQ": _w4a8,
    "NVFP4": _nvfp4,
    "NVFP4_AWQ": _nvfp4,
    "MXFP8": _mxfp8,
    "mxfp4": _mxfp4,
    "W4A16_AWQ": _int4,
    "W4A16": _int4,
}
"""quant_algo -> how a layer is read."""
