"""Real ModelOpt on Llama 3.2 Vision: the small trained one, and random weights in the layer structure of the 11B."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantlab import catalog
from quantlab.calibrate import modelopt, pictures
from quantlab.errors import BadInput
from quantlab.formats.seeing import processor
from quantlab.records import Calibrated, CalibrateJob, Calibration, CalibrationSet, QuantizerOverride
from quantlab.worker import Reporter
from tests.test_calibrate_modelopt import check, job

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "evals" / "models" / "mllama-easyvqa"
SETS = ROOT / "calibration" / "sets"
FEW = Calibration(samples=4, length=32, images=12)
ELEVEN = (3, 8, 13, 18, 23, 28, 33, 38)
"""Cross-attention layers of Llama 3.2 11B."""


def image_set() -> CalibrationSet:
    found = catalog.calibration_set("easyvqa").record
    assert isinstance(found, CalibrationSet)
    return found


def seeing(source: Path, into: Path, name: str, **changes: object) -> CalibrateJob:
    made = job(source, into, name, **{"kv_cache": "none", "calibration": FEW, **changes})
    model = msgspec.structs.replace(made.model, modality="vision", chat=False)
    return msgspec.structs.replace(made, model=model, set=image_set(), set_folder=str(SETS))


Made = dict[str, tuple[CalibrateJob, Calibrated]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    found: Made = {}
    for name in ("fp8", "int4_awq"):
        spec = seeing(MODEL, tmp_path_factory.mktemp(name) / "made", name)
        found[name] = (spec, modelopt.run(spec, Reporter()))
    return found


@pytest.fixture(scope="module")
def eleven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with the layers of the 11B, 64 wide, and the small model's tokenizer and processor."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    folder = tmp_path_factory.mktemp("eleven") / "model"
    shutil.copytree(MODEL, folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((MODEL / "config.json").read_text())
    text = config["text_config"] | {"num_hidden_layers": 40, "cross_attention_layers": list(ELEVEN), "hidden_size": 64}
    sight = config["vision_config"] | {
        "hidden_size": 32,
        "vision_output_dim": 32 * 6,
        "num_hidden_layers": 32,
        "num_global_layers": 8,
        "intermediate_layers_indices": [3, 7, 15, 23, 30],
    }
    shape = MllamaConfig(
        **{
            **config,
            "text_config": {**text, "intermediate_size": 128},
            "vision_config": {**sight, "intermediate_size": 64},
        }
    )
    torch.manual_seed(0)
    model = MllamaForConditionalGeneration(shape)
    for name, parameter in model.named_parameters():
        if "gate" in name.rpartition(".")[2] and parameter.numel() == 1:
            torch.nn.init.constant_(parameter, 0.5)  # zero would hide what the cross-attention layers compute
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["fp8", "int4_awq"])
def test_what_is_exported_is_what_was_calibrated(made: Made, name: str) -> None:
    spec, calibrated = made[name]
    checks = check(spec, calibrated)
    assert {one: finding for one, (passed, finding) in checks.items() if not passed} == {}
    assert "91 tensors" in checks["sight"][1]
    assert len(calibrated.layers) == 5 * 7
    assert sum(".cross_attn." in layer for layer in calibrated.layers) == 2 * 4
    assert calibrated.samples == 12
    assert calibrated.checkpoint.bits_per_weight < 9
    folder = Path(calibrated.checkpoint.path)
    assert (folder / "processor_config.json").read_bytes() == (MODEL / "processor_config.json").read_bytes()
    names = set(load_file(folder / "model.safetensors"))
    assert "language_model.model.layers.1.cross_attn.k_proj.weight_scale" in names, "the file keeps the hub's names"
    kept = {each for each in names if each.endswith("pre_quant_scale")}
    assert not [each for each in kept if "gate_proj" in each or "up_proj" in each]


def test_the_same_pictures_give_the_same_bytes(made: Made, tmp_path: Path) -> None:
    again = modelopt.run(seeing(MODEL, tmp_path / "again", "fp8"), Reporter())
    first = made["fp8"][1]
    assert (again.checkpoint.digest, again.calibration_digest) == (first.checkpoint.digest, first.calibration_digest)


@pytest.mark.parametrize("name", ["fp8", "int4_awq"])
def test_the_layers_of_the_11b_pass(eleven: Path, tmp_path: Path, name: str) -> None:
    spec = seeing(eleven, tmp_path / "made", name, calibration=Calibration(images=2))
    calibrated = modelopt.run(spec, Reporter())
    failed = {one: finding for one, (passed, finding) in check(spec, calibrated).items() if not passed}
    assert failed == {}
    crossing = {int(layer.split(".")[3]) for layer in calibrated.layers if ".cross_attn." in layer}
    assert crossing == set(ELEVEN)
    assert len(calibrated.layers) == 40 * 7


def test_text_alone_is_refused(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(seeing(MODEL, tmp_path / "made", "fp8"), set=CalibrationSet(
        summary="", source="file", file="python-docs.txt"))  # fmt: skip
    with pytest.raises(BadInput, match="takes images and the calibration set has none") as refused:
        modelopt.run(spec, Reporter())
    assert "easyvqa" in refused.value.cure
    assert not (tmp_path / "made").exists()


def test_an_export_that_saw_no_picture_keeps_two_scales_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelopt, "_let_export_see", lambda model, data: None)
    spec = seeing(MODEL, tmp_path / "made", "int4_awq")
    passed, finding = check(spec, modelopt.run(spec, Reporter()))["pre_quant_scale"]
    assert not passed
    assert "gate and up need a common one" in finding


def test_weights_only_needs_no_pictures(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(seeing(MODEL, tmp_path / "made", "int4", calibration=None), set=None)
    calibrated = modelopt.run(spec, Reporter())
    assert [one for one, (passed, _) in check(spec, calibrated).items() if not passed] == []


def damaged(
    one: tuple[CalibrateJob, Calibrated], into: Path, edit: Callable[[dict[str, Tensor]], object]
) -> dict[str, str]:
    shutil.copytree(one[1].checkpoint.path, into)
    tensors = load_file(into / "model.safetensors")
    edit(tensors)
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    moved = msgspec.structs.replace(one[1], checkpoint=msgspec.structs.replace(one[1].checkpoint, path=str(into)))
    return {name: finding for name, (passed, finding) in check(one[0], moved).items() if not passed}


def test_damage_is_found_by_its_check(made: Made, tmp_path: Path) -> None:
    cross = "language_model.model.layers.1.cross_attn.k_proj"
    tower = "vision_model.transformer.layers.0.mlp.fc1.weight"

    def turn(tensors: dict[str, Tensor]) -> None:
        tensors[tower][0, 0] += 1

    assert "fc1" in damaged(made["fp8"], tmp_path / "a", turn)["sight"]
    assert cross.replace("language_model.model", "model.language_model") in damaged(
        made["fp8"], tmp_path / "b", lambda t: t.pop(f"{cross}.input_scale"))["input_scale"]  # fmt: skip
    assert "reopened" in damaged(made["int4_awq"], tmp_path / "c", lambda t: t.update(
        {f"{cross}.pre_quant_scale": t[f"{cross}.pre_quant_scale"] * 1.3}))  # fmt: skip


def test_a_recipe_may_quantize_the_projector(tmp_path: Path) -> None:
    on = tuple(
        QuantizerOverride(quantizer=f"*multi_modal_projector.{kind}_quantizer", enable=True)
        for kind in ("weight", "input")
    )
    spec = seeing(MODEL, tmp_path / "made", "fp8", overrides=on)
    calibrated = modelopt.run(spec, Reporter())
    assert "model.multi_modal_projector" in calibrated.layers
    checks = check(spec, calibrated)
    assert checks["sight"] == (True, checks["sight"][1])
    assert "1 layers quantized as the recipe says" in checks["sight"][1]
    silent = msgspec.structs.replace(spec, recipe=msgspec.structs.replace(spec.recipe, overrides=()))
    assert not check(silent, calibrated)["sight"][0]


def lines(folder: Path, *rows: object) -> CalibrationSet:
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CalibrationSet(summary="", source="file", file="mine.jsonl", column="question", image="image")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "what?"}, "a question without a picture"),
        ({"question": "what?", "image": None}, "a question without a picture"),
        ({"question": " ", "image": "a.png"}, "no question"),
        ({"image": "a.png"}, "no question"),
        ([1], "no question"),
        ({"question": "what?", "image": "gone.png"}, "No such file"),
        ({"question": "what?", "image": "mine.jsonl"}, "no picture"),
    ],
)
def test_a_set_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, row: object, problem: str) -> None:
    good = {"question": "what is the red shape?", "image": str(next((SETS / "easyvqa").glob("*.png")))}
    with pytest.raises(BadInput, match=problem):
        pictures.pictures(lines(tmp_path, good, row), Calibration(images=2), tmp_path, MODEL, chat=False)


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="128 pictures where 129 are asked for"):
        pictures.pictures(image_set(), Calibration(images=129), SETS, MODEL, chat=False)
    text = msgspec.structs.replace(image_set(), file="python-docs.txt")
    with pytest.raises(BadInput, match=r"from a \.jsonl file"):
        pictures.pictures(text, Calibration(images=1), SETS, MODEL, chat=False)


def test_questions_of_one_length_go_together_and_nothing_is_padded() -> None:
    found = pictures.pictures(image_set(), Calibration(images=40), SETS, MODEL, chat=False)
    assert found.count == 40
    assert len({batch["input_ids"].shape[1] for batch in found.groups}) == len(found.groups) > 1
    assert all(bool(batch["attention_mask"].all()) for batch in found.groups)
    assert all((batch["input_ids"][:, :2] == torch.tensor([64, 1])).all() for batch in found.groups)
    assert max(len(batch["input_ids"]) for batch in found.batches(3)) == 3
    assert sum(len(batch["input_ids"]) for batch in found.batches(3)) == 40
    assert (
        found.digest != pictures.pictures(image_set(), Calibration(images=40, seed=1), SETS, MODEL, chat=False).digest
    )


def test_an_instruct_model_is_asked_through_its_template() -> None:
    tool = processor(MODEL)
    tool.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}user : {% for c in m.content %}"
        "{{ '<|image|>' if c.type == 'image' else c.text }}{% endfor %}{% endfor %}"
    )
    assert pictures.prompt("what?", tool, chat=True) == "<|begin_of_text|>user : <|image|>what?"
    assert pictures.prompt("what?", tool, chat=False) == "<|image|><|begin_of_text|>what?"
