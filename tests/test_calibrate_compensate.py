"""Rounding column by column: against all roundings of small matrices, and what it does to a tiny Llama."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from quantlab.calibrate import compensate, modelopt, verify
from quantlab.catalog import sense
from quantlab.errors import Broken, Refused
from quantlab.records import Calibrated, Calibration, VerifyJob
from quantlab.worker import Reporter
from tests.test_calibrate_modelopt import RECIPES, job


def lost(weight: torch.Tensor, made: torch.Tensor, moment: torch.Tensor) -> float:
    """Mean square of what a layer's output loses."""
    return float(((weight - made) @ moment * (weight - made)).sum())


def correlated(inputs: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    return x.T @ x / len(x)


@pytest.mark.parametrize("seed", range(4))
def test_it_loses_less_than_nearest_and_not_much_more_than_the_best_of_all_roundings(seed: int) -> None:
    moment = correlated(6, seed)
    weight = torch.randn(1, 6, generator=torch.Generator().manual_seed(100 + seed))
    scale = torch.full((1, 1), 0.3)
    made = compensate._rounded(weight, scale, compensate._factor("x", moment), 6)
    codes = (weight / scale).floor()
    assert torch.equal((made / scale).round() * scale, made)
    best = min(
        lost(weight, (codes + torch.tensor(up)).clamp(-8, 7) * scale, moment)
        for up in product((-1.0, 0.0, 1.0, 2.0), repeat=6)
    )
    nearest = lost(weight, (weight / scale).round() * scale, moment)
    assert best <= lost(weight, made, moment) * (1 + 1e-5)
    assert lost(weight, made, moment) <= nearest * (1 + 1e-5)


def test_without_correlation_it_is_rounding_to_nearest() -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    scale = compensate._scales(weight, torch.ones(256), 32)
    made = compensate._rounded(weight, scale, compensate._factor("x", torch.eye(256)), 32)
    unit = scale.repeat_interleave(32, 1)
    assert torch.equal(made, (weight / unit).round().clamp(-8, 7) * unit)


def test_a_scale_loses_no_more_than_that_of_the_largest_magnitude() -> None:
    weight, importance = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)), torch.rand(64) + 0.1
    found, widest = compensate._scales(weight, importance, 32), weight.view(8, 2, 32).abs().amax(-1) / 7

    def error(scale: torch.Tensor) -> torch.Tensor:
        unit = scale.repeat_interleave(32, 1)
        return (((weight / unit).round().clamp(-8, 7) * unit - weight).square() * importance).view(8, 2, 32).sum(-1)

    assert bool((error(found) <= error(widest) * (1 + 1e-5)).all())
    assert bool((found < widest).any())


def test_inputs_that_are_all_zero_are_named() -> None:
    with pytest.raises(Broken, match="all zero"):
        compensate._factor("model.layers.0.mlp.up_proj", torch.zeros(4, 4))


def made(source: Path, into: Path, rounding: str) -> tuple[Calibrated, float]:
    """And the mean of what the outputs of its layers lose, relative."""
    text = Calibration(set="python-docs", samples=40, length=64)  # ten tokens for each column of the widest layer
    spec = job(source, into, "int4_awq", rounding=rounding, calibration=text)
    found = modelopt.run(spec, Reporter())
    asked = VerifyJob(
        weights=spec.weights, recipe=spec.recipe, calibrated=found, checkpoint_path=spec.into, device="cpu"
    )
    report = verify.run(asked, Reporter())
    assert {one.name: one.finding for one in report.checks if not one.passed} == {}
    errors = [one.output_error for one in report.damage if one.output_error is not None]
    return found, sum(errors) / len(errors)


def test_a_model_is_stored_in_the_same_shapes_and_its_layers_lose_less(tiny_model: Path, tmp_path: Path) -> None:
    (nearest, before), (ours, after) = (made(tiny_model, tmp_path / word, word) for word in ("nearest", "compensated"))
    assert after < before, (after, before)
    left, right = (load_file(Path(each.checkpoint.path) / "model.safetensors") for each in (nearest, ours))
    assert {name: (one.shape, one.dtype) for name, one in left.items()} == {
        name: (one.shape, one.dtype) for name, one in right.items()
    }
    assert ours.checkpoint.bits_per_weight == nearest.checkpoint.bits_per_weight
    assert any("making good" in note for note in ours.notes)
    assert not torch.equal(left["model.layers.0.mlp.down_proj.weight"], right["model.layers.0.mlp.down_proj.weight"])


def test_one_block_at_a_time_refuses_it(tiny_model: Path, tmp_path: Path) -> None:
    spec = msgspec.structs.replace(job(tiny_model, tmp_path / "x", "int4_awq", rounding="compensated"), layerwise=True)
    with pytest.raises(Refused, match="whole model"):
        modelopt.run(spec, Reporter())


def test_a_recipe_without_int4_cannot_ask_for_it() -> None:
    for name, wrong in (("fp8", True), ("int4_awq", False)):
        recipe = msgspec.structs.replace(RECIPES[name], rounding="compensated")
        assert (("rounding",) in [where for where, *_ in sense.recipe(recipe)]) == wrong
