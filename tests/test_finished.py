"""A checkpoint that was made elsewhere: what is recognised, what lies, and whether it is this model's at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quantlab import finished, sameness, weights
from quantlab.errors import BadInput, Broken, QuantlabError, Refused
from quantlab.formats import autoawq
from quantlab.formats.convert import convert
from tests.conftest import Export
from tests.finished_parts import MODEL, change, copied, failed, inspected, say

LAYER = "model.layers.1.mlp.down_proj"
QUANT = "hf_quant_config.json"


@pytest.mark.parametrize(
    ("export", "format_", "group", "cache"),
    [
        ("fp8_export", "fp8", None, "none"),
        ("fp8_kv_export", "fp8", None, "fp8"),
        ("awq_export", "int4_awq", 32, "none"),
        ("int4_export", "int4", 32, "none"),
        ("rowwise_export", "fp8_rowwise", None, "none"),
        ("smoothquant_export", "int8_sq", None, "none"),
        ("w4a8_export", "w4a8_awq", 32, "none"),
        ("nvfp4_export", "nvfp4", None, "none"),
    ],
)
def test_what_modelopt_itself_wrote_is_recognised_and_is_the_models(
    export: str, format_: str, group: int | None, cache: str, tiny_model: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(export).folder
    found = finished.recognise(folder, "org/it", "0123456789abcdef")
    assert (found.format, found.group_size, found.kv_cache, found.producer) == (format_, group, cache, "modelopt")
    assert len(found.layers) == 14
    assert "org/it, commit 0123456789ab, by modelopt" in found.provenance
    checked = inspected(tiny_model, folder)
    assert failed(checked) == {}
    assert [one.layer for one in checked.damage] == list(found.layers)
    assert all(0 < one.weight_error < 0.4 for one in checked.damage)


def test_bits_are_those_that_a_recipe_would_have(awq_export: Export, tiny_model: Path) -> None:
    from quantlab.calibrate.accounting import bits_per_weight

    found = finished.recognise(awq_export.folder, "it")
    assert found.bits_per_weight == round(bits_per_weight(awq_export.folder, tiny_model, found.layers), 3)


@pytest.mark.parametrize("layout", ["compressed-tensors", "autoawq"])
def test_conversions_are_the_models_too_although_scales_moved_between_layers(
    awq_export: Export, tiny_model: Path, tmp_path: Path, layout: Any
) -> None:
    convert(awq_export.folder, tmp_path / "q", layout, "average")
    found = inspected(tiny_model, tmp_path / "q")
    assert failed(found) == {}
    text = next(check.finding for check in found.checks if check.name == "weights")
    assert "scales were moved between" in text
    worst = max(one.weight_error for one in found.damage)
    assert worst < 0.35


def _lie(folder: Path, how: str) -> None:
    said = json.loads((folder / QUANT).read_text())
    inner = said["quantization"]
    match how:
        case "algorithm":
            inner["quant_algo"] = "W4A16_AWQ"
            say(folder, "config.json", quantization_config=None)
        case "excluded":
            inner["exclude_modules"] = ["lm_head", LAYER]
        case "hidden cache":
            scheme = {"num_bits": 8, "type": "float", "dynamic": False}
            config = json.loads((folder / "config.json").read_text())["quantization_config"]
            say(folder, "config.json", quantization_config=config | {"kv_cache_scheme": scheme})
        case "promised cache":
            inner["kv_cache_quant_algo"] = "FP8"
        case "secret cache":
            change(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.k_proj.k_scale": torch.ones(1)}))
        case "two words":
            inner["quant_algo"] = "NVFP4"
        case "no word":
            say(folder, "config.json", quantization_config=None)
            (folder / QUANT).unlink()
            return
    (folder / QUANT).write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("algorithm", "says W4A16_AWQ, and .* is F8_E4M3"),
        ("excluded", "says 16 bit of .*down_proj"),
        ("hidden cache", "kv_cache_scheme and hf_quant_config.json says 16 bit"),
        ("promised cache", "no scale of it is there"),
        ("secret cache", "says nothing of a key/value cache"),
        ("two words", "name different algorithms"),
        ("no word", "neither config.json nor hf_quant_config.json"),
    ],
)
def test_a_config_that_lies_is_found_before_anything_starts(
    fp8_export: Export, tmp_path: Path, how: str, text: str
) -> None:
    folder = copied(fp8_export.folder, tmp_path / "q")
    _lie(folder, how)
    with pytest.raises(Broken, match=text):
        finished.recognise(folder, "q")


def test_a_group_size_that_lies(int4_export: Export, tmp_path: Path) -> None:
    folder = copied(int4_export.folder, tmp_path / "q")
    said = json.loads((folder / QUANT).read_text())
    said["quantization"]["group_size"] = 64
    (folder / QUANT).write_text(json.dumps(said))
    with pytest.raises(Broken, match="says groups of 64"):
        finished.recognise(folder, "q")


def test_what_cannot_be_judged_is_refused_by_name(fp8_export: Export, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="in 16 bit") as plain:
        finished.recognise(tiny_model, "tiny")
    assert "--model" in plain.value.cure
    own_code = say(copied(fp8_export.folder, tmp_path / "code"), "config.json", auto_map={"AutoModel": "m.M"})
    with pytest.raises(Refused, match="code of its own"):
        finished.recognise(own_code, "code")
    pickled = copied(fp8_export.folder, tmp_path / "pickle")
    (pickled / MODEL).rename(pickled / "pytorch_model.bin")
    with pytest.raises(BadInput, match="runs code when it is opened"):
        finished.recognise(pickled, "pickle")
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(Refused, match="GGUF"):
        finished.recognise(gguf, "gguf")


def test_files_that_are_not_whole(fp8_export: Export, tmp_path: Path) -> None:
    folder = copied(fp8_export.folder, tmp_path / "q")
    data = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(data[:-100])
    with pytest.raises(Broken, match="cut off"):
        finished.recognise(folder, "q")
    (folder / MODEL).write_bytes(data)
    index = {"weight_map": {"a": MODEL, "b": "model-00002-of-00002.safetensors"}}
    (folder / f"{MODEL}.index.json").write_text(json.dumps(index))
    with pytest.raises(Broken, match="missing"):
        finished.recognise(folder, "q")


def _scale(value: float) -> Any:
    return lambda tensors: tensors.update({f"{LAYER}.weight_scale": tensors[f"{LAYER}.weight_scale"] * value})


def _norm(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.input_layernorm.weight"] *= 2


def _embedding(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.embed_tokens.weight"][7] += 0.5


def _swapped(tensors: dict[str, torch.Tensor]) -> None:
    one, other = (f"model.layers.{n}.mlp.down_proj" for n in (0, 1))
    for part in ("weight", "weight_scale"):
        tensors[f"{one}.{part}"], tensors[f"{other}.{part}"] = tensors[f"{other}.{part}"], tensors[f"{one}.{part}"]


@pytest.mark.parametrize(
    ("how", "check", "text"),
    [
        (_scale(float("nan")), "weights", "not finite"),
        (_scale(0.0), "weights", "zero"),
        (_scale(-1.0), "weights", "negative"),
        (_scale(1.5), "weights", "off by a factor of 1.50"),
        (_scale(4.0), "weights", "damaged"),
        (_swapped, "weights", "damaged"),
        (_norm, "kept", "input_layernorm"),
        (_embedding, "kept", "embed_tokens"),
        (lambda tensors: tensors.pop("model.norm.weight"), "kept", "1 missing"),
        (lambda tensors: tensors.update({"model.extra.weight": torch.ones(3)}), "kept", "of no layer"),
        (lambda tensors: tensors.pop(f"{LAYER}.input_scale"), "weights", "input_scale"),
    ],
)
def test_tampering_is_found_by_the_weights(
    fp8_export: Export, tiny_model: Path, tmp_path: Path, how: Any, check: str, text: str
) -> None:
    folder = change(copied(fp8_export.folder, tmp_path / "q"), how)
    assert text in failed(inspected(tiny_model, folder))[check]


def test_another_model_of_the_same_shape_is_found_by_its_weights(
    fp8_export: Export, tiny_model: Path, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    other = copied(tiny_model, tmp_path / "other")
    LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_model)).to(torch.bfloat16).save_pretrained(other)
    found = failed(inspected(other, fp8_export.folder))
    assert "another model's" in found["weights"]
    assert "embed_tokens" in found["kept"]


def test_configs_of_other_dimensions_or_rotary_bases_are_not_the_same(tiny_model: Path) -> None:
    one = weights.config(tiny_model)
    assert list(sameness.differences(one, one)) == []
    assert list(sameness.differences(one, one | {"hidden_size": 64, "rope_theta": 1})) != []
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 32.0}}
    old = {"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", "factor": 32}}
    assert list(sameness.differences(new, old)) == []
    assert list(sameness.differences(new, old | {"rope_scaling": None})) != []


def test_another_tokenizer_ends_it_and_another_template_is_said(
    fp8_export: Export, tiny_model: Path, tmp_path: Path
) -> None:
    folder = copied(fp8_export.folder, tmp_path / "q")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    found = inspected(tiny_model, folder)
    assert failed(found) == {}
    assert "another chat template" in next(check.finding for check in found.checks if check.name == "tokenizer")
    said = json.loads((folder / "tokenizer.json").read_text())
    said["model"]["merges"] = said["model"]["merges"][:-200]
    (folder / "tokenizer.json").write_text(json.dumps(said))
    assert "another tokenizer" in failed(inspected(tiny_model, folder))["tokenizer"]


def test_float16_and_a_written_out_head_are_the_same_numbers(
    int4_export: Export, tiny_model: Path, tmp_path: Path
) -> None:
    """AutoAWQ writes float16, and some programs write a tied head out."""
    convert(int4_export.folder, tmp_path / "q", autoawq.LAYOUT)

    def how(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {name: one.half() for name, one in tensors.items() if one.dtype is torch.bfloat16}
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    folder = say(change(tmp_path / "q", how), "config.json", dtype="float16")
    assert failed(inspected(tiny_model, folder)) == {}


def test_rubbish_is_an_error_with_a_cure(tmp_path: Path, fp8_export: Export) -> None:
    for name, text in (("config.json", "["), (QUANT, "{"), ("config.json", "{}")):
        folder = copied(fp8_export.folder, tmp_path / f"{name}{len(text)}")
        (folder / name).write_text(text)
        with pytest.raises(QuantlabError) as caught:
            finished.recognise(folder, "q")
        assert caught.value.cure
