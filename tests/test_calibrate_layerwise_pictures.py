"""Llama 3.2 Vision one block at a time is, bit by bit, the whole model at once, its cross-attention blocks included."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from quantlab.calibrate import modelopt, probe, verify
from quantlab.records import CalibrateJob, VerifyJob
from quantlab.worker import Reporter
from tests.test_calibrate_layerwise import require_equal
from tests.test_calibrate_pictures import MODEL, seeing


def by_block(into: Path, name: str, **changes: object) -> CalibrateJob:
    return msgspec.structs.replace(seeing(MODEL, into, name, **changes), layerwise=True)


@pytest.mark.parametrize("name", ["fp8", "int4_awq", "w4a8_awq", "int8_sq", "nvfp4"])
def test_block_by_block_is_the_whole_model(tmp_path: Path, name: str) -> None:
    spec = by_block(tmp_path / "blocks", name)
    made = modelopt.run(spec, Reporter())
    whole = modelopt.run(msgspec.structs.replace(spec, layerwise=False, into=str(tmp_path / "whole")), Reporter())
    require_equal(tmp_path / "blocks", tmp_path / "whole")
    assert (made.layers, made.tokens, made.calibration_digest) == (whole.layers, whole.tokens, whole.calibration_digest)
    kept, meant = probe.load(tmp_path / "blocks"), probe.load(tmp_path / "whole")
    assert kept.keys() == meant.keys()
    for key in kept:
        torch.testing.assert_close(kept[key], meant[key], rtol=1e-4, atol=1e-4, msg=key)
    request = VerifyJob(
        weights=spec.weights, recipe=spec.recipe, calibrated=made, checkpoint_path=spec.into, device="cpu"
    )
    found = {
        each: verify.run(msgspec.structs.replace(request, layerwise=each), Reporter()).checks for each in (False, True)
    }
    assert found[True] == found[False]
    assert [one.name for one in found[True] if not one.passed] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocks", "whole"]
