"""Each check against an export that is damaged in exactly that way, and against one that is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantlab.calibrate import modelopt, presets, probe, quantizers, verify
from quantlab.records import FORMATS, Calibrated, CalibrateJob, VerifyJob
from quantlab.worker import Reporter
from tests.test_calibrate_modelopt import RECIPES, job

Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.1.mlp.up_proj"
DOWN = "model.layers.1.mlp.down_proj"
Made = tuple[CalibrateJob, Calibrated]


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    found = {}
    for name in ("fp8", "int4_awq", "int4", "fp8_rowwise", "int8_sq", "w4a8_awq", "nvfp4", "nvfp4_awq"):
        spec = job(tiny_model, tmp_path_factory.mktemp(name) / "made", name, kv_cache="none")
        found[name] = (spec, modelopt.run(spec, Reporter()))
    return found


def failed(one: Made, folder: Path) -> dict[str, str]:
    spec, calibrated = one
    request = VerifyJob(
        weights=spec.weights,
        recipe=spec.recipe,
        calibrated=calibrated,
        checkpoint_path=str(folder),
        device="cpu",
    )
    return {check.name: check.finding for check in verify.run(request, Reporter()).checks if not check.passed}


def damaged(one: Made, into: Path, edit: Callable[[dict[str, Tensor]], object]) -> dict[str, str]:
    """Copy the export, change its tensors, verify."""
    shutil.copytree(one[1].checkpoint.path, into)
    tensors = load_file(into / "model.safetensors")
    edit(tensors)
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    return failed(one, into)


@pytest.mark.parametrize(
    "name", ["fp8", "int4_awq", "int4", "fp8_rowwise", "int8_sq", "w4a8_awq", "nvfp4", "nvfp4_awq"]
)
def test_a_whole_export_passes(made: dict[str, Made], name: str) -> None:
    assert failed(made[name], Path(made[name][1].checkpoint.path)) == {}


def test_codes_divided_in_16_bit_as_on_a_gpu_are_the_source_too(made: dict[str, Made], tmp_path: Path) -> None:
    source, layers = load_file(Path(made["fp8"][0].weights.path) / "model.safetensors"), list[str]()

    def divide(tensors: dict[str, Tensor], by: float = 1.0) -> None:
        for name in (name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")):
            unit, weight = tensors[f"{name}.weight_scale"] * by, source[f"{name}.weight"]
            assert weight.dtype is torch.bfloat16
            twice = (weight / unit.reshape(())).clamp(-448, 448)
            assert twice.dtype is torch.bfloat16
            if not torch.equal(twice.float().to(torch.float8_e4m3fn).float(), tensors[f"{name}.weight"].float()):
                layers.append(name)
            tensors[f"{name}.weight"] = twice.to(torch.float8_e4m3fn)

    assert damaged(made["fp8"], tmp_path / "gpu", divide) == {}
    assert len(layers) > 5  # they do differ from those that are divided in float32
    found = damaged(made["fp8"], tmp_path / "off", lambda tensors: divide(tensors, 1.02))
    assert list(found) == ["weights"]


def _swap(tensors: dict[str, Tensor]) -> None:
    """Two layers of the same shape trade places, scales and all."""
    for part in ("weight", "weight_scale", "input_scale"):
        first, second = f"model.layers.0.mlp.up_proj.{part}", f"model.layers.1.mlp.up_proj.{part}"
        if first in tensors:
            tensors[first], tensors[second] = tensors[second], tensors[first]


def _unquantize(tensors: dict[str, Tensor]) -> None:
    scale = tensors.pop(f"{UP}.weight_scale")
    tensors.pop(f"{UP}.input_scale")
    tensors[f"{UP}.weight"] = (tensors[f"{UP}.weight"].float() * scale).bfloat16()


def _shift_codes(tensors: dict[str, Tensor]) -> None:
    tensors[f"{DOWN}.weight"] = tensors[f"{DOWN}.weight"].roll(1, 0)


def _fill(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q}.weight"] = torch.full((128, 128), 448.0).to(torch.float8_e4m3fn)


def _scaled(name: str, factor: float) -> Callable[[dict[str, Tensor]], None]:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name] * factor

    return edit


def _uneven_rows(tensors: dict[str, Tensor]) -> None:
    """A factor of down_proj that up_proj's rows did not get: +-20 %, small enough for the rounding error's limit."""
    scale = tensors[f"{UP}.weight_scale"].float()
    factor = torch.linspace(0.8, 1.2, len(scale)).unsqueeze(1)
    tensors[f"{UP}.weight_scale"] = (scale * factor).to(torch.float8_e4m3fn)


CASES: list[tuple[str, Callable[[dict[str, Tensor]], object], str, str]] = [
    ("fp8", _scaled(f"{Q}.weight_scale", 0.0), "scales", Q),
    ("fp8", _scaled(f"{Q}.weight_scale", float("nan")), "scales", Q),
    ("fp8", _scaled(f"{Q}.input_scale", -1.0), "scales", Q),
    ("fp8", lambda t: t.pop(f"{Q}.weight_scale"), "scales", Q),
    ("fp8", lambda t: t.pop(f"{UP}.input_scale"), "input_scale", UP),
    ("fp8", _scaled(f"{UP}.input_scale", 0.1), "reopened", UP),
    ("fp8", _scaled(f"{UP}.weight_scale", 1.3), "weights", UP),
    ("fp8", _unquantize, "coverage", UP),
    ("fp8", _unquantize, "size", "expected"),
    ("fp8", _swap, "weights", "up_proj"),
    ("fp8", _swap, "reopened", "up_proj"),
    ("fp8", lambda t: t.update({f"{Q}.pre_quant_scale": torch.ones(128)}), "pre_quant_scale", Q),
    ("fp8", _fill, "saturation", Q),
    ("fp8", lambda t: t.pop("model.norm.weight"), "coverage", "model.norm.weight"),
    ("int4_awq", lambda t: t.pop(f"{DOWN}.pre_quant_scale"), "pre_quant_scale", DOWN),
    ("int4_awq", _swap, "weights", "up_proj"),
    ("int4_awq", _shift_codes, "weights", DOWN),
    ("int4_awq", _scaled(f"{DOWN}.pre_quant_scale", 1.2), "reopened", DOWN),
    ("int4_awq", _scaled("model.layers.0.input_layernorm.weight", 1.5), "reopened", "logits"),
    ("int4_awq", lambda t: t.update({f"{Q}.input_scale": torch.ones(())}), "input_scale", Q),
    ("int4", _shift_codes, "weights", DOWN),
    ("int4", _scaled(f"{DOWN}.weight_scale", 0.9), "weights", DOWN),
    ("fp8_rowwise", _scaled(f"{UP}.weight_scale", 1.3), "weights", UP),
    ("fp8_rowwise", _shift_codes, "weights", DOWN),
    ("fp8_rowwise", lambda t: t.update({f"{UP}.input_scale": torch.ones(())}), "input_scale", UP),
    ("int8_sq", lambda t: t.pop(f"{DOWN}.pre_quant_scale"), "pre_quant_scale", DOWN),
    ("int8_sq", _scaled(f"{DOWN}.pre_quant_scale", 1.2), "reopened", DOWN),
    ("int8_sq", _scaled(f"{UP}.input_scale", 0.1), "reopened", UP),
    ("w4a8_awq", lambda t: t.pop(f"{UP}.input_scale"), "input_scale", UP),
    ("w4a8_awq", _scaled(f"{UP}.weight_scale_2", 0.2), "weights", UP),
    ("w4a8_awq", _scaled(f"{UP}.weight_scale_2", 0.0), "scales", UP),
    ("nvfp4", _scaled(f"{UP}.weight_scale_2", 1.3), "weights", UP),
    ("nvfp4", _scaled(f"{UP}.input_scale", 0.01), "reopened", UP),
    ("nvfp4", _shift_codes, "weights", DOWN),
    ("nvfp4_awq", _shift_codes, "weights", "model.layers.1.mlp."),
    ("nvfp4_awq", _uneven_rows, "weights", UP),
    ("nvfp4_awq", _swap, "weights", "up_proj"),
    ("nvfp4_awq", _scaled(f"{UP}.input_scale", 0.01), "reopened", UP),
    ("nvfp4", lambda t: t.pop(f"{UP}.weight_scale_2"), "weights", UP),
    ("int4", lambda t: t.update({f"{DOWN}.pre_quant_scale": torch.ones(256)}), "pre_quant_scale", DOWN),
]  # fmt: skip


@pytest.mark.parametrize(("name", "edit", "check", "words"), CASES)
def test_damage_is_found_by_its_check(
    made: dict[str, Made],
    tmp_path: Path,
    name: str,
    edit: Callable[[dict[str, Tensor]], object],
    check: str,
    words: str,
) -> None:
    found = damaged(made[name], tmp_path / "export", edit)
    assert words in found[check]


def test_words_that_contradict_the_recipe(made: dict[str, Made], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["int4_awq"][1].checkpoint.path, tmp_path / "a"))
    words = json.loads((folder / "hf_quant_config.json").read_text())
    words["quantization"]["group_size"] = 128
    (folder / "hf_quant_config.json").write_text(json.dumps(words))
    assert "group size 128 where 32 was meant" in failed(made["int4_awq"], folder)["metadata"]
    (folder / "hf_quant_config.json").unlink()
    assert "TensorRT-LLM" in failed(made["int4_awq"], folder)["metadata"]
    spec, calibrated = made["fp8"]
    other = msgspec.structs.replace(spec, recipe=made["int4"][0].recipe)
    assert "algorithm FP8" in failed((other, calibrated), Path(calibrated.checkpoint.path))["metadata"]


def test_a_tokenizer_that_does_not_load(made: dict[str, Made], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["fp8"][1].checkpoint.path, tmp_path / "a"))
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer does not load" in failed(made["fp8"], folder)["metadata"]


def test_a_cut_file_stops_everything(made: dict[str, Made], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["fp8"][1].checkpoint.path, tmp_path / "a"))
    os.truncate(folder / "model.safetensors", 1000)
    found = failed(made["fp8"], folder)
    assert list(found) == ["files"]
    assert "cut off" in found["files"]


def test_a_lost_probe_is_a_failed_check(made: dict[str, Made], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["fp8"][1].checkpoint.path, tmp_path / "a"))
    shutil.rmtree(folder / "quantlab")
    assert "probe" in failed(made["fp8"], folder)["reopened"]


@pytest.mark.parametrize("name", ["fp8", "int4_awq", "w4a8_awq", "int8_sq", "fp8_rowwise", "mxfp8"])
def test_the_probe_rounds_each_weight_once_and_says_what_each_layer_gives(
    tiny_model: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers for the quantizer while a layer repeats its rows; afterwards the quantizer is itself again."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import SequentialQuantizer, TensorQuantizer
    from transformers import AutoModelForCausalLM

    named = {each: getattr(mtq, each) for each in dir(mtq) if each.endswith("_CFG")}
    group = 32 if FORMATS[RECIPES[name].format].grouped else None
    config = presets.configuration(RECIPES[name], group, named)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    layers = quantizers.insert(model, config)
    given = probe.inputs(None, model.config.vocab_size)
    with torch.inference_mode():
        mtq.calibrate(model, config["algorithm"], forward_loop=lambda one: one(**given))
    weights = {model.get_submodule(f"{layer}.weight_quantizer"): layer for layer in layers}
    rounded: Counter[str] = Counter()
    for kind in (TensorQuantizer, SequentialQuantizer):
        real = kind.forward

        def counted(self: nn.Module, *given: Tensor, real: Callable[..., Tensor] = real) -> Tensor:
            rounded.update([weights[self]] if self in weights else [])
            return real(self, *given)

        monkeypatch.setattr(kind, "forward", counted)

    kept = probe.record(model, layers, given)

    assert rounded == dict.fromkeys(layers, 1)
    for layer in layers:
        assert torch.equal(kept[f"y.{layer}"], probe.output(model, layer, kept[f"x.{layer}"]))
    assert rounded == dict.fromkeys(layers, 2)


def test_a_range_for_each_token_is_probed_as_it_computes(tiny_model: Path, tmp_path: Path) -> None:
    """ModelOpt's dynamic ranges round nothing when an axis is missing: the probe would then hold exact outputs."""
    spec = job(tiny_model, tmp_path / "made", "fp8_rowwise")
    one = (spec, modelopt.run(spec, Reporter()))
    assert failed(one, Path(one[1].checkpoint.path)) == {}
    kept = probe.load(Path(one[1].checkpoint.path))
    source = load_file(Path(spec.weights.path) / "model.safetensors")
    codes = load_file(Path(one[1].checkpoint.path) / "model.safetensors")
    for layer in (Q, UP, DOWN):
        weight = codes[f"{layer}.weight"].float() * codes[f"{layer}.weight_scale"].unsqueeze(1)
        exact = kept[f"x.{layer}"] @ weight.T
        rounded = probe.distance(exact, kept[f"y.{layer}"])
        assert 0.01 < rounded < 0.05, layer  # only the activations' rounding
        assert probe.distance(source[f"{layer}.weight"].float(), weight) < 0.03


def test_what_smoothquant_gives_up_for_an_outlier_is_no_fault(tiny_model: Path, tmp_path: Path) -> None:
    """One input channel of down_proj is hundreds of times the others: its column sets the scale of every row."""
    source = Path(shutil.copytree(tiny_model, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors[f"{UP}.weight"][7] *= 3000
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    spec = job(source, tmp_path / "made", "int8_sq")
    one = (spec, modelopt.run(spec, Reporter()))
    folder = Path(one[1].checkpoint.path)
    assert failed(one, folder) == {}
    stored = load_file(folder / "model.safetensors")
    made = stored[f"{DOWN}.weight"].float() * stored[f"{DOWN}.weight_scale"].unsqueeze(1)
    moved = made * stored[f"{DOWN}.pre_quant_scale"].float()
    assert probe.distance(tensors[f"{DOWN}.weight"].float(), moved) > 0.06  # large among the source's numbers
    assert "weights" in damaged(one, tmp_path / "damaged", _shift_codes)
