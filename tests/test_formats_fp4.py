"""NVFP4's arithmetic against ModelOpt's own tensor class, and by hand at the edges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from quantlab.errors import Broken
from quantlab.formats.fp4 import BLOCK, VALUES, block_scales, round_e2m1, spread, unpack_e2m1
from quantlab.formats.modelopt import open_model
from tests.conftest import Export
from tests.test_formats_modelopt import edited


@given(seed=st.integers(0, 2**31), size=st.sampled_from([1e-3, 1.0, 300.0]))
@settings(max_examples=30, deadline=None)
def test_codes_and_scales_are_modelopts(seed: int, size: float) -> None:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    x = size * torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    x[0, :BLOCK] = 0
    second = x.abs().max() / (6 * 448)
    made, scale, _ = NVFP4QTensor.quantize(x.clone(), BLOCK, None, second)
    mine = block_scales(x, second)
    assert torch.equal(mine, scale.float())
    codes = round_e2m1(x / (spread(mine) * second))
    assert torch.equal(codes, unpack_e2m1(made._quantized_data))
    back = made.dequantize(torch.float32, scale=scale, double_scale=second, block_sizes={-1: BLOCK})
    torch.testing.assert_close(codes * spread(mine) * second, back)


def test_ties_go_to_the_even_code_and_large_ones_saturate() -> None:
    halfway = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 9.0, float("inf")])
    wanted = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0]
    assert round_e2m1(halfway).tolist() == wanted
    assert (-round_e2m1(-halfway)).tolist() == wanted
    assert round_e2m1(torch.tensor(VALUES)).tolist() == list(VALUES)


def test_the_low_nibble_is_the_even_input() -> None:
    assert unpack_e2m1(torch.tensor([[0xF1, 0x70]], dtype=torch.uint8)).tolist() == [[0.5, -6.0, 0.0, 6.0]]


def test_a_block_of_huge_values_leaves_its_neighbours_alone(nvfp4_export: Export) -> None:
    layer = open_model(nvfp4_export.folder, torch.float32, "cpu", native_fp8=False).get_submodule(
        "model.layers.1.mlp.up_proj"
    )
    x = 0.01 * torch.randn(1, 128, generator=torch.Generator().manual_seed(0))
    loud = x.clone()
    loud[0, :BLOCK] *= 100
    quiet = x.clone()
    quiet[0, :BLOCK] = 0
    torch.testing.assert_close(layer(loud) - layer(loud - quiet), layer(quiet), rtol=1e-3, atol=1e-5)


def test_scales_that_do_not_fit_are_named(nvfp4_export: Export, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight_scale"
    scale = load_file(nvfp4_export.folder / "model.safetensors")[name]
    folder = edited(nvfp4_export.folder, tmp_path / "a", {name: scale[:, ::2].contiguous()})
    with pytest.raises(Broken, match="blocks of 16") as raised:
        open_model(folder, torch.float32, "cpu", native_fp8=False)
    assert raised.value.place == name
