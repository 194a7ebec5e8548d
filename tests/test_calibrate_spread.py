"""A model whose blocks lie on several devices is calibrated to the same bytes; and how it is dealt out.

There is no GPU here: the machine's memory stands for two, under the hooks of accelerate that two GPUs have. Whether
every tensor is where its hook thinks can be proven only on GPUs: benchmarks/gpu/spread.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantlab.calibrate import modelopt, source
from quantlab.records import CalibrateJob
from quantlab.worker import Reporter
from tests.test_calibrate_layerwise import require_equal
from tests.test_calibrate_modelopt import check, job
from tests.test_calibrate_pictures import MODEL, seeing


def spread_over(spec: CalibrateJob, into: Path, gpus: int = 2) -> CalibrateJob:
    return msgspec.structs.replace(spec, gpus=gpus, into=str(into))


def require_same(spec: CalibrateJob, folder: Path) -> None:
    """Spread over two, the checkpoint `whole` in `folder` is made again, byte by byte."""
    modelopt.run(spec, Reporter())
    made = modelopt.run(other := spread_over(spec, folder / "spread"), Reporter())
    require_equal(folder / "spread", folder / "whole")
    assert [note for note in made.notes if "blocks on cpu:0" in note and "blocks on cpu:1" in note]
    assert [name for name, (passed, _) in check(other, made).items() if not passed] == []


@pytest.mark.parametrize("name", ["fp8", "int4_awq", "w4a8_awq", "int8_sq", "nvfp4"])
def test_spread_is_the_whole_model(tiny_model: Path, tmp_path: Path, name: str) -> None:
    require_same(job(tiny_model, tmp_path / "whole", name), tmp_path)


@pytest.mark.parametrize("name", ["fp8", "int4_awq"])
def test_spread_with_pictures_is_the_whole_model(tmp_path: Path, name: str) -> None:
    require_same(seeing(MODEL, tmp_path / "whole", name), tmp_path)


def test_every_module_has_accelerates_hook(tiny_model: Path, tmp_path: Path) -> None:
    model: Any = source.load(spread_over(job(tiny_model, tmp_path / "made", "fp8"), tmp_path / "made"))
    where = model.hf_device_map
    assert (where["model.embed_tokens"], where["model.norm"], where["lm_head"]) == ("cpu:0",) * 3
    assert (where["model.layers.0"], where["model.layers.1"]) == ("cpu:0", "cpu:1")
    assert model.model.layers[1].mlp.down_proj._hf_hook.execution_device == "cpu"
    assert not any(getattr(module, "_hf_hook", None) and module._hf_hook.offload for module in model.modules())
