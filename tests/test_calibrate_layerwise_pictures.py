"""Llama 3.2 Vision one block at a time is, bit by bit, the whole model at once, its cross-attention blocks included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from quantlab.calibrate import modelopt, pictures, source
from quantlab.calibrate.pictures import Pictures
from quantlab.calibrate.tower import Tower
from quantlab.calibrate.walked import Walked
from quantlab.errors import Refused
from quantlab.formats.seeing import processor
from quantlab.images import opened
from quantlab.records import CalibrateJob, QuantizerOverride
from quantlab.worker import Reporter
from tests.test_calibrate_layerwise import require_equal, require_same_walk
from tests.test_calibrate_pictures import FEW, MODEL, SETS, seeing


def by_block(into: Path, name: str, **changes: object) -> CalibrateJob:
    return msgspec.structs.replace(seeing(MODEL, into, name, **changes), layerwise=True)


@pytest.mark.parametrize("name", ["fp8", "int4_awq", "w4a8_awq", "nvfp4"])
def test_block_by_block_is_the_whole_model(tmp_path: Path, name: str) -> None:
    spec = by_block(tmp_path / "blocks", name)
    made = modelopt.run(spec, Reporter())
    whole = modelopt.run(msgspec.structs.replace(spec, layerwise=False, into=str(tmp_path / "whole")), Reporter())
    require_same_walk(tmp_path, spec, made, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocks", "whole"]


def mixed() -> Pictures:
    """Pictures before the question, in the middle of it, two of them, and a question without one."""
    tool = processor(MODEL)
    shown = [opened(path) for path in sorted((SETS / "easyvqa").glob("*.png"))[:4]]
    begin, end = "<|image|><|begin_of_text|>", "is the red shape ?"
    rows: list[tuple[list[list[Any]], list[str]]] = [
        ([[shown[0]], [shown[1]]], [f"{begin}what {end}", f"{begin}what {end}"]),
        ([[shown[2]]], [f"<|begin_of_text|>what <|image|>{end}"]),
        ([[shown[3], shown[0]]], [f"<|image|>{begin}what {end}"]),
    ]
    groups = []
    for images, texts in rows:
        made = tool(images=images, text=texts, add_special_tokens=False, return_tensors="pt")
        groups.append({name: torch.as_tensor(made[name]) for name in pictures.TAKEN})
    groups.append({name: groups[0][name] for name in ("input_ids", "attention_mask")})
    assert (groups[1]["cross_attention_mask"].sum((2, 3)) == 0).any(), "a token before the picture sees nothing"
    assert groups[2]["pixel_values"].shape[1] == 2
    return Pictures(tuple(groups), "mixed")


@pytest.mark.parametrize("name", ["fp8", "int4_awq"])
def test_samples_see_what_the_whole_model_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(source, "_pictures", lambda *_: mixed())
    spec = by_block(tmp_path / "blocks", name)
    modelopt.run(spec, Reporter())
    modelopt.run(msgspec.structs.replace(spec, layerwise=False, into=str(tmp_path / "whole")), Reporter())
    require_equal(tmp_path / "blocks", tmp_path / "whole")


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_killed_one_takes_up_at_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Block 1 looks at pictures. Killed in block 0, the tower does not look again."""
    spec = by_block(tmp_path / "made", "fp8")
    looked: list[int] = []
    look = Tower.look

    def looking(self: Tower, batch: dict[str, Tensor]) -> Tensor:
        looked.append(len(batch["input_ids"]))
        return look(self, batch)

    def killed(self: Walked, index: int) -> Path:
        if index == at:
            raise KeyboardInterrupt
        return scratch(self, index)

    scratch = Walked.scratch
    monkeypatch.setattr(Tower, "look", looking)
    with monkeypatch.context() as patched:
        patched.setattr(Walked, "scratch", killed)
        with pytest.raises(KeyboardInterrupt):
            modelopt.run(spec, Reporter())
    once = list(looked)
    assert sum(once) == FEW.images + 2, "each picture once, and the two of the probe"
    assert not (tmp_path / "made").exists()
    made = modelopt.run(spec, Reporter())
    assert looked == once
    assert [note for note in made.notes if "kill" in note] == ([f"taken up at block {at} after a kill"] if at else [])
    modelopt.run(msgspec.structs.replace(spec, layerwise=False, into=str(tmp_path / "whole")), Reporter())
    require_equal(tmp_path / "made", tmp_path / "whole")


def test_weights_alone_need_no_pictures(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(by_block(tmp_path / "blocks", "int4", calibration=None), set=None)
    modelopt.run(spec, Reporter())
    modelopt.run(msgspec.structs.replace(spec, layerwise=False, into=str(tmp_path / "whole")), Reporter())
    require_equal(tmp_path / "blocks", tmp_path / "whole")


def test_a_projector_in_another_precision_needs_the_whole_model(tmp_path: Path) -> None:
    on = (QuantizerOverride(quantizer="*multi_modal_projector.weight_quantizer", enable=True),)
    with pytest.raises(Refused, match="multi_modal_projector, which is outside the blocks"):
        modelopt.run(by_block(tmp_path / "made", "fp8", overrides=on), Reporter())
    assert list(tmp_path.iterdir()) == []
