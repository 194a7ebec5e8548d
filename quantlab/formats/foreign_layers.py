"""One quantized layer out of the tensors of compressed-tensors, AutoAWQ and GPTQ.

    PACKED_4, PACKED_8   compressed-tensors: codes along the inputs in int32, sign-free (code + 8, code + 128);
                         weight_zero_point likewise, packed along the outputs; weight_g_idx: input -> group
    AWQ_GEMM             autoawq.py
    GPTQ_4, GPTQ_8       codes along the inputs, transposed: qweight int32 [inputs / 8, outputs], scales
                         [groups, outputs], qzeros less one (AutoGPTQ's habit; V2: not), g_idx: input -> group
    NVFP4_PACKED         as ModelOpt's NVFP4, with the reciprocals of both global scales

All of them are weights alone, expanded once; NVFP4 rounds its inputs as ModelOpt's does. What a program leaves out when
it computes in float16 (AutoAWQ) or bfloat16 is left to the dtype of the session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from quantlab.errors import Broken
from quantlab.formats import autoawq

if TYPE_CHECKING:
    from quantlab.formats.layers import QuantizedLinear
    from quantlab.formats.readers import Reader, Shape

CPU = torch.device("cpu")


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [..., n] -> int32 [..., n * 32 / bits]: sign-free codes, the first in the lowest bits."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    # The shift of a negative word drags its sign along; the mask takes it off again.
    return ((words.to(torch.int32).unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)


def _packed(bits: int) -> Callable[[Reader, str, Shape], QuantizedLinear]:
    def read(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
        tensors, (outputs, inputs) = reader.tensors, shape
        codes = unpacked(tensors.take(f"{name}.weight_packed", CPU, dtype=torch.int32), bits)[:, :inputs]
        stated = tensors.optional(f"{name}.weight_shape", CPU)
        if codes.shape != (outputs, inputs) or (stated is not None and stated.tolist() != [outputs, inputs]):
            raise Broken(
                f"{list(codes.shape)} where {[outputs, inputs]} is needed.", place=f"{name}.weight_packed", cure=AGAIN
            )
        scale = tensors.scale(f"{name}.weight_scale", CPU).reshape(outputs, -1)
        zeros = tensors.optional(f"{name}.weight_zero_point", CPU)
        zero = torch.full_like(scale, 2 ** (bits - 1))
        if zeros is not None:
            zero = unpacked(zeros.T.contiguous(), bits).T[:outputs].float().reshape(scale.shape)
        places = _groups(reader, f"{name}.weight_g_idx", inputs, scale.shape[1])
        return _dense(reader, name, (codes.float() - zero[:, places]) * scale[:, places])

    return read


def _gptq(bits: int, less: int) -> Callable[[Reader, str, Shape], QuantizedLinear]:
    def read(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
        tensors, (outputs, inputs) = reader.tensors, shape
        packed = (inputs * bits // 32, outputs)
        words = tensors.take(f"{name}.qweight", CPU, dtype=torch.int32, shape=packed)
        codes = unpacked(words.T.contiguous(), bits)
        scale = tensors.scale(f"{name}.scales", CPU).T
        if scale.shape[0] != outputs:
            raise Broken(f"{list(scale.T.shape)} for {outputs} outputs.", place=f"{name}.scales", cure=AGAIN)
        zero = unpacked(tensors.take(f"{name}.qzeros", CPU, dtype=torch.int32), bits).T[:outputs] + less
        places = _groups(reader, f"{name}.g_idx", inputs, scale.shape[1])
        return _dense(reader, name, (codes.float() - zero.float()[:, places]) * scale[:, places])

    return read


def _awq(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
    parts = {f"{name}.{part}": torch.int32 for part in ("qweight", "qzeros")}
    held = {part: reader.tensors.take(part, CPU, dtype=kind) for part, kind in parts.items()}
    held[f"{name}.scales"] = reader.tensors.scale(f"{name}.scales", CPU)
    groups, outputs = held[f"{name}.scales"].shape[0], 8 * held[f"{name}.qweight"].shape[1]
    if (outputs, held[f"{name}.qweight"].shape[0]) != shape or shape[1] % groups:
        raise Broken(f"does not fit a weight of {list(shape)}.", place=f"{name}.qweight", cure=AGAIN)
    _require_group(reader, f"{name}.scales", shape[1] // groups)
    return _dense(reader, name, autoawq.weight(name, held))


def _nvfp4(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
    from quantlab.formats.fp4 import BLOCK, Nvfp4Linear

    tensors, device = reader.tensors, reader.device
    packed = tensors.take(f"{name}.weight_packed", device, dtype=torch.uint8, shape=(shape[0], shape[1] // 2))
    scale = tensors.scale(f"{name}.weight_scale", device)
    if tuple(scale.shape) != (shape[0], shape[1] // BLOCK):
        raise Broken(f"{list(scale.shape)} for blocks of {BLOCK}.", place=f"{name}.weight_scale", cure=AGAIN)
    parts = ("weight_global_scale", "input_global_scale")
    second, first = (1 / tensors.scale(f"{name}.{part}", device, sizes=(1,)) for part in parts)
    bias = tensors.optional(f"{name}.bias", device)
    return Nvfp4Linear(packed, scale, second, first, None, bias, reader.dtype)


def _fp8_token(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
    """One scale for the weight, and one a token found while serving."""
    from quantlab.formats.eight_bit import Fp8RowLinear

    codes = reader.tensors.take(f"{name}.weight", reader.device, dtype=torch.float8_e4m3fn, shape=shape)
    scale = reader.tensors.scale(f"{name}.weight_scale", reader.device, sizes=(1,))
    return Fp8RowLinear(codes, scale, reader.tensors.optional(f"{name}.bias", reader.device), reader.dtype)


def _int8_token(reader: Reader, name: str, shape: Shape) -> QuantizedLinear:
    from quantlab.formats.eight_bit import Int8RowLinear

    codes = reader.tensors.take(f"{name}.weight", reader.device, dtype=torch.int8, shape=shape)
    scale = reader.tensors.scale(f"{name}.weight_scale", reader.device, sizes=(shape[0],))
    return Int8RowLinear(codes, scale, reader.tensors.optional(f"{name}.bias", reader.device), reader.dtype)


def _groups(reader: Reader, name: str, inputs: int, groups: int) -> torch.Tensor:
    """int64 [inputs]: the group of each input, as the file says or in the order of the inputs."""
    stated = reader.tensors.optional(name, CPU)
    if stated is not None and bool((stated >= 0).all()):
        if stated.shape != (inputs,) or int(stated.max()) >= groups:
            raise Broken(f"does not name a group of {groups} for each of {inputs} inputs.", place=name, cure=AGAIN)
        return stated.long()
    if inputs % groups:
        raise Broken(f"{groups} groups do not divide {inputs} inputs.", place=name, cure=AGAIN)
    _require_group(reader, name, inputs // groups)
    return torch.arange(inputs) // (inputs // groups)


def _require_group(reader: Reader, name: str, size: int) -> None:
    said = reader.quantization.group_size
    if said is not None and said > 0 and said != size:
        raise Broken(f"groups of {size} where its config says {said}.", place=name, cure=AGAIN)


def _dense(reader: Reader, name: str, weight: torch.Tensor) -> QuantizedLinear:
    from quantlab.formats.layers import Int4Linear

    bias = reader.tensors.optional(f"{name}.bias", reader.device)
    return Int4Linear(weight.to(reader.device), None, bias, reader.dtype)


AGAIN = "Fetch it again, or ask whoever published it."
FOREIGN: dict[str, Callable[[Reader, str, Shape], QuantizedLinear]] = {
    "PACKED_4": _packed(4),
    "PACKED_8": _packed(8),
    "AWQ_GEMM": _awq,
    "GPTQ_4": _gptq(4, 1),
    "GPTQ_8": _gptq(8, 1),
    "GPTQ_V2_4": _gptq(4, 0),
    "GPTQ_V2_8": _gptq(8, 0),
    "NVFP4_PACKED": _nvfp4,
    "FP8_PER_TENSOR_PER_TOKEN": _fp8_token,
    "INT8_PER_CHANNEL_PER_TOKEN": _int8_token,
}
"""Key of schemes.py -> how a layer is read; what is not here is read as ModelOpt's (readers.py)."""
