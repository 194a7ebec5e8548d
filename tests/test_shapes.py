"""Random small shapes of Llama and Mllama: calibrated, exported, reopened with equal outputs, or refused by the plan.

Widths that no group divides, heads whose number times width is not the hidden size, one key/value head for all queries,
tied and untied heads: drawn from a seed, so that a failure can be repeated by its number. What must never happen is a
third way: a plan that promises and an export that breaks, or one that is another model than the calibrated one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import torch

from quantlab import catalog, plans
from quantlab.calibrate import modelopt
from quantlab.formats.modelopt import open_model
from quantlab.records import FORMATS, Calibration, Host, Recipe
from quantlab.worker import Reporter
from tests.test_calibrate_modelopt import RECIPES, check, job
from tests.test_calibrate_pictures import MODEL, seeing

HOST = Host(system="Linux", python="3.11", cpu="x", cores=2, memory_bytes=64 * 2**30, versions={})
DATA = Calibration(samples=2, length=24)
NAMES = ("fp8", "int4_awq", "nvfp4", "int4", "w4a8_awq", "int8_sq", "fp8_rowwise", "mxfp8", "nvfp4_awq")
LLAMAS = range(18)


def shape(number: int) -> dict[str, Any]:
    """Dimensions of a Llama; every second one has widths that are multiples of 16 only by chance."""
    rng = Random(f"llama {number}")
    odd = number % 2 == 1
    heads = rng.choice((2, 4, 6))
    return {
        "hidden_size": heads * rng.choice((9, 11, 17, 18) if odd else (16, 32)),
        "intermediate_size": rng.choice((90, 77, 50, 144) if odd else (64, 160, 192)),
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([each for each in (1, 2, 3, heads) if heads % each == 0]),
        "head_dim": rng.choice((10, 14, 24) if odd else (16, 32)),
        "tie_word_embeddings": rng.random() < 0.5,
        "num_hidden_layers": 2,
    }


def llama(folder: Path, words: Path, dimensions: dict[str, Any]) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, max_position_embeddings=256, initializer_range=0.1, bos_token_id=0, eos_token_id=1, **dimensions
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(words / name, folder / name)
    return folder


def planned(folder: Path, name: str, recipe: Recipe) -> plans.Plan:
    return plans.plan(catalog.model(str(folder)), folder, name, recipe, HOST, None, None, 10**12, device="cpu")


def grouped(name: str, **changes: Any) -> Recipe:
    record = RECIPES[name]
    size = "auto" if FORMATS[record.format].grouped else None
    return msgspec.structs.replace(record, group_size=size, **changes)


def refusals(made: plans.Plan) -> str:
    return " ".join(made.refusals)


def test_the_shapes_are_odd_enough() -> None:
    found = [shape(number) for number in LLAMAS]
    assert {each["tie_word_embeddings"] for each in found} == {True, False}
    assert len({each["num_attention_heads"] // each["num_key_value_heads"] for each in found}) >= 3
    assert any(each["num_attention_heads"] * each["head_dim"] != each["hidden_size"] for each in found)
    assert any(each["intermediate_size"] % 2 for each in found)


@pytest.mark.parametrize("number", LLAMAS)
def test_a_llama_is_exported_as_calibrated_or_refused(number: int, tiny_model: Path, tmp_path: Path) -> None:
    name = NAMES[number % len(NAMES)]
    recipe = grouped(name, calibration=DATA if RECIPES[name].calibration else None)
    folder = llama(tmp_path / "model", tiny_model, shape(number))
    made = planned(folder, name, recipe)
    if made.refusals:
        assert "width" in refusals(made), made.refusals
        assert number % 2 == 1, "even widths are nobody's trouble"
        return
    spec = msgspec.structs.replace(job(folder, tmp_path / "made", name), recipe=recipe, group_size=made.group_size)
    calibrated = modelopt.run(spec, Reporter())
    failed = {one: finding for one, (passed, finding) in check(spec, calibrated).items() if not passed}
    assert failed == {}
    assert len(calibrated.layers) == 14
    _computes(Path(calibrated.checkpoint.path))


def _computes(export: Path) -> None:
    """`verify` held layers and logits against the calibrated model; here the export is opened as an engine would."""
    ids = torch.arange(2, 50)[None]
    first, second = (open_model(export, torch.float32, "cpu", native_fp8=False) for _ in range(2))
    with torch.inference_mode():
        got, again = first(ids).logits, second(ids).logits
    assert got.shape == (1, 48, 512)
    assert torch.isfinite(got).all()
    assert torch.equal(got, again)


@pytest.mark.parametrize("name", ["int4_awq", "nvfp4", "w4a8_awq", "int4"])
def test_widths_that_nothing_divides_are_refused_beforehand(name: str, tiny_model: Path, tmp_path: Path) -> None:
    dimensions = shape(0) | {"hidden_size": 100, "intermediate_size": 77}
    made = planned(llama(tmp_path / "model", tiny_model, dimensions), name, grouped(name))
    assert "100" in refusals(made)
    assert "fp8" in refusals(made), "with a cure"


@pytest.mark.parametrize(("number", "name"), [(0, "fp8"), (1, "int4_awq"), (2, "fp8")])
def test_an_mllama_is_exported_as_calibrated_or_refused(number: int, name: str, tmp_path: Path) -> None:
    folder = mllama(tmp_path / "model", number)
    recipe = grouped(name, kv_cache="none", calibration=Calibration(samples=2, length=24, images=4))
    made = planned(folder, name, recipe)
    if made.refusals:
        assert "width" in refusals(made), made.refusals
        return
    spec = seeing(folder, tmp_path / "made", name)
    spec = msgspec.structs.replace(spec, recipe=recipe, group_size=made.group_size)
    calibrated = modelopt.run(spec, Reporter())
    assert {one: finding for one, (passed, finding) in check(spec, calibrated).items() if not passed} == {}
    assert sum(".cross_attn." in layer for layer in calibrated.layers) == 4


def mllama(folder: Path, number: int) -> Path:
    """Random weights in a random shape, with the small model's tokenizer, processor and vision tower."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    rng = Random(f"mllama {number}")
    shutil.copytree(MODEL, folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    heads, kv, width = rng.choice(((4, 2, 16), (4, 1, 16), (6, 3, 16), (2, 2, 32)))
    text = config["text_config"] | {
        "num_hidden_layers": 3,
        "cross_attention_layers": [1],
        "hidden_size": heads * width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": rng.choice((64, 112, 144)),
    }
    torch.manual_seed(number)
    model = MllamaForConditionalGeneration(MllamaConfig(**(config | {"text_config": text})))
    for name, parameter in model.named_parameters():
        if "gate" in name.rpartition(".")[2] and parameter.numel() == 1:
            torch.nn.init.constant_(parameter, 0.5)  # zero would hide what the cross-attention layer computes
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder
