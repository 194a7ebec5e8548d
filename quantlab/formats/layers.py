"""Linear layers that compute with what a quantized checkpoint holds, and the FP8 key/value cache.

FP8 (W8A8, static). E4M3 has 3 bits of mantissa and ends at 448. Weight and input are codes with one scale each:

    y = (codes(x) @ codes(W).T) * (input_scale * weight_scale),   codes(x) = round_e4m3(clamp(x / input_scale))

*native* gives the codes to the tensor core (torch._scaled_mm, compute capability 8.9 and newer). *emulated* multiplies
the same codes in the model's dtype: an E4M3 number is exact in bfloat16, float16 and float32, and the product of two
has 8 bits of mantissa, so both compute the same sum up to how it is accumulated, plus one rounding of the sum to
`dtype` before it is scaled. Measured on an H100: its FP8 units keep about 13 bits while they add, so native differs
from the exact sum by 1.2e-4 (mean, relative), a tenth of what rounding to bfloat16 does (1.4e-3; emulated 1.9e-3).
Clamping matters: torch's cast to E4M3 gives NaN beyond 448, hardware saturates.

INT4 (W4A16). y = (x * pre_quant_scale) @ (codes * scale).T in `dtype`: the arithmetic of the kernels, which also
expand the weight to 16 bit. `pre_quant_scale` is what AWQ could not fold into the layer before.

KV cache. The cache holds keys *after* the rotary embedding, so the rounding sits in the attention function and not
on k_proj's output; ModelOpt places its quantizers there too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

E4M3_MAX = 448.0
KV_ATTENTION = "quantlab_fp8_kv"
"""Name under which transformers finds the attention with an FP8 key/value cache."""
_TILE = 16
"""torch._scaled_mm wants inner and outer width as multiples of this."""


def to_e4m3(x: torch.Tensor, inverse_scale: torch.Tensor) -> torch.Tensor:
    """Saturating rounding of x / scale to E4M3, computed in float32. NaN stays NaN."""
    return (x.float() * inverse_scale).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


class QuantizedLinear(nn.Module, ABC):  # type: ignore[misc]
    """A linear layer that computes with what was stored.

    Args:
        shape: outputs and inputs.
        dtype: type of what comes out.
        bias: [outputs] or None.
        pre_quant_scale: [inputs] or None; multiplies the input.
    """

    bias: nn.Parameter | None
    pre_quant_scale: torch.Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        bias: torch.Tensor | None,
        pre_quant_scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.dtype = dtype
        self.register_buffer("pre_quant_scale", None if pre_quant_scale is None else pre_quant_scale.to(dtype))
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)

    def rescaled(self, x: torch.Tensor) -> torch.Tensor:
        """The input as the weight wants it."""
        return x if self.pre_quant_scale is None else x * self.pre_quant_scale

    def biased(self, y: torch.Tensor) -> torch.Tensor:
        """The product with the bias."""
        return y if self.bias is None else y + self.bias

    def whole(self, weight: torch.Tensor) -> torch.Tensor:
        """A float32 weight [outputs, inputs] with the `pre_quant_scale` of its input in it."""
        return weight if self.pre_quant_scale is None else weight * self.pre_quant_scale.float()

    @abstractmethod
    def dense(self) -> torch.Tensor:
        """float32 [outputs, inputs]: the weight that the stored numbers stand for, a `pre_quant_scale` included."""


class Fp8Linear(QuantizedLinear):
    """W8A8 with a static input scale.

    Args:
        codes: float8_e4m3fn [outputs, inputs].
        weight_scale: float32, one number or one an output ([outputs] or [outputs, 1]).
        input_scale: float32, one number.
        bias: [outputs] or None.
        dtype: type of what comes out.
        native: use the FP8 matrix product of the GPU.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    inverse_input_scale: torch.Tensor

    def __init__(
        self,
        codes: torch.Tensor,
        weight_scale: torch.Tensor,
        input_scale: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        *,
        native: bool = False,
    ) -> None:
        super().__init__(tuple(codes.shape), dtype, bias)
        self.native = native
        # float16 ends at 65504 and a sum of code products does not: a power of two on both sides keeps it exact.
        self.shift = 2.0**-8 if dtype is torch.float16 and not native else 1.0
        self.register_buffer("codes", self._stored(codes))
        self.register_buffer("weight_scale", weight_scale.float().reshape(-1, 1))
        self.register_buffer("scale", weight_scale.float().reshape(-1) * input_scale.float() / self.shift**2)
        self.register_buffer("inverse_input_scale", 1 / input_scale.float().reshape(()))
        self.register_buffer("one", torch.ones((), device=codes.device))

    def _stored(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes as the product wants them: FP8 padded to whole tiles, or exact in `dtype`, converted once."""
        if not self.native:
            return codes.to(self.dtype) * self.shift
        padding = (0, -codes.shape[1] % _TILE, 0, -codes.shape[0] % _TILE)
        if not any(padding):
            return codes.contiguous()
        return functional.pad(codes.view(torch.uint8), padding).view(torch.float8_e4m3fn).contiguous()

    def dense(self) -> torch.Tensor:
        return self.codes[: self.out_features, : self.in_features].float() / self.shift * self.weight_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = to_e4m3(x, self.inverse_input_scale)
        return self.biased(self._product(codes) if self.native else self._emulated(codes))

    def _emulated(self, codes: torch.Tensor) -> torch.Tensor:
        sums = functional.linear(codes.to(self.dtype).mul_(self.shift), self.codes)
        return (sums.float() * self.scale).to(self.dtype) if self.scale.numel() > 1 else sums.mul_(self.scale)

    def _product(self, codes: torch.Tensor) -> torch.Tensor:
        """torch._scaled_mm: rows times columns, both FP8; accumulation in float32 without the fast-accumulate cut."""
        rows = codes.reshape(-1, self.in_features)
        extra = self.codes.shape[1] - self.in_features
        if extra:
            rows = functional.pad(rows.view(torch.uint8), (0, extra)).view(torch.float8_e4m3fn)
        single = self.scale.numel() == 1
        y = torch._scaled_mm(
            rows.contiguous(),
            self.codes.t(),
            scale_a=self.scale.reshape(()) if single else self.one,
            scale_b=self.one,
            out_dtype=self.dtype if single else torch.float32,
        )
        y = y[:, : self.out_features]
        y = y if single else (y * self.scale).to(self.dtype)
        return y.reshape(*codes.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {'native' if self.native else 'emulated'}"


class Int4Linear(QuantizedLinear):
    """W4A16: the weight is expanded once, when the layer is made.

    Args:
        weight: [outputs, inputs], already code * scale; kept in `dtype`.
        pre_quant_scale: [inputs] or None; multiplies the input.
        bias: [outputs] or None.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        pre_quant_scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(tuple(weight.shape), dtype, bias, pre_quant_scale)
        self.weight = nn.Parameter(weight.to(dtype), requires_grad=False)

    def dense(self) -> torch.Tensor:
        return self.whole(self.weight.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.rescaled(x), self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, pre_quant_scale={self.pre_quant_scale is not None}"


def _rounded(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (to_e4m3(x, 1 / scale).float() * scale).to(x.dtype)


def fp8_kv_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' SDPA attention over keys and values rounded to FP8 with the layer's `k_scale` and `v_scale`."""
    key, value = _rounded(key, module.k_scale), _rounded(value, module.v_scale)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output, None


AttentionInterface.register(KV_ATTENTION, fp8_kv_attention)
# Without a mask function of its own a custom attention gets no mask at all, and sees the future.
AttentionMaskInterface.register(KV_ATTENTION, sdpa_mask)
