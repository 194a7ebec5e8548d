"""Microscaling formats (OCP MX): blocks of 32 numbers along the input share a scale that is a power of two.

    <layer>.weight        MXFP8: float8_e4m3fn [out, in]     MXFP4: uint8 [out, in / 2], packed as NVFP4's (fp4.py)
    <layer>.weight_scale  uint8 [out, in / 32]: exponent + 127 (E8M0), so 127 means 1

    weight = code * 2 ^ (weight_scale - 127)

Weights and input are rounded alike, the input while serving, so nothing is calibrated:

    s = 2 ^ ceil(log2(largest of the block / end)),   end = 448 (E4M3) or 6 (E2M1)

Rounding the exponent up wastes up to half of the codes' range and never clips. A code times a power of two is exact in
bfloat16 and float32; float16 has too few exponents, so there the product is computed in float32. Blackwell has the
kernels; here it is emulated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from quantlab.formats.fp4 import VALUES, round_e2m1
from quantlab.formats.layers import E4M3_MAX, QuantizedLinear

BLOCK = 32
BIAS = 127


def round_e4m3(x: torch.Tensor) -> torch.Tensor:
    """To the nearest E4M3 number, saturating; float32."""
    return x.float().clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()


ROUNDING: dict[float, Callable[[torch.Tensor], torch.Tensor]] = {E4M3_MAX: round_e4m3, VALUES[-1]: round_e2m1}
"""Largest magnitude of a code -> how numbers become codes."""


def powers(x: torch.Tensor, end: float) -> torch.Tensor:
    """float32 [..., n / 32]: the scales of the blocks of `x` [..., n], each a power of two."""
    largest = x.float().unflatten(-1, (-1, BLOCK)).abs().amax(-1)
    exponent = torch.where(largest > 0, (largest / end).log2(), torch.full_like(largest, -BIAS))
    return exponent.ceil().clamp(-BIAS, BIAS).exp2()


def spread(scales: torch.Tensor) -> torch.Tensor:
    """[..., n / 32] -> [..., n]: each scale for the 32 numbers of its block."""
    return scales.repeat_interleave(BLOCK, -1)


def unit(exponents: torch.Tensor) -> torch.Tensor:
    """uint8 E8M0 -> float32 powers of two."""
    return (exponents.float() - BIAS).exp2()


class MxLinear(QuantizedLinear):
    """MXFP8 or MXFP4, weights and activations. Emulated.

    Args:
        codes: [outputs, inputs], what the codes stand for in units of their scales, in any type.
        exponents: uint8 [outputs, inputs / 32].
        end: largest magnitude of a code: 448 or 6.
        bias: [outputs] or None.
        dtype: type of what comes out.
    """

    def __init__(
        self, codes: torch.Tensor, exponents: torch.Tensor, end: float, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> None:
        super().__init__(tuple(codes.shape), dtype, bias)
        self.end = end
        inner = torch.float32 if dtype is torch.float16 else dtype
        self.register_buffer("weight", (codes.float() * spread(unit(exponents))).to(inner))

    def dense(self) -> torch.Tensor:
        weight: torch.Tensor = self.weight.float()
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scales = spread(powers(x, self.end))
        codes = ROUNDING[self.end](x.float() / scales) * scales
        return self.biased(functional.linear(codes.to(self.weight.dtype), self.weight).to(self.dtype))
