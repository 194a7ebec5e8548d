"""Codes, blocks and narrow numbers in numpy: what an ONNX weight is made of."""

from __future__ import annotations

import numpy as np

from quantlab.errors import Refused

BLOCKS = (256, 128, 64, 32, 16)
"""Block sizes that MatMulNBits has kernels for."""


def unpack_modelopt(packed: np.ndarray) -> np.ndarray:
    """ModelOpt's uint8 [outputs / 2, inputs] -> uint8 [outputs, inputs], each code + 8 (see packing.py)."""
    codes = np.empty((2 * packed.shape[0], packed.shape[1]), dtype=np.uint8)
    # Two's complement of four bits, and eight more, is the same as the highest bit turned.
    codes[0::2], codes[1::2] = (packed & 0xF) ^ 8, (packed >> 4) ^ 8
    return codes


def round_to(bits: int, weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Round to nearest with one scale a block; a block's largest magnitude gets the lowest code, so that all are used.

    Args:
        bits: of a code, 4 or 8.
        weight: float32 [outputs, inputs]; `block` divides inputs.

    Returns:
        (uint8 [outputs, inputs], each code + 2^(bits - 1); float32 [outputs, inputs / block], of either sign).
    """
    half = 2 ** (bits - 1)
    grouped = weight.reshape(weight.shape[0], -1, block)
    largest = np.take_along_axis(grouped, np.abs(grouped).argmax(-1, keepdims=True), -1)[..., 0]
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(-half))
    codes = np.rint(grouped / scale[..., None]).clip(-half, half - 1) + half
    return codes.astype(np.uint8).reshape(weight.shape), scale


def block_of(group: int, layer: str) -> int:
    """Largest block of MatMulNBits that divides `group`; its scales are repeated, which changes no number."""
    for block in BLOCKS:
        if group % block == 0:
            return block
    raise Refused(
        f"int4 in groups of {group}, and ONNX Runtime has kernels for multiples of {BLOCKS[-1]}.",
        place=layer,
        cure="Use engine torch, or another group size.",
    )


def narrowed(values: np.ndarray, kind: str) -> np.ndarray:
    """float32 -> the bits of "F32", "F16" or "BF16", rounded to nearest, ties to even."""
    if kind == "F32":
        return values.astype(np.float32)
    if kind == "F16":
        return values.astype(np.float16)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    upper: np.ndarray = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return upper
