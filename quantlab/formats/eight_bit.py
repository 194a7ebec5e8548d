"""More linear layers with 8-bit activations: FP8 with a scale a token, INT8 after SmoothQuant, FP8 over int4 weights.

FP8 row-wise. One weight scale an output, and an input scale of its own for every token, its largest magnitude / 448,
found while serving: nothing is calibrated, and one token with huge values does not cost the others their codes.

INT8 (W8A8, SmoothQuant). As FP8, with integer codes, one weight scale an output, and an input that is first multiplied
by `pre_quant_scale`, which moved outliers from the input into the weights.

W4A8. Int4 weights in groups, then rounded once more to E4M3 with `weight_scale_2`, so that the product runs in FP8.

All are emulated: the codes are the format's, and exact in every 16-bit type; the product is computed in `dtype`.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from quantlab.formats.layers import E4M3_MAX, Fp8Linear, QuantizedLinear, to_e4m3


class CodesLinear(QuantizedLinear):
    """8-bit codes with a weight scale an output, multiplied in `dtype`.

    Args:
        codes: [outputs, inputs] of 8 bits, exact in every 16-bit type.
        weight_scale: float32 [outputs].
        bias, pre_quant_scale, dtype: as in QuantizedLinear.
    """

    codes: torch.Tensor
    weight_scale: torch.Tensor

    def __init__(
        self,
        codes: torch.Tensor,
        weight_scale: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        pre_quant_scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__(tuple(codes.shape), dtype, bias, pre_quant_scale)
        self.shift = 2.0**-8 if dtype is torch.float16 else 1.0  # as in Fp8Linear: float16 ends at 65504
        self.register_buffer("codes", codes.to(dtype) * self.shift)
        self.register_buffer("weight_scale", weight_scale.float().reshape(-1))

    def dense(self) -> torch.Tensor:
        return self.whole(self.codes.float() / self.shift * self.weight_scale.unsqueeze(1))

    def sums(self, codes: torch.Tensor) -> torch.Tensor:
        """float32 products of input codes, which are overwritten, with those of the weight."""
        return functional.linear(codes.mul_(self.shift), self.codes).float() / self.shift**2


class Fp8RowLinear(CodesLinear):
    """W8A8 with a weight scale an output and an input scale a token. Emulated.

    Args:
        codes: float8_e4m3fn [outputs, inputs].
        weight_scale: float32 [outputs].
        bias: [outputs] or None.
        dtype: type of what comes out.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        largest = x.float().abs().amax(-1, keepdim=True)
        largest = torch.where(largest == 0, torch.ones_like(largest), largest)
        codes = to_e4m3(x, E4M3_MAX / largest).to(self.dtype)
        return self.biased((self.sums(codes) * self.weight_scale * (largest / E4M3_MAX)).to(self.dtype))


class Int8Linear(CodesLinear):
    """W8A8 in integers with a static input scale, as SmoothQuant prepares it. Emulated.

    Args:
        codes: int8 [outputs, inputs].
        weight_scale: float32 [outputs].
        input_scale: float32, one number.
        pre_quant_scale: [inputs] or None; multiplies the input.
        bias: [outputs] or None.
        dtype: type of what comes out. An int8 code is exact in all of them.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        weight_scale: torch.Tensor,
        input_scale: torch.Tensor,
        pre_quant_scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(codes, weight_scale, bias, dtype, pre_quant_scale)
        self.register_buffer("input_scale", input_scale.float().reshape(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = (self.rescaled(x).float() / self.input_scale).round_().clamp_(-128, 127).to(self.dtype)
        return self.biased((self.sums(codes) * (self.weight_scale * self.input_scale)).to(self.dtype))


class Int8RowLinear(CodesLinear):
    """W8A8 in integers with a weight scale an output and an input scale a token. Emulated.

    The scale is the largest magnitude / 127.5, as compressed-tensors takes it (half of 127 + 128;
    quantization/utils/helpers.py, 0.20). ModelOpt's int8 divides by 127, and stores the scale: nothing here repeats it.

    Args:
        codes: int8 [outputs, inputs].
        weight_scale: float32 [outputs].
        bias: [outputs] or None.
        dtype: type of what comes out.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127.5
        codes = (x.float() / scale).round_().clamp_(-128, 127).to(self.dtype)
        return self.biased((self.sums(codes) * self.weight_scale * scale).to(self.dtype))


class W4A8Linear(QuantizedLinear):
    """Int4 weights that are multiplied as FP8, with a static input scale. Emulated.

    Args:
        weight: float32 [outputs, inputs], already code * scale of its group.
        weight_scale_2: float32, one number: the weight is rounded to E4M3 in units of it.
        input_scale: float32, one number.
        pre_quant_scale: [inputs] or None; multiplies the input.
        bias: [outputs] or None.
        dtype: type of what comes out.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        weight_scale_2: torch.Tensor,
        input_scale: torch.Tensor,
        pre_quant_scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(tuple(weight.shape), dtype, bias, pre_quant_scale)
        codes = to_e4m3(weight, 1 / weight_scale_2.float())
        self.product = Fp8Linear(codes, weight_scale_2, input_scale, None, dtype)

    def dense(self) -> torch.Tensor:
        return self.whole(self.product.dense())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.biased(self.product(self.rescaled(x)))
