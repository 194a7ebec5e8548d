"""One block at a time is, bit by bit, the whole model at once; and a killed one goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from quantlab.calibrate import layerwise, modelopt, probe, verify
from quantlab.calibrate.stored import Stored
from quantlab.calibrate.walked import Walked
from quantlab.errors import Refused
from quantlab.records import Calibrated, CalibrateJob, QuantizerOverride, VerifyJob
from quantlab.worker import Reporter
from tests.test_calibrate_modelopt import job

NAMES = ("fp8", "int4_awq", "w4a8_awq", "int8_sq", "nvfp4", "int4", "fp8_rowwise")


def by_block(source: Path, into: Path, name: str) -> CalibrateJob:
    return msgspec.structs.replace(job(source, into, name), layerwise=True)


def tensors(folder: Path) -> dict[str, Tensor]:
    stored = Stored(folder)
    return {name: stored.read(name) for name in stored.headers}


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8)


def require_equal(left: Path, right: Path) -> None:
    one, other = tensors(left), tensors(right)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name].dtype != other[name].dtype] == []
    different = [name for name in one if not torch.equal(_bytes(one[name]), _bytes(other[name]))]
    assert different == []
    for name in ("config.json", "hf_quant_config.json"):
        assert json.loads((left / name).read_bytes()) == json.loads((right / name).read_bytes())


def require_same_walk(folder: Path, spec: CalibrateJob, made: Calibrated, whole: Calibrated) -> None:
    """Export, record, probe and verify are those of the whole model: `blocks` and `whole` in `folder`."""
    require_equal(folder / "blocks", folder / "whole")
    assert (made.layers, made.tokens, made.calibration_digest) == (whole.layers, whole.tokens, whole.calibration_digest)
    kept, meant = probe.load(folder / "blocks"), probe.load(folder / "whole")
    assert kept.keys() == meant.keys()
    for key in kept:
        torch.testing.assert_close(kept[key], meant[key], rtol=1e-4, atol=1e-4, msg=key)
    request = VerifyJob(
        weights=spec.weights, recipe=spec.recipe, calibrated=made, checkpoint_path=spec.into, device="cpu"
    )
    found = {
        each: verify.run(msgspec.structs.replace(request, layerwise=each), Reporter()).checks for each in (False, True)
    }
    assert found[True] == found[False], "one block at a time, verify sees the same"
    assert [one.name for one in found[True] if not one.passed] == []


@pytest.mark.parametrize("name", NAMES)
def test_block_by_block_is_the_whole_model(tiny_model: Path, tmp_path: Path, name: str) -> None:
    spec = by_block(tiny_model, tmp_path / "blocks", name)
    made = modelopt.run(spec, Reporter())
    whole = modelopt.run(job(tiny_model, tmp_path / "whole", name), Reporter())
    require_same_walk(tmp_path, spec, made, whole)
    assert layerwise.NOTE in made.notes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocks", "whole"]


def test_a_killed_one_takes_up_at_its_block(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = by_block(tiny_model, tmp_path / "made", "w4a8_awq")
    opened: list[int] = []

    def killed(self: Walked, index: int) -> Path:
        opened.append(index)
        if index == 1 and opened.count(1) == 1:
            (self.exported(1)).mkdir()
            (self.exported(1) / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        return scratch(self, index)

    scratch = Walked.scratch
    monkeypatch.setattr(Walked, "scratch", killed)
    with pytest.raises(KeyboardInterrupt):
        modelopt.run(spec, Reporter())
    assert not (tmp_path / "made").exists()
    made = modelopt.run(spec, Reporter())
    assert opened == [0, 1, 1]
    assert "taken up at block 1 after a kill" in made.notes
    modelopt.run(job(tiny_model, tmp_path / "whole", "w4a8_awq"), Reporter())
    require_equal(tmp_path / "made", tmp_path / "whole")
    assert made.layers == modelopt.run(by_block(tiny_model, tmp_path / "again", "w4a8_awq"), Reporter()).layers


def test_what_another_calibration_left_is_not_gone_on_with(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Walked.keep

    def killed(self: Walked, index: int, *rest: object) -> None:
        keep(self, index, *rest)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Walked, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            modelopt.run(by_block(tiny_model, tmp_path / "made", "fp8"), Reporter())
    assert list(tmp_path.glob(".made.layers/state-00001.safetensors"))
    made: Calibrated = modelopt.run(by_block(tiny_model, tmp_path / "made", "fp8_rowwise"), Reporter())
    assert not [note for note in made.notes if "kill" in note]
    modelopt.run(job(tiny_model, tmp_path / "whole", "fp8_rowwise"), Reporter())
    require_equal(tmp_path / "made", tmp_path / "whole")


def test_what_needs_the_whole_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="folded into a whole model"):
        modelopt.run(by_block(tiny_model, tmp_path / "made", "int2"), Reporter())
    head = msgspec.structs.replace(
        by_block(tiny_model, tmp_path / "made", "fp8_rowwise"),
        recipe=job(
            tiny_model, tmp_path, "fp8_rowwise", overrides=(QuantizerOverride(quantizer="*lm_head*", enable=True),)
        ).recipe,
    )
    with pytest.raises(Refused, match="lm_head, which is outside the blocks"):
        modelopt.run(head, Reporter())
    off = (QuantizerOverride(quantizer="*layers.1.mlp*", enable=False),)
    mixed = msgspec.structs.replace(head, recipe=job(tiny_model, tmp_path, "fp8_rowwise", overrides=off).recipe)
    with pytest.raises(Refused, match=r"other layers in model\.layers\.1 than in model\.layers\.0"):
        modelopt.run(mixed, Reporter())
    with pytest.raises(Refused, match="no multiple of the group size 48"):
        modelopt.run(
            msgspec.structs.replace(by_block(tiny_model, tmp_path / "made", "int4"), group_size=48), Reporter()
        )
    assert list(tmp_path.iterdir()) == [], "refused before anything is written"
    odd = msgspec.structs.replace(by_block(tiny_model, tmp_path / "made", "fp8"))
    weights = msgspec.structs.replace(odd.weights, architecture="GPT2LMHeadModel")
    with pytest.raises(Refused, match="one at a time"):
        modelopt.run(msgspec.structs.replace(odd, weights=weights), Reporter())


def test_tensors_are_read_as_safetensors_does(tiny_model: Path) -> None:
    from safetensors.torch import load_file

    meant, stored = load_file(tiny_model / "model.safetensors"), Stored(tiny_model)
    assert set(meant) == set(stored.headers)
    for name, tensor in meant.items():
        assert torch.equal(stored.read(name), tensor)
    embedding = meant["model.embed_tokens.weight"]
    assert torch.equal(stored.read("model.embed_tokens.weight", slice(500, 999)), embedding[500:])
    assert stored.read("model.embed_tokens.weight", slice(3, 3)).shape == (0, 128)
