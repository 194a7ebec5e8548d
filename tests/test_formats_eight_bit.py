"""Layers with 8-bit activations, against the live model that ModelOpt calibrated and against arithmetic by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quantlab.errors import Broken
from quantlab.formats.eight_bit import Fp8RowLinear, Int8Linear, Int8RowLinear, W4A8Linear
from quantlab.formats.fp4 import Nvfp4Linear
from quantlab.formats.modelopt import open_model, read_quantization
from tests.conftest import Export
from tests.test_formats_modelopt import edited

KINDS = {
    "rowwise_export": (Fp8RowLinear, "FP8_PER_CHANNEL_PER_TOKEN", 5e-3),
    "smoothquant_export": (Int8Linear, "W8A8_SQ_PER_CHANNEL", 5e-3),
    "w4a8_export": (W4A8Linear, "W4A8_AWQ", 1e-2),
    "nvfp4_export": (Nvfp4Linear, "NVFP4", 1e-2),
}
"""Fixture -> class, quant_algo, largest distance: a code now and then falls to the other side of a tie."""
UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layers_compute_what_the_live_ones_did(request: pytest.FixtureRequest, name: str, dtype: torch.dtype) -> None:
    export: Export = request.getfixturevalue(name)
    kind, algorithm, most = KINDS[name]
    assert read_quantization(export.folder).algorithm == algorithm
    model = open_model(export.folder, dtype, "cpu", native_fp8=False)
    for layer, (given, made) in export.live.items():
        module = model.get_submodule(layer)
        assert isinstance(module, kind)
        found = module(given.to(dtype))
        assert found.dtype is dtype
        error = (found.float() - made).abs().mean() / made.abs().mean()
        assert float(error) < (most if dtype is torch.float32 else 0.02), layer
    with torch.inference_mode():
        logits = model(export.ids).logits
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("name", KINDS)
def test_the_dense_weight_is_what_the_layer_multiplies_with(request: pytest.FixtureRequest, name: str) -> None:
    export: Export = request.getfixturevalue(name)
    model = open_model(export.folder, torch.float32, "cpu", native_fp8=False)
    for layer in (UP, DOWN):
        module, (given, _) = model.get_submodule(layer), export.live[layer]
        exact = given.flatten(0, -2) @ module.dense().T
        found = module(given.flatten(0, -2))
        assert float((found - exact).norm() / exact.norm()) < (0.2 if "fp4" in name else 0.05)  # the input's rounding


def test_each_token_has_its_own_range(rowwise_export: Export) -> None:
    """A token of huge values changes nothing for its neighbour; a token of zeros stays zero."""
    layer = open_model(rowwise_export.folder, torch.float32, "cpu", native_fp8=False).get_submodule(UP)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    alone = layer(x[:1])
    x[1], x[2] = x[1] * 1e4, 0.0
    together = layer(x)
    torch.testing.assert_close(together[:1], alone)
    assert bool((together[2] == 0).all())
    again = x[1] / x[1].abs().max() * 448
    wanted = (again.to(torch.float8_e4m3fn).float() * x[1].abs().max() / 448) @ layer.dense().T
    torch.testing.assert_close(together[1], wanted, rtol=1e-4, atol=1e-2)


def test_int8_clips_what_calibration_did_not_see() -> None:
    codes = torch.tensor([[100, -50], [127, -128]], dtype=torch.int8)
    scale = torch.tensor([0.01, 0.02])
    layer = Int8Linear(codes, scale, torch.tensor(0.5), torch.tensor([2.0, 1.0]), None, torch.float32)
    found = layer(torch.tensor([[3.0, 1.24], [1000.0, -1000.0]]))
    by_hand = torch.tensor([[12 * 100 - 2 * 50, 12 * 127 - 2 * 128], [127 * 100 + 128 * 50, 127 * 127 + 128 * 128]])
    assert torch.allclose(found, by_hand * 0.5 * scale)
    assert torch.allclose(layer.dense(), torch.tensor([[2.0, -0.5], [5.08, -2.56]]))


def test_an_integer_scale_a_token_is_that_of_compressed_tensors() -> None:
    """Largest magnitude / 127.5: 10 is code 127 and comes out smaller, 5 is 64, another row changes nothing."""
    codes = torch.tensor([[1, 0], [0, 1]], dtype=torch.int8)
    layer = Int8RowLinear(codes, torch.tensor([1.0, 2.0]), None, torch.float32)
    step = 10 / 127.5
    found = layer(torch.tensor([[10.0, 5.0], [1e4, 1e4]]))
    assert torch.allclose(found[0], torch.tensor([127 * step, 2 * 64 * step]))


def test_float16_does_not_overflow() -> None:
    rows = torch.full((4, 4096), 127, dtype=torch.int8)
    layer = Int8Linear(rows, torch.full((4,), 1e-4), torch.tensor(1e-2), None, None, torch.float16)
    found = layer(torch.full((1, 4096), 2.0, dtype=torch.float16))
    assert found[0, 0] == pytest.approx(4096 * 127 * 127 * 1e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("rowwise_export", f"{UP}.weight_scale", "missing"),
        ("smoothquant_export", f"{UP}.input_scale", "missing"),
        ("smoothquant_export", f"{DOWN}.pre_quant_scale", "missing"),
        ("w4a8_export", f"{UP}.weight_scale_2", "missing"),
        ("nvfp4_export", f"{UP}.weight_scale_2", "missing"),
        ("nvfp4_export", f"{UP}.input_scale", "missing"),
        ("w4a8_export", f"{DOWN}.pre_quant_scale", "missing"),
    ],
)
def test_a_lost_tensor_is_named(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, tensor: str, words: str
) -> None:
    export: Export = request.getfixturevalue(name)
    folder = edited(export.folder, tmp_path / "a", {tensor: None})
    with pytest.raises(Broken, match=words) as raised:
        open_model(folder, torch.float32, "cpu", native_fp8=False)
    assert raised.value.place == tensor


def test_a_left_over_scale_is_named(rowwise_export: Export, tmp_path: Path) -> None:
    extra = {f"{UP}.input_scale": torch.ones(())}
    with pytest.raises(Broken, match="no layer uses it"):
        open_model(edited(rowwise_export.folder, tmp_path / "a", extra), torch.float32, "cpu", native_fp8=False)


def test_rows_have_their_own_scale(rowwise_export: Export) -> None:
    tensors = load_file(rowwise_export.folder / "model.safetensors")
    for name, weight in rowwise_export.weights.items():
        scale = tensors[f"{name}.weight_scale"]
        torch.testing.assert_close(scale, weight.abs().amax(1) / 448)
