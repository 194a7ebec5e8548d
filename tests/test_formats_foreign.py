"""Layouts of other programs, read back: each is written here from its description, and computes the written numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantlab import finished
from quantlab.errors import Broken, Refused
from quantlab.formats import autoawq, compressed, words
from quantlab.formats.foreign import layout_of, quantization_of
from quantlab.formats.foreign_layers import unpacked
from quantlab.formats.modelopt import open_model
from quantlab.formats.readers import reader_of
from tests.finished_parts import change, copied, say, written

GROUP = 32
Layer = Callable[[str, torch.Tensor], dict[str, torch.Tensor]]


def _rounded(weight: torch.Tensor, bits: int = 4, group: int = GROUP) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes int8 [out, in], scale [out, in / group]), symmetric."""
    grouped = weight.view(weight.shape[0], -1, group)
    scale = grouped.abs().amax(-1) / (2 ** (bits - 1) - 1)
    codes = (grouped / scale.unsqueeze(-1)).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes.to(torch.int8).view_as(weight), scale


def _pack(unsigned: torch.Tensor, bits: int) -> torch.Tensor:
    """int [..., n] -> int32 [..., n * bits / 32], first in the lowest bits."""
    per = 32 // bits
    whole = (unsigned.long().unflatten(-1, (-1, per)) << (bits * torch.arange(per))).sum(-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).to(torch.int32)


def _config(**weights: Any) -> dict[str, Any]:
    said = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP, "dynamic": False}
    group = {"targets": ["Linear"], "weights": said | weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "version": "0.9.4",
    }


def _dense(folder: Path, name: str, shape: tuple[int, int]) -> torch.Tensor:
    return reader_of(folder, [name]).layer(name, shape).dense()


LAYER, SHAPE = "model.layers.1.mlp.down_proj", (128, 256)


@pytest.fixture
def meant() -> dict[str, torch.Tensor]:
    """Layer -> the weight that its tensors were written for."""
    return {}


