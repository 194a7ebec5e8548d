"""The linter for TensorRT-LLM: real exports pass once transformers 4 can read them, and each fault is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from quantlab import weights
from quantlab.errors import BadInput
from quantlab.formats.lint import lint_trtllm
from quantlab.formats.transformers4 import as_transformers4
from tests.trtllm_standin import ROPE, checkpoint, save

FORMATS = [
    ("bf16", None),
    ("fp8", None),
    ("fp8", "FP8"),
    ("int4_awq", None),
    ("fp8_rowwise", None),
    ("w4a8_awq", None),
    ("nvfp4", None),
]


def faults(folder: Path) -> dict[str, str]:
    return {check.name: check.finding for check in lint_trtllm(folder) if not check.passed}


def finding(folder: Path, name: str) -> str:
    return next(check.finding for check in lint_trtllm(folder) if check.name == name)


@pytest.mark.parametrize(("format_", "kv"), FORMATS)
def test_a_whole_checkpoint_passes_once_transformers_4_can_read_it(
    tmp_path: Path, format_: str, kv: str | None
) -> None:
    source = checkpoint(tmp_path / "source", format_, kv=kv)
    assert set(faults(source)) == {"rope", "tokenizer"}
    assert faults(as_transformers4(source, tmp_path / "made")) == {}


def test_what_is_made_says_both_spellings_and_links_the_rest(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "int4_awq")
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    for _ in range(2):  # twice is as good as once
        made = as_transformers4(source, tmp_path / "made")
    config = weights.config(made)
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"] == {name: value for name, value in ROPE.items() if name != "rope_theta"}
    assert config["rope_parameters"] == ROPE
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert json.loads((made / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (made / "model.safetensors").is_symlink()
    assert (made / "model.safetensors").read_bytes() == before["model.safetensors"]
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before
    assert sorted(file.name for file in made.iterdir()) == sorted(before)
    tmp_path.joinpath("made").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "model.safetensors").is_file(), "links are relative"


def test_a_text_config_is_rewritten_too_and_nothing_is_overruled(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "bf16")
    inner = weights.config(source) | {"rope_theta": 7.0}
    (source / "config.json").write_text(json.dumps({"architectures": ["MllamaX"], "text_config": inner}))
    made = weights.config(as_transformers4(source, tmp_path / "made"))["text_config"]
    assert made["rope_theta"] == 7.0
    assert made["rope_scaling"]["factor"] == 32.0


Change = Callable[[dict[str, Any], dict[str, Any], dict[str, tuple[str, list[int]]]], None]
AT = "model.layers.0"
CASES: dict[str, tuple[str, str, str, Change]] = {
    "no group size": ("int4_awq", "group_size", "missing", lambda c, q, t: q.pop("group_size")),
    "algorithm": ("fp8", "metadata", "'FP9'", lambda c, q, t: q.update(quant_algo="FP9")),
    "no algorithm": ("fp8", "metadata", "None", lambda c, q, t: q.pop("quant_algo")),
    "cache": ("fp8", "metadata", "INT8", lambda c, q, t: q.update(kv_cache_quant_algo="INT8")),
    "exclusions": ("fp8", "metadata", "list", lambda c, q, t: q.update(exclude_modules="lm_head")),
    "cache scale": ("fp8", "kv_cache", "v_scale", lambda c, q, t: t.pop(f"{AT}.self_attn.v_proj.v_scale")),
    "input scale": ("fp8", "layers", "input_scale is missing", lambda c, q, t: t.pop(f"{AT}.mlp.up_proj.input_scale")),
    "fp8 type": (
        "fp8",
        "layers",
        "not F8_E4M3",
        lambda c, q, t: t.update({f"{AT}.mlp.up_proj.weight": ("U8", [512, 256])}),
    ),
    "scale shape": (
        *("fp8", "layers", "not one F32"),
        lambda c, q, t: t.update({f"{AT}.mlp.up_proj.weight_scale": ("F32", [512])}),
    ),
    "not packed": (
        *("int4_awq", "layers", "not U8"),
        lambda c, q, t: t.update({f"{AT}.mlp.up_proj.weight": ("BF16", [512, 256])}),
    ),
    "groups": ("int4_awq", "layers", "do not divide by groups of 96", lambda c, q, t: q.update(group_size=96)),
    "other groups": ("int4_awq", "layers", "not [256, 8]", lambda c, q, t: q.update(group_size=64)),
    "int4 scale": ("int4_awq", "layers", "missing", lambda c, q, t: t.pop(f"{AT}.mlp.up_proj.weight_scale")),
    "lost pre_quant_scale": (
        *("int4_awq", "layers", "o_proj.pre_quant_scale is missing"),
        lambda c, q, t: t.pop(f"{AT}.self_attn.o_proj.pre_quant_scale"),
    ),
    "dropped pre_quant_scale": (
        *("int4_awq", "layers", "would be dropped"),
        lambda c, q, t: t.update({f"{AT}.self_attn.q_proj.pre_quant_scale": ("BF16", [256])}),
    ),
    "row scale": (
        *("fp8_rowwise", "layers", "not 512 of F32"),
        lambda c, q, t: t.update({f"{AT}.mlp.up_proj.weight_scale": ("F32", [])}),
    ),
    "second scale": (
        *("w4a8_awq", "layers", "weight_scale_2 is missing"),
        lambda c, q, t: t.pop(f"{AT}.mlp.up_proj.weight_scale_2"),
    ),
    "block scale": (
        *("nvfp4", "layers", "not F8_E4M3 [512, 16]"),
        lambda c, q, t: t.update({f"{AT}.mlp.up_proj.weight_scale": ("F32", [512, 16])}),
    ),
    "all excluded": ("fp8", "layers", "no quantized layer", lambda c, q, t: q.update(exclude_modules=["*"])),
    "incomplete rope": (
        "fp8",
        "rope",
        "lacks low_freq_factor",
        lambda c, q, t: c["rope_scaling"].pop("low_freq_factor"),
    ),
    "rope of zero": ("fp8", "rope", "lacks factor", lambda c, q, t: c["rope_scaling"].update(factor=0)),
    "lost scaling": ("fp8", "rope", "scales nothing", lambda c, q, t: c.pop("rope_scaling")),
    "lost base": ("fp8", "rope", "takes 10000", lambda c, q, t: c.pop("rope_theta")),
}


@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_found_and_named(tmp_path: Path, case: str) -> None:
    format_, name, words, change = CASES[case]
    source = checkpoint(tmp_path / "source", format_, kv="FP8" if format_ == "fp8" else None)
    made = as_transformers4(source, tmp_path / "made")
    config = weights.config(made)
    quantization = json.loads((source / "hf_quant_config.json").read_text())
    tensors = {n: (one["dtype"], one["shape"]) for n, one in weights.headers(source).items()}
    change(config, quantization["quantization"], tensors)
    (made / "config.json").write_text(json.dumps(config))
    (source / "hf_quant_config.json").write_text(json.dumps(quantization))
    save(source, tensors)
    found = faults(made)
    assert words in found[name]


def test_no_quantization_file_no_tokenizer_and_no_weights_are_findings(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "fp8")
    (source / "hf_quant_config.json").unlink()
    (source / "tokenizer.json").unlink()
    found = faults(source)
    assert "taken for 16 bit" in found["metadata"]
    assert "No tokenizer" in found["tokenizer"]
    assert "not in 16 bit" in found["layers"]
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[:-1])
    assert "cut off" in faults(source)["weights"]
    (source / "config.json").unlink()
    with pytest.raises(BadInput):
        lint_trtllm(source)


def test_a_shard_that_is_missing_is_found(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "bf16")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors" in faults(source)["weights"]


@pytest.mark.parametrize("rubbish", ["", "[]", "{", '{"quantization": 3}'])
def test_rubbish_instead_of_the_quantization_file_is_a_finding(tmp_path: Path, rubbish: str) -> None:
    source = checkpoint(tmp_path / "source", "fp8")
    (source / "hf_quant_config.json").write_text(rubbish)
    assert "metadata" in faults(source)


def test_128_is_tested_and_other_group_sizes_are_flagged(tmp_path: Path) -> None:
    assert "untested" not in finding(checkpoint(tmp_path / "a", "int4_awq"), "group_size")
    assert "untested" in finding(checkpoint(tmp_path / "b", "int4_awq", group=64), "group_size")


def test_real_exports_of_modelopt(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for fixture in ("fp8_kv_export", "awq_export"):
        made = as_transformers4(request.getfixturevalue(fixture).folder, tmp_path / fixture)
        assert faults(made) == {}
    assert "untested" in finding(made, "group_size")
    rounded = as_transformers4(request.getfixturevalue("int4_export").folder, tmp_path / "int4")
    assert "pre_quant_scale is missing" in faults(rounded)["layers"]


def test_w4a8_layers_that_are_fused_must_share_their_scales(tmp_path: Path, tiny_w4a8: Path) -> None:
    made = as_transformers4(tiny_w4a8, tmp_path / "made")
    assert faults(made) == {}  # ModelOpt's own export does
    copy = Path(shutil.copytree(tiny_w4a8, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    tensors[f"{AT}.self_attn.v_proj.input_scale"] *= 2
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert "v_proj.input_scale differs" in faults(as_transformers4(copy, tmp_path / "again"))["layers"]
