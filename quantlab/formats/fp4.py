"""NVFP4: 4-bit floating-point codes in blocks of 16, each block with an E4M3 scale, all blocks with one float32 scale.

    <layer>.weight          uint8 [out, in / 2]: low nibble = code of the even input, high nibble = that of the odd one
    code                    sign and E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6
    <layer>.weight_scale    float8_e4m3fn [out, in / 16]
    <layer>.weight_scale_2  float32, one number (largest magnitude of the weight / 6 / 448)
    <layer>.input_scale     float32, one number (calibrated largest magnitude of the input / 6 / 448)

    weight = code * weight_scale * weight_scale_2

The input is rounded in blocks of 16 along its width, each with a scale found while serving:

    s = round_e4m3(largest of the block / 6 / input_scale),   x = code * s * input_scale

A code times an E4M3 number has at most six bits of mantissa, so both factors of the product are exact in bfloat16 and
float16 and only the sum is rounded. Blackwell has the kernels; here it is emulated.

Neighbours along the inputs share a byte here, along the outputs in ModelOpt's int4 (packing.py).
"""

from __future__ import annotations

import torch
from torch.nn import functional

from quantlab.formats.layers import E4M3_MAX, QuantizedLinear

BLOCK = 16
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BOUNDS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""Halfway between two values; a tie goes to the even code."""
SMALLEST = 2.0**-9
"""Least scale of a block: the smallest positive E4M3 number."""


def unpack_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., n / 2] -> float32 [..., n], each one of VALUES or its negative."""
    nibbles = torch.stack((packed & 0xF, packed >> 4), -1).flatten(-2)
    table = torch.tensor(VALUES, device=packed.device)
    magnitude = table[(nibbles & 7).long()]
    return torch.where(nibbles >= 8, -magnitude, magnitude)


def round_e2m1(x: torch.Tensor) -> torch.Tensor:
    """To the nearest of VALUES with its sign, ties to the even code, saturating at 6; float32."""
    size = x.float().abs()
    bounds = torch.tensor(BOUNDS, device=x.device)
    place = torch.bucketize(size, bounds)
    tie = size == bounds[place.clamp(max=len(BOUNDS) - 1)]
    place = place + (tie & (place % 2 == 1))
    return torch.tensor(VALUES, device=x.device)[place] * x.float().sign()


def block_scales(x: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """float32 [..., n / 16]: the E4M3 scales of the blocks of `x` [..., n] in units of `second`."""
    largest = x.float().unflatten(-1, (-1, BLOCK)).abs().amax(-1)
    scale = largest / (VALUES[-1] * second)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale).clamp(SMALLEST, E4M3_MAX)
    return scale.to(torch.float8_e4m3fn).float()


def spread(scales: torch.Tensor) -> torch.Tensor:
    """[..., n / 16] -> [..., n]: each scale for the 16 numbers of its block."""
    return scales.repeat_interleave(BLOCK, -1)


class Nvfp4Linear(QuantizedLinear):
    """W4A4 with blocks of 16. Emulated.

    Args:
        packed: uint8 [outputs, inputs / 2].
        weight_scale: [outputs, inputs / 16], E4M3 numbers in any type.
        weight_scale_2: float32, one number.
        input_scale: float32, one number.
        pre_quant_scale: [inputs] or None; multiplies the input (NVFP4-AWQ).
        bias: [outputs] or None.
        dtype: type of what comes out.
    """

    def __init__(
        self,
        packed: torch.Tensor,
        weight_scale: torch.Tensor,
        weight_scale_2: torch.Tensor,
        input_scale: torch.Tensor,
        pre_quant_scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__((packed.shape[0], 2 * packed.shape[1]), dtype, bias, pre_quant_scale)
        # A code times a scale reaches 2688 and float16 ends at 65504: powers of two on both sides keep sums inside.
        self.shift = 2.0**-10 if dtype is torch.float16 else 1.0
        codes = unpack_e2m1(packed) * spread(weight_scale.float())
        self.register_buffer("codes", (codes * self.shift).to(dtype))
        self.register_buffer("weight_scale_2", weight_scale_2.float().reshape(()))
        self.register_buffer("input_scale", input_scale.float().reshape(()))

    def dense(self) -> torch.Tensor:
        return self.whole(self.codes.float() / self.shift * self.weight_scale_2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.rescaled(x)
        scales = spread(block_scales(x, self.input_scale))
        codes = round_e2m1(x.float() / (scales * self.input_scale)) * scales
        sums = functional.linear((codes * self.shift).to(self.dtype), self.codes).float() / self.shift**2
        return self.biased((sums * (self.input_scale * self.weight_scale_2)).to(self.dtype))
