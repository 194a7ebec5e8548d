"""Packing by property, and loading against the live model that ModelOpt calibrated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from quantlab.errors import Broken, Refused
from quantlab.formats.layers import E4M3_MAX, Fp8Linear, Int4Linear, to_e4m3
from quantlab.formats.modelopt import open_model, read_quantization
from quantlab.formats.packing import pack_codes, pack_int4, unpack_codes, unpack_int4
from tests.conftest import GROUP, Export

CPU = "cpu"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return open_model(folder, dtype, CPU, native_fp8=False)


def edited(folder: Path, into: Path, edit: dict[str, torch.Tensor | None]) -> Path:
    """A copy of a checkpoint with tensors replaced, added or (None) removed."""
    shutil.copytree(folder, into)
    tensors = load_file(into / "model.safetensors")
    for name, tensor in edit.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    return into


# --- packing


@given(rows=st.integers(1, 9), columns=st.integers(1, 17), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_codes_survive_packing(rows: int, columns: int, seed: int) -> None:
    codes = torch.randint(-8, 8, (2 * rows, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
    packed = pack_codes(codes)
    assert packed.shape == (rows, columns)
    assert packed.dtype is torch.uint8
    assert torch.equal(unpack_codes(packed), codes)


def test_low_nibble_is_the_even_row() -> None:
    assert unpack_codes(torch.tensor([[0xF1]], dtype=torch.uint8)).tolist() == [[1], [-1]]
    assert unpack_codes(torch.tensor([[0x87]], dtype=torch.uint8)).tolist() == [[7], [-8]]


@given(seed=st.integers(0, 2**31), group=st.sampled_from([4, 8, 16]))
@settings(max_examples=40, deadline=None)
def test_rounding_is_within_half_a_step(seed: int, group: int) -> None:
    weight = torch.randn(6, 48, generator=torch.Generator().manual_seed(seed))
    packed, scale = pack_int4(weight, group)
    error = (unpack_int4(packed, scale) - weight).abs()
    assert bool((error <= scale.repeat_interleave(group, 1) * 0.5001).all())


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="odd"):
        pack_codes(torch.zeros(3, 2, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"-8\.\.7"):
        pack_codes(torch.full((2, 2), 8, dtype=torch.int8))
    with pytest.raises(ValueError, match="does not fit"):
        unpack_int4(torch.zeros(2, 6, dtype=torch.uint8), torch.ones(4, 4))


def test_e4m3_saturates_and_keeps_nan() -> None:
    codes = to_e4m3(torch.tensor([1e9, -1e9, 0.0, float("nan"), float("inf")]), torch.ones(())).float()
    assert codes[:3].tolist() == [E4M3_MAX, -E4M3_MAX, 0.0]
    assert codes[3].isnan()
    assert codes[4] == E4M3_MAX


# --- what the files say


def test_quantization_is_read(tiny_model: Path, tiny_fp8: Path, tiny_int4_awq: Path, fp8_kv_export: Export) -> None:
    assert read_quantization(tiny_model).algorithm is None
    fp8 = read_quantization(tiny_fp8)
    assert (fp8.algorithm, fp8.kv_cache) == ("FP8", None)
    assert fp8.excludes("lm_head")
    assert not fp8.excludes("model.layers.0.mlp.up_proj")
    awq = read_quantization(tiny_int4_awq)
    assert (awq.algorithm, awq.group_size) == ("W4A16_AWQ", GROUP)
    assert read_quantization(fp8_kv_export.folder).kv_cache == "FP8"


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"quant_method": "gptq", "bits": 4}, Refused),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4_SVD"}, Refused),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": "NVFP4"}, Refused),
    ],
)
def test_unknown_algorithms_are_refused(tmp_path: Path, config: dict[str, object], kind: type[Exception]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    with pytest.raises(kind):
        read_quantization(tmp_path)


def test_contradictions_and_rubbish_are_broken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_algo": "FP8"}}))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "W4A16_AWQ"}}))
    with pytest.raises(Broken, match="different algorithms"):
        read_quantization(tmp_path)
    (tmp_path / "hf_quant_config.json").write_text("{")
    with pytest.raises(Broken, match="JSON"):
        read_quantization(tmp_path)


# --- FP8


def test_fp8_codes_are_the_live_models(fp8_export: Export) -> None:
    """ModelOpt's simulation multiplies by 448/amax and its export divides by amax/448: a few codes are one step off."""
    tensors = load_file(fp8_export.folder / "model.safetensors")
    for name, weight in fp8_export.weights.items():
        codes, scale = tensors[f"{name}.weight"].float(), tensors[f"{name}.weight_scale"]
        mine = to_e4m3(weight, 1 / scale).float()
        odd = codes != mine
        assert float(odd.float().mean()) <= 0.01
        step = torch.maximum(codes.abs() / 8, torch.tensor(2.0**-9))
        assert bool(((codes - mine).abs() <= step * 1.001).all())


