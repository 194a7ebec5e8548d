"""Microscaling formats: powers of two as scales, against ModelOpt's own tensors and arithmetic by hand."""

from __future__ import annotations

import pytest
import torch

from quantlab.formats.fp4 import VALUES, unpack_e2m1
from quantlab.formats.mx import BLOCK, MxLinear, powers, round_e4m3, spread, unit

ENDS = (448.0, 6.0)


def numbers(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spreads = 10.0 ** torch.randint(-3, 4, (*shape[:-1], 1), generator=generator)
    return torch.randn(*shape, generator=generator) * spreads


@pytest.mark.parametrize("end", ENDS)
def test_scales_are_powers_of_two_that_never_clip_and_waste_less_than_half(end: float) -> None:
    x = numbers(50, 4 * BLOCK)
    scales = powers(x, end)
    assert scales.shape == (50, 4)
    assert torch.equal(scales.log2(), scales.log2().round())
    largest = x.unflatten(-1, (-1, BLOCK)).abs().amax(-1) / scales
    assert bool((largest <= end).all())
    assert bool((largest > end / 2 * 0.999).all())


def test_a_block_of_zeros_stays_zero() -> None:
    layer = MxLinear(torch.ones(3, BLOCK), torch.full((3, 1), 127, dtype=torch.uint8), 448.0, None, torch.float32)
    assert torch.equal(layer(torch.zeros(2, BLOCK)), torch.zeros(2, 3))


@pytest.mark.parametrize("end", ENDS)
def test_modelopts_tensors_are_read_and_rounded_alike(end: float) -> None:
    from modelopt.torch.quantization.qtensor import MXFP4QTensor, MXFP8QTensor

    weight = numbers(24, 3 * BLOCK)
    if end == VALUES[-1]:
        made, scale = MXFP4QTensor.quantize(weight, BLOCK)
        codes = unpack_e2m1(made._quantized_data)
    else:
        made, scale = MXFP8QTensor.quantize(weight)
        codes = made._quantized_data.float()
    scale = scale.reshape(24, 3)
    assert torch.equal(unit(scale), powers(weight, end))
    wanted = made.dequantize(torch.float32, scale=scale, block_sizes={-1: BLOCK})
    layer = MxLinear(codes, scale, end, None, torch.float32)
    torch.testing.assert_close(layer.dense(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_product_is_that_of_the_rounded_numbers(dtype: torch.dtype) -> None:
    weight, x = torch.randn(16, 2 * BLOCK), torch.randn(5, 2 * BLOCK).to(dtype)
    exponents = (powers(weight, 448.0).log2() + 127).to(torch.uint8)
    codes = round_e4m3(weight / spread(unit(exponents)))
    layer = MxLinear(codes, exponents, 448.0, torch.ones(16), dtype)
    scales = spread(powers(x, 448.0))
    exact = (round_e4m3(x.float() / scales) * scales) @ layer.dense().T + 1
    found = layer(x)
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=2e-2 * float(exact.abs().max()))
    assert float((layer.dense() - weight).norm() / weight.norm()) < 0.04
