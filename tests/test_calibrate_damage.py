"""The damage of each layer: against ModelOpt's own arithmetic, against exports damaged in one known place."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantlab.calibrate import damage, modelopt, probe, verify
from quantlab.calibrate.exported import Exported
from quantlab.records import Calibrated, CalibrateJob, LayerDamage, VerifyJob
from quantlab.worker import Reporter
from tests.test_calibrate_modelopt import job

Q, UP, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"
NAMES = ("fp8", "fp8_rowwise", "int8_sq", "w4a8_awq", "nvfp4", "nvfp4_awq", "int4_awq", "int4", "int2", "awq_folded")
Made = tuple[CalibrateJob, Calibrated]


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    found = {}
    for name in NAMES:
        spec = job(tiny_model, tmp_path_factory.mktemp(name) / "made", name, kv_cache="none")
        found[name] = (spec, modelopt.run(spec, Reporter()))
    return found


def request(one: Made, folder: Path | None = None) -> VerifyJob:
    spec, calibrated = one
    return VerifyJob(
        weights=spec.weights,
        recipe=spec.recipe,
        calibrated=calibrated,
        checkpoint_path=str(folder or calibrated.checkpoint.path),
        device="cpu",
    )


def located(one: Made, folder: Path | None = None) -> dict[str, LayerDamage]:
    return {each.layer: each for each in damage.locate(Exported.open(request(one, folder)))}


def mean(found: dict[str, LayerDamage]) -> float:
    return sum(each.weight_error for each in found.values()) / len(found)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_modelopts_own_arithmetic_gives(made: dict[str, Made], name: str) -> None:
    """The probe holds what the fake-quantized model made of the same inputs, computed by ModelOpt."""
    spec, calibrated = made[name]
    found = located(made[name])
    assert tuple(found) == calibrated.layers
    kept = probe.load(Path(calibrated.checkpoint.path))
    source = load_file(Path(spec.weights.path) / "model.safetensors")
    moved = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj") if "awq" in name or name == "int8_sq" else ()
    moved += ("down_proj",) if name == "nvfp4_awq" else ()
    for layer, one in found.items():
        if one.kind in moved:
            continue
        x, y = kept[f"x.{layer}"].float(), kept[f"y.{layer}"]
        theirs = probe.distance(x @ source[f"{layer}.weight"].float().T, y)
        assert one.output_error == pytest.approx(theirs, rel=0.05), layer
        assert one.weights == source[f"{layer}.weight"].numel()


def test_precisions_come_in_their_order(made: dict[str, Made]) -> None:
    errors = {name: mean(located(one)) for name, one in made.items()}
    assert 0.002 < errors["int8_sq"] < 0.02 < errors["fp8_rowwise"] < errors["fp8"] * 1.02 < 0.035
    assert 0.07 < errors["nvfp4"] < 0.15
    assert errors["nvfp4_awq"] == pytest.approx(errors["nvfp4"], rel=0.2)  # up_proj's rows and down_proj's columns too
    assert errors["w4a8_awq"] == pytest.approx(errors["int4_awq"], rel=0.2)
    assert 0.07 < errors["int4"] < 0.15
    assert errors["int4_awq"] == pytest.approx(errors["int4"], rel=0.3)  # what AWQ moved is undone
    assert errors["awq_folded"] == pytest.approx(errors["int4_awq"], rel=0.05)
    assert errors["int2"] > 0.5
    bits = {name: {each.bits for each in located(one).values()} for name, one in made.items()}
    assert bits["int4"] == {5.0}
    assert bits["int2"] == {16.0}


def test_what_moved_into_a_norm_is_no_damage(made: dict[str, Made], tiny_model: Path, tmp_path: Path) -> None:
    """Powers of two, moved from three weights into the norm before them: the model is exactly the same."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "a"))
    tensors = load_file(folder / "model.safetensors")
    factor = 2.0 ** torch.randint(-3, 4, (128,), generator=torch.Generator().manual_seed(2))
    tensors["model.layers.0.input_layernorm.weight"] *= factor.bfloat16()
    for kind in "qkv":
        tensors[f"model.layers.0.self_attn.{kind}_proj.weight"] /= factor.bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(3))
    probe.save({f"x.{Q}": x * factor}, folder)
    found = located(made["int2"], folder)
    assert {each.weight_error for each in found.values()} == {0.0}
    assert found[Q].output_error == pytest.approx(0, abs=1e-5)
    ranges = x.abs().amax(0)
    assert found[Q].outlier == pytest.approx(float(ranges.max() / ranges.median()), abs=0.01)


@pytest.mark.parametrize("name", ["fp8", "int4_awq", "int4"])
def test_the_damaged_layer_is_named_first(made: dict[str, Made], tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(made[name][1].checkpoint.path, tmp_path / "a"))
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{DOWN}.weight"] = tensors[f"{DOWN}.weight"].roll(1, 0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = located(made[name], folder)
    assert max(found.values(), key=lambda each: each.error).layer == DOWN
    assert max(found.values(), key=lambda each: each.weight_error).layer == DOWN
    assert (found[DOWN].kind, found[DOWN].depth) == ("down_proj", 1)


def test_an_outlier_channel_is_found_and_hurts_static_fp8(made: dict[str, Made], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["fp8"][1].checkpoint.path, tmp_path / "a"))
    kept = probe.load(folder)
    kept[f"x.{UP}"][:, 7] *= 500
    probe.save(kept, folder)
    before, after = located(made["fp8"]), located(made["fp8"], folder)
    assert after[UP].outlier_channel == 7
    assert (after[UP].outlier or 0) > 20 * (before[UP].outlier or 0)
    assert after[UP].error > 5 * before[UP].error  # the range was calibrated without it: the channel is clipped
    assert after[DOWN] == before[DOWN]


def test_without_a_probe_there_are_weights_only(made: dict[str, Made], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["int4"][1].checkpoint.path, tmp_path / "a"))
    shutil.rmtree(folder / "quantlab")
    found = located(made["int4"], folder)
    assert {(each.output_error, each.outlier) for each in found.values()} == {(None, None)}
    assert found[Q].error == found[Q].weight_error > 0


def test_verify_carries_it(made: dict[str, Made], tmp_path: Path) -> None:
    whole = verify.run(request(made["fp8"]), Reporter())
    assert whole.passed
    assert len(whole.damage) == 14
    assert whole.checks[-1].name == "damage"
    assert "weights of 14 layers moved by 2." in whole.checks[-1].finding
    assert msgspec.json.decode(msgspec.json.encode(whole), type=type(whole)) == whole
    folder = Path(shutil.copytree(made["fp8"][1].checkpoint.path, tmp_path / "a"))
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{Q}.weight_scale"] *= float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    broken = verify.run(request(made["fp8"], folder), Reporter())
    assert broken.damage == ()
    assert f"{Q}.weight_scale" in next(each.finding for each in broken.checks if each.name == "damage")