def test_fp8_layers_compute_what_the_live_ones_did(fp8_export: Export) -> None:
    model = load(fp8_export.folder)
    for name, (given_, made) in fp8_export.live.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Fp8Linear)
        error = (layer(given_) - made).abs().mean() / made.abs().mean()
        assert float(error) < 5e-3, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp8_in_16_bit_is_float32_rounded_once(tiny_fp8: Path, dtype: torch.dtype) -> None:
    exact = load(tiny_fp8).get_submodule("model.layers.1.mlp.down_proj")
    short = load(tiny_fp8, dtype).get_submodule("model.layers.1.mlp.down_proj")
    x = (torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    wanted, got = exact(x.float()), short(x).float()
    assert bool((got - wanted).abs().max() <= wanted.abs().max() * 2.0**-7)
    assert bool(torch.isfinite(got).all())


def test_fp8_with_a_scale_for_each_output() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, 32, generator=generator), torch.randn(5, 32, generator=generator)
    scale = weight.abs().amax(1) / E4M3_MAX
    codes = to_e4m3(weight, (1 / scale)[:, None])
    input_scale = x.abs().amax() / E4M3_MAX
    layer = Fp8Linear(codes, scale, input_scale, torch.ones(24), torch.float32)
    dequantized = (to_e4m3(x, 1 / input_scale).float() * input_scale) @ (codes.float() * scale[:, None]).T + 1
    torch.testing.assert_close(layer(x), dequantized, rtol=1e-5, atol=1e-5)


def test_fp8_kv_cache_rounds_after_the_rotary_embedding(fp8_kv_export: Export) -> None:
    """The live model's first layer sees the same input, so its o_proj must see the same attention output."""
    model = load(fp8_kv_export.folder)
    seen: dict[str, torch.Tensor] = {}
    name = "model.layers.0.self_attn.o_proj"
    model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    with torch.inference_mode():
        model(fp8_kv_export.ids)
    wanted = fp8_kv_export.live[name][0]
    error = (seen["x"] - wanted).abs().mean() / wanted.abs().mean()
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    with torch.inference_mode():
        model(fp8_kv_export.ids)
    unrounded = (seen["x"] - wanted).abs().mean() / wanted.abs().mean()
    assert float(error) < 5e-3
    assert float(unrounded) > 4 * float(error)


# --- INT4


def test_awq_logits_are_the_live_models(awq_export: Export) -> None:
    model = load(awq_export.folder)
    layer = model.get_submodule("model.layers.0.self_attn.o_proj")
    assert isinstance(layer, Int4Linear)
    assert layer.pre_quant_scale is not None
    with torch.inference_mode():
        logits = model(awq_export.ids).logits
    assert float((logits - awq_export.logits).abs().max()) < 2e-2 * float(awq_export.logits.std())
    assert float((logits.argmax(-1) == awq_export.logits.argmax(-1)).float().mean()) > 0.99


def test_round_to_nearest_weights_are_the_live_models(int4_export: Export) -> None:
    """Weights of a bfloat16 model lie exactly between two codes now and then; ModelOpt's simulation and its export
    break such ties differently (0.03 % here), and nothing else may differ."""
    model, tensors = load(int4_export.folder), load_file(int4_export.folder / "model.safetensors")
    for name, weight in int4_export.weights.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Int4Linear)
        assert layer.pre_quant_scale is None
        scale = tensors[f"{name}.weight_scale"].repeat_interleave(GROUP, 1)
        error = (layer.weight - weight).abs() / scale
        assert float(error.max()) <= 0.5001, name
        given_, made = int4_export.live[name]
        assert float((layer(given_) - made).abs().mean() / made.abs().mean()) < 5e-3, name


# --- files


def test_tied_head_and_rotary_buffers_are_real(tiny_fp8: Path) -> None:
    model = load(tiny_fp8, torch.bfloat16)
    assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")
    assert all(not tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    frequencies = model.get_submodule("model.rotary_emb").inv_freq
    assert frequencies.dtype is torch.float32  # type: ignore[union-attr]
    assert float(frequencies[0]) == 1.0  # type: ignore[index]


def test_shards_with_an_index(tiny_int4_awq: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(tiny_int4_awq, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({n: tensors[n] for n in names if where[n] == file}, folder / file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    ids = torch.arange(2, 40)[None]
    with torch.inference_mode():
        assert torch.equal(load(folder)(ids).logits, load(tiny_int4_awq)(ids).logits)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(Broken, match="model-00002"):
        load(folder)


LAYER = "model.layers.1.self_attn.o_proj"


@pytest.mark.parametrize(
    ("which", "edit", "named"),
    [
        ("tiny_fp8", {f"{LAYER}.input_scale": None}, f"{LAYER}.input_scale"),
        ("tiny_fp8", {f"{LAYER}.weight_scale": None}, f"{LAYER}.weight_scale"),
        ("tiny_fp8", {f"{LAYER}.input_scale": torch.tensor(0.0)}, "zero"),
        ("tiny_fp8", {f"{LAYER}.weight_scale": torch.tensor(float("nan"))}, "not finite"),
        ("tiny_fp8", {f"{LAYER}.weight": torch.zeros(128, 128)}, "float32"),
        ("tiny_fp8", {f"{LAYER}.weight": None}, LAYER),
        ("tiny_fp8", {f"{LAYER}.pre_quant_scale": torch.ones(128)}, f"{LAYER}.pre_quant_scale"),
        ("tiny_fp8", {"model.layers.1.self_attn.k_proj.k_scale": torch.ones(())}, "k_scale"),
        ("tiny_fp8", {"model.norm.weight": None}, "model.norm.weight"),
        ("tiny_fp8", {"model.norm.weight": torch.ones(64)}, "shape"),
        ("tiny_int4_awq", {f"{LAYER}.pre_quant_scale": None}, f"{LAYER}.pre_quant_scale"),
        ("tiny_int4_awq", {f"{LAYER}.weight_scale": None}, f"{LAYER}.weight_scale"),
        ("tiny_int4_awq", {f"{LAYER}.weight_scale": torch.ones(128, 8)}, "groups"),
        ("tiny_int4_awq", {"model.extra": torch.ones(1)}, "model.extra"),
        ("tiny_model", {"model.extra": torch.ones(1)}, "model.extra"),
        ("tiny_model", {"model.norm.weight": None}, "model.norm.weight"),
    ],
)
def test_nothing_is_silently_missing_or_ignored(
    which: str,
    edit: dict[str, torch.Tensor | None],
    named: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    folder = edited(request.getfixturevalue(which), tmp_path / "edited", edit)
    with pytest.raises(Broken) as caught:
        load(folder)
    assert named in str(caught.value)


def test_missing_cache_scale_is_broken(fp8_kv_export: Export, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.v_proj.v_scale"
    folder = edited(fp8_kv_export.folder, tmp_path / "edited", {name: None})
    with pytest.raises(Broken) as caught:
        load(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("which", ["tiny_model", "tiny_fp8"])
def test_truncated_and_absent_files_are_broken(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(request.getfixturevalue(which), folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(Broken):
        load(folder)
    file.unlink()
    with pytest.raises(Broken):
        load(folder)