@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_packed(tiny_model: Path, tmp_path: Path, meant: dict[str, Any], bits: int) -> None:
    def layer(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        codes, scale = _rounded(weight, bits)
        meant[name] = codes.float() * scale.repeat_interleave(GROUP, 1)
        return {
            f"{name}.weight_packed": _pack(codes.int() + 2 ** (bits - 1), bits),
            f"{name}.weight_scale": scale,
            f"{name}.weight_shape": torch.tensor(codes.shape),
        }

    folder = written(tiny_model, tmp_path / "q", _config(num_bits=bits), layer)
    assert torch.equal(_dense(folder, LAYER, SHAPE), meant[LAYER])
    found = finished.recognise(folder, "q")
    assert (found.layout, found.producer, found.version) == ("compressed-tensors", "compressed-tensors", "0.9.4")
    assert (found.format, found.group_size) == (("int4", GROUP) if bits == 4 else ("int8_wo", None))
    assert found.bits_per_weight == pytest.approx(bits + 1, abs=0.1)  # a float32 scale for 32 weights, and the shape
    assert len(found.layers) == 14
    model = open_model(folder, torch.float32, "cpu", native_fp8=False)
    assert torch.equal(model.get_submodule(LAYER).weight, meant[LAYER])


def test_packing_agrees_with_the_words_of_quantlab() -> None:
    codes = torch.randint(-8, 8, (3, 24), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    assert torch.equal(unpacked(words.pack(codes), 4) - 8, codes)
    assert torch.equal(_pack(codes.int() + 8, 4), words.pack(codes))


def test_compressed_tensors_with_zero_points_and_its_own_order_of_groups(
    tiny_model: Path, tmp_path: Path, meant: dict[str, Any]
) -> None:
    """GPTQ with act-order gives each input its group; an asymmetric scheme packs its zero points along the outputs."""

    def layer(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, inputs = weight.shape
        generator = torch.Generator().manual_seed(rows + inputs)
        order = torch.randperm(inputs, generator=generator) // GROUP
        codes = torch.randint(0, 16, (rows, inputs), generator=generator)
        zero = torch.randint(0, 16, (rows, inputs // GROUP), generator=generator)
        scale = torch.rand(rows, inputs // GROUP, generator=generator) + 0.1
        meant[name] = (codes - zero[:, order]).float() * scale[:, order]
        return {
            f"{name}.weight_packed": _pack(codes, 4),
            f"{name}.weight_zero_point": _pack(zero.T.contiguous(), 4).T.contiguous(),
            f"{name}.weight_scale": scale,
            f"{name}.weight_g_idx": order.to(torch.int32),
        }

    folder = written(tiny_model, tmp_path / "q", _config(symmetric=False, actorder="group"), layer)
    assert torch.equal(_dense(folder, LAYER, SHAPE), meant[LAYER])


@pytest.mark.parametrize(("written_as", "less"), [("gptq", 1), ("gptq_v2", 0)])
def test_gptq(tiny_model: Path, tmp_path: Path, meant: dict[str, Any], written_as: str, less: int) -> None:
    def layer(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        codes, scale = _rounded(weight)
        meant[name] = codes.float() * scale.half().float().repeat_interleave(GROUP, 1)
        zeros = torch.full((weight.shape[1] // GROUP, weight.shape[0]), 8 - less)
        return {
            f"{name}.qweight": _pack(codes.int() + 8, 4).T.contiguous(),
            f"{name}.qzeros": _pack(zeros, 4),
            f"{name}.scales": scale.T.contiguous().half(),
            f"{name}.g_idx": (torch.arange(weight.shape[1]) // GROUP).to(torch.int32),
        }

    said = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "checkpoint_format": written_as,
            "meta": {"quantizer": ["gptqmodel:2.2.0"]}}  # fmt: skip
    folder = written(tiny_model, tmp_path / "q", said, layer)
    assert torch.allclose(_dense(folder, LAYER, SHAPE), meant[LAYER], atol=1e-7)
    found = finished.recognise(folder, "q")
    assert (found.format, found.maker, found.group_size) == ("int4", "gptqmodel 2.2.0", GROUP)


def test_autoawq(tiny_model: Path, tmp_path: Path, meant: dict[str, Any]) -> None:
    def layer(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        codes, scale = _rounded(weight)
        meant[name] = codes.float() * scale.half().float().repeat_interleave(GROUP, 1)
        return autoawq.tensors(name, codes, scale)

    folder = written(tiny_model, tmp_path / "q", autoawq.config(GROUP, ["lm_head"]), layer)
    assert torch.allclose(_dense(folder, LAYER, SHAPE), meant[LAYER], atol=1e-7)
    found = finished.recognise(folder, "q")
    assert (found.layout, found.format, found.group_size) == ("autoawq", "int4_awq", GROUP)


def _eight(kind: torch.dtype, rows: bool, extra: tuple[str, ...]) -> Layer:
    def layer(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        end = 448.0 if kind.is_floating_point else 127.0
        scale = (weight.abs().amax(1, keepdim=True) if rows else weight.abs().max().reshape(1)) / end
        codes = weight / scale
        stored = {f"{name}.weight": (codes if kind.is_floating_point else codes.round()).to(kind)}
        return stored | {f"{name}.weight_scale": scale.bfloat16()} | {f"{name}.{e}": torch.ones(1) / 9 for e in extra}

    return layer


FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None}
INT8 = FLOAT8 | {"type": "int"}
EIGHT_BIT = [
    ("fp8", FLOAT8 | {"strategy": "tensor"}, FLOAT8 | {"strategy": "tensor"}, torch.float8_e4m3fn, ("input_scale",)),
    ("fp8_rowwise", FLOAT8 | {"strategy": "channel"}, FLOAT8 | {"strategy": "token", "dynamic": True},
     torch.float8_e4m3fn, ()),
    ("fp8_rowwise", FLOAT8 | {"strategy": "tensor"}, FLOAT8 | {"strategy": "token", "dynamic": True},
     torch.float8_e4m3fn, ()),
    ("int8_rowwise", INT8 | {"strategy": "channel"}, INT8 | {"strategy": "token", "dynamic": True}, torch.int8, ()),
    ("int8_sq", INT8 | {"strategy": "channel"}, INT8 | {"strategy": "tensor"}, torch.int8, ("input_scale",)),
]  # fmt: skip


@pytest.mark.parametrize(("format_", "weights", "inputs", "kind", "extra"), EIGHT_BIT)
def test_compressed_tensors_in_eight_bits(
    tiny_model: Path, tmp_path: Path, format_: str, weights: Any, inputs: Any, kind: torch.dtype, extra: Any
) -> None:
    said = _config()
    said["config_groups"]["group_0"] |= {"weights": weights, "input_activations": inputs}
    said["format"] = "float-quantized" if kind.is_floating_point else "int-quantized"
    layer = _eight(kind, weights["strategy"] == "channel", extra)
    folder = written(tiny_model, tmp_path / "q", said, layer)
    assert finished.recognise(folder, "q").format == format_
    source = open_model(tiny_model, torch.float32, "cpu", native_fp8=False).get_submodule(LAYER)
    made = open_model(folder, torch.float32, "cpu", native_fp8=False).get_submodule(LAYER)
    x = torch.randn(5, SHAPE[1], generator=torch.Generator().manual_seed(3))
    error = float((made(x) - source(x)).norm() / source(x).norm())
    assert 0.001 < error < 0.06, error


def test_a_cache_in_compressed_tensors_own_spelling(tiny_model: Path, tmp_path: Path) -> None:
    said = _config()
    said["config_groups"]["group_0"] |= {"weights": FLOAT8 | {"strategy": "tensor"},
                                         "input_activations": FLOAT8 | {"strategy": "tensor"}}  # fmt: skip
    said |= {"format": "float-quantized", "kv_cache_scheme": FLOAT8 | {"strategy": "tensor", "dynamic": False}}
    folder = written(tiny_model, tmp_path / "q", said, _eight(torch.float8_e4m3fn, False, ("input_scale",)))
    with pytest.raises(Broken, match="no scale of it"):
        finished.recognise(folder, "q")
    scales = {f"model.layers.{n}.self_attn.{kv}_scale": torch.tensor([0.25]) for n in range(2) for kv in "kv"}
    change(folder, lambda tensors: tensors.update(scales))
    assert finished.recognise(folder, "q").kv_cache == "fp8"
    attention = open_model(folder, torch.float32, "cpu", native_fp8=False).get_submodule("model.layers.0.self_attn")
    assert float(attention.k_scale) == 0.25


def test_two_groups_of_layers_in_two_formats(tiny_model: Path, tmp_path: Path) -> None:
    rows = _eight(torch.int8, True, ())

    def layer(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if "layers.0" in name:
            return {f"{name}.weight": weight.bfloat16()}
        if "mlp" not in name:
            return rows(name, weight)
        return compressed.tensors(name, *_rounded(weight))

    said = _config()
    first = said["config_groups"].pop("group_0")
    said["ignore"] = ["lm_head", "re:.*layers[.]0[.].*"]
    said["config_groups"] = {
        "a": first | {"targets": ["re:.*mlp.*"]},
        "b": {
            "targets": ["Linear"],
            "format": "int-quantized",
            "weights": INT8 | {"strategy": "channel"},
            "input_activations": INT8 | {"strategy": "token", "dynamic": True},
        },
    }
    found = finished.recognise(written(tiny_model, tmp_path / "q", said, layer), "q")
    assert found.formats == ("int8_rowwise", "int4")
    assert len(found.layers) == 7
    assert len(found.plain) == 7
    open_model(tmp_path / "q", torch.float32, "cpu", native_fp8=False)


ODD = [
    ({"strategy": "block", "block_structure": [128, 128], "type": "float", "num_bits": 8}, {}, "float8 block"),
    ({}, {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24"),
    ({}, {"transform_config": {"config_groups": {"u": {}}}}, "rotations"),
    ({}, {"kv_cache_scheme": FLOAT8 | {"num_bits": 4}}, "key/value cache"),
]


@pytest.mark.parametrize(("weights", "more", "word"), ODD)
def test_what_is_not_computed_is_named_and_vllm_may_take_it(
    tiny_model: Path, tmp_path: Path, weights: dict[str, Any], more: dict[str, Any], word: str
) -> None:
    folder = written(
        tiny_model, tmp_path / "q", _config(**weights) | more, lambda n, w: compressed.tensors(n, *_rounded(w))
    )
    found = finished.recognise(folder, "q")
    assert word in found.unknown
    assert found.format == "other"
    with pytest.raises(Refused, match="does not compute") as caught:
        open_model(folder, torch.float32, "cpu", native_fp8=False)
    assert "--engine vllm" in caught.value.cure


def test_methods_that_nobody_takes_are_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    folder = say(
        copied(tiny_model, tmp_path / "q"), "config.json", quantization_config={"quant_method": "bitsandbytes"}
    )
    with pytest.raises(Refused, match="bitsandbytes"):
        layout_of(folder)
    say(folder, "config.json", quantization_config={"quant_method": "hqq"})
    assert "hqq" in quantization_of(folder).unknown


def test_config_and_tensors_must_agree(tiny_model: Path, tmp_path: Path) -> None:
    def layer(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return compressed.tensors(name, *_rounded(weight))

    folder = written(tiny_model, tmp_path / "q", _config(), layer)
    whole = json.loads((folder / "config.json").read_text())["quantization_config"]
    say(folder, "config.json", quantization_config=whole | {"ignore": ["lm_head", LAYER]})
    with pytest.raises(Broken, match=r"says 16 bit of .*down_proj"):
        quantization_of(folder)
    say(folder, "config.json", quantization_config=whole | {"config_groups": 5})
    with pytest.raises(Broken, match="config_groups"):
        quantization_of(folder)
    say(folder, "config.json", quantization_config=whole)
    change(folder, lambda tensors: tensors.update({f"{LAYER}.weight_scale": torch.zeros(128, 8)}))
    with pytest.raises(Broken, match="zero"):
        _dense(folder, LAYER, SHAPE)
    change(folder, lambda tensors: tensors.update({f"{LAYER}.weight_scale": torch.ones(128, 4)}))
    with pytest.raises(Broken, match="groups of 64 where its config says 32"):
        _dense(folder, LAYER, SHAPE)
