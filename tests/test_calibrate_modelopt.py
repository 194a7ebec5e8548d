"""Real ModelOpt on a real, tiny Llama: what is exported, what is refused before it costs anything."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantlab import weights as folders
from quantlab.calibrate import modelopt, presets, probe, quantizers, verify
from quantlab.calibrate.feed import choose_batch
from quantlab.errors import BadInput, Broken, Refused
from quantlab.records import (
    FORMATS,
    Calibrated,
    CalibrateJob,
    Calibration,
    CalibrationSet,
    Event,
    Model,
    QuantizerOverride,
    Recipe,
    VerifyJob,
    Weights,
)
from quantlab.worker import Reporter

ROOT = Path(__file__).resolve().parent.parent
SET = CalibrationSet(summary="", source="file", file="python-docs.txt")
DATA = Calibration(samples=4, length=32)
RECIPES = {
    "bf16": Recipe(summary="", preset=None, format="bf16"),
    "fp8": Recipe(summary="", preset="FP8_DEFAULT_CFG", format="fp8", kv_cache="fp8", calibration=DATA),
    "fp8_rowwise": Recipe(summary="", preset="FP8_PER_CHANNEL_PER_TOKEN_CFG", format="fp8_rowwise"),
    "int8_sq": Recipe(summary="", preset="INT8_SMOOTHQUANT_CFG", format="int8_sq", calibration=DATA),
    "int4_awq": Recipe(summary="", preset="INT4_AWQ_CFG", format="int4_awq", calibration=DATA),
    "w4a8_awq": Recipe(summary="", preset="W4A8_AWQ_BETA_CFG", format="w4a8_awq", calibration=DATA),
    "nvfp4": Recipe(summary="", preset="NVFP4_DEFAULT_CFG", format="nvfp4", calibration=DATA),
    "nvfp4_awq": Recipe(summary="", preset="NVFP4_AWQ_LITE_CFG", format="nvfp4_awq", calibration=DATA),
    "mxfp8": Recipe(summary="", preset="MXFP8_DEFAULT_CFG", format="mxfp8"),
    "mxfp4": Recipe(summary="", preset="MXFP4_DEFAULT_CFG", format="mxfp4"),
    "int8_wo": Recipe(summary="", preset="INT8_WEIGHT_ONLY_CFG", format="int8_wo"),
    "int4": Recipe(summary="", preset="INT4_BLOCKWISE_WEIGHT_ONLY_CFG", format="int4"),
    "int2": Recipe(
        summary="",
        preset="INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
        format="int4",
        export="folded",
        overrides=(QuantizerOverride(quantizer="*weight_quantizer", num_bits=2),),
    ),
    "awq_folded": Recipe(summary="", preset="INT4_AWQ_CFG", format="int4", export="folded", calibration=DATA),
}


def weights_of(folder: Path) -> Weights:
    return Weights(
        path=str(folder),
        digest=folders.digest_folder(folder),
        architecture=folders.architecture(folder),
        bytes=folders.weight_bytes(folder),
    )


def job(source: Path, into: Path, name: str, group: int = 32, **changes: Any) -> CalibrateJob:
    recipe = msgspec.structs.replace(RECIPES[name], **changes)
    grouped = FORMATS[recipe.format].grouped
    return CalibrateJob(
        weights=weights_of(source),
        model=Model(word="tiny", source="path", location=str(source), chat=True),
        recipe=recipe,
        recipe_name=name,
        group_size=group if grouped else None,
        set=SET if recipe.calibration else None,
        set_folder=str(ROOT / "calibration" / "sets"),
        into=str(into),
        device="cpu",
    )


def check(spec: CalibrateJob, made: Calibrated) -> dict[str, tuple[bool, str]]:
    request = VerifyJob(
        weights=spec.weights,
        recipe=spec.recipe,
        calibrated=made,
        checkpoint_path=made.checkpoint.path,
        device="cpu",
    )
    return {one.name: (one.passed, one.finding) for one in verify.run(request, Reporter()).checks}


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_exported_is_what_was_calibrated(tiny_model: Path, tmp_path: Path, name: str) -> None:
    spec = job(tiny_model, tmp_path / "made", name)
    made = modelopt.run(spec, Reporter())
    checks = check(spec, made)
    assert {one: finding for one, (passed, finding) in checks.items() if not passed} == {}
    folder = Path(made.checkpoint.path)
    assert made.checkpoint.digest == folders.digest_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ([] if name == "bf16" else ["made"])
    if name == "bf16":
        assert folder == tiny_model
        return
    assert len(made.layers) == 14
    assert folders.config(folder)["dtype"] == "bfloat16"
    assert (folder / "chat_template.jinja").read_bytes() == (tiny_model / "chat_template.jinja").read_bytes()
    assert str(tiny_model) not in (folder / "config.json").read_text()
    assert "model.embed_tokens.weight" in folders.shapes(folder)
    bits = {
        "fp8": 8.0,
        "fp8_rowwise": 8.25,
        "int8_sq": 8.35,
        "int8_wo": 8.25,
        "w4a8_awq": 5.0,
        "nvfp4": 4.5,
        "nvfp4_awq": 4.5,
        "mxfp8": 8.25,
        "mxfp4": 4.25,
        "int4": 5.0,
        "int4_awq": 5.0,
        "int2": 16.0,
        "awq_folded": 16.0,
    }[name]
    assert made.checkpoint.bits_per_weight == pytest.approx(bits, abs=0.2)


def test_a_second_run_gives_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    first = modelopt.run(job(tiny_model, tmp_path / "a", "int4_awq"), Reporter())
    second = modelopt.run(job(tiny_model, tmp_path / "b", "int4_awq"), Reporter())
    assert first.checkpoint.digest == second.checkpoint.digest
    assert first.calibration_digest == second.calibration_digest


def test_progress_is_honest(tiny_model: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    modelopt.run(job(tiny_model, tmp_path / "made", "int4_awq"), Reporter(events.append))
    steps = [(one.done, one.total) for one in events if one.kind == "progress" and one.total > 1]
    assert steps == sorted(steps)
    assert steps[-1] == (26, 26)  # 2 layers, once to measure (1 each) and once to search (12 each)


def test_two_bits_destroy_and_eight_do_not(tiny_model: Path, tmp_path: Path) -> None:
    def error(name: str) -> float:
        spec = job(tiny_model, tmp_path / name, name)
        _, finding = check(spec, modelopt.run(spec, Reporter()))["weights"]
        return float(finding.split("error ")[1].split("%")[0])

    assert error("fp8") < 3.5 < 8 < error("int4") < 15 < 50 < error("int2")


def test_an_override_leaves_a_layer_out(tiny_model: Path, tmp_path: Path) -> None:
    off = QuantizerOverride(quantizer="*layers.1.mlp.down_proj.*", enable=False)
    spec = job(tiny_model, tmp_path / "made", "fp8", kv_cache="none", overrides=(off,))
    made = modelopt.run(spec, Reporter())
    assert len(made.layers) == 13
    assert all(passed for passed, _ in check(spec, made).values())
    stored = load_file(Path(made.checkpoint.path) / "model.safetensors")
    assert stored["model.layers.1.mlp.down_proj.weight"].dtype is torch.bfloat16


def poisoned(source: Path, into: Path, value: float) -> Path:
    shutil.copytree(source, into)
    tensors = load_file(into / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    return into


@pytest.mark.parametrize("name", ["bf16", "fp8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(tiny_model: Path, tmp_path: Path, name: str, value: float) -> None:
    source = poisoned(tiny_model, tmp_path / "source", value)
    with pytest.raises(Broken, match=r"1 of 32,768 weights of model\.layers\.1\.mlp\.up_proj\.weight"):
        modelopt.run(job(source, tmp_path / "made", name), Reporter())
    assert not (tmp_path / "made").exists()


def test_a_group_that_does_not_divide_is_refused_before_calibrating(tiny_model: Path, tmp_path: Path) -> None:
    spec = msgspec.structs.replace(job(tiny_model, tmp_path / "made", "int4_awq"), group_size=48)
    with pytest.raises(Refused, match="128 is no multiple of the group size 48"):
        modelopt.run(spec, Reporter())


def test_an_architecture_nobody_generates_with_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    small = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32)
    ViTModel(small).save_pretrained(tmp_path / "vit")
    shutil.copyfile(tiny_model / "tokenizer.json", tmp_path / "vit" / "tokenizer.json")
    with pytest.raises(Refused, match="transformers cannot load it"):
        modelopt.run(job(tmp_path / "vit", tmp_path / "made", "fp8"), Reporter())


def test_nothing_to_quantize_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    off = QuantizerOverride(quantizer="*", enable=False)
    with pytest.raises(Refused, match="ModelOpt"):
        modelopt.run(job(tiny_model, tmp_path / "made", "fp8", kv_cache="none", overrides=(off,)), Reporter())


def test_a_format_without_an_export_is_refused_with_the_way_out(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no export") as raised:
        modelopt.run(job(tiny_model, tmp_path / "made", "int2", export="unified"), Reporter())
    assert "export: folded" in raised.value.cure
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_preset_gets_a_suggestion(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no preset 'FP8_DEFALT_CFG'") as raised:
        modelopt.run(job(tiny_model, tmp_path / "made", "fp8", preset="FP8_DEFALT_CFG"), Reporter())
    assert "FP8_DEFAULT_CFG" in raised.value.cure


def test_samples_longer_than_the_context_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    long = Calibration(samples=1, length=2048)
    with pytest.raises(BadInput, match="2048 tokens do not fit its context of 1024"):
        modelopt.run(job(tiny_model, tmp_path / "made", "fp8", calibration=long), Reporter())


def test_a_quantizer_that_saw_nothing_is_named(tiny_model: Path) -> None:
    import modelopt.torch.quantization as mtq
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.randint(512, (2, 16), generator=torch.Generator().manual_seed(0))
    mtq.quantize(model, mtq.FP8_DEFAULT_CFG, forward_loop=lambda m: m(ids))
    quantizers.check_saw_data(model)
    model.model.layers[1].mlp.up_proj.input_quantizer.reset_amax()
    with pytest.raises(Broken, match=r"1 quantizers saw no usable data, e\.g\. model\.layers\.1\.mlp\.up_proj\.input"):
        quantizers.check_saw_data(model)


def test_an_override_does_not_switch_the_head_on() -> None:
    known = {"P": {"quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}}},
        {"quantizer_name": "*lm_head*", "enable": False},
    ], "algorithm": "max"}}  # fmt: skip
    changes = (
        QuantizerOverride(quantizer="*", enable=False),
        QuantizerOverride(quantizer="*weight_quantizer", num_bits=2),
        QuantizerOverride(quantizer="*down_proj.weight_quantizer", num_bits=8, axis=0),
    )
    made = presets.configuration(Recipe(summary="", preset="P", format="int4", overrides=changes), 64, known)
    entries = made["quant_cfg"]
    assert [one["quantizer_name"] for one in entries][1:] == [
        "*weight_quantizer",
        "*lm_head*",
        "*",
        changes[2].quantizer,
    ]
    assert entries[1]["cfg"] == {"num_bits": 2, "block_sizes": {-1: 64, "type": "static"}}
    assert entries[3] == {"quantizer_name": "*", "enable": False}
    assert entries[4]["cfg"] == {"num_bits": 8, "axis": 0, "block_sizes": None}
    assert known["P"]["quant_cfg"][1]["cfg"]["num_bits"] == 4  # type: ignore[index]


def test_batches(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    asked = Calibration(samples=32, length=64)
    assert choose_batch(asked, model, together=True) == 32
    assert choose_batch(asked, model, together=False) == 8
    assert choose_batch(msgspec.structs.replace(asked, batch=5), model, together=True) == 5
    huge = Calibration(samples=10**9, length=1024)
    assert 1 <= choose_batch(huge, model, together=True) < 10**9


def test_a_probe_that_is_not_finite_is_infinitely_far() -> None:
    kept = torch.ones(3)
    assert probe.distance(kept, torch.tensor([1.0, float("nan"), 1.0])) == float("inf")
    assert probe.distance(kept, kept) == 0
