"""Fidelity by position: the damage is seen where it is, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from quantlab.measure.fidelity import fidelity, reference
from quantlab.measure.stretches import edges, stretches
from quantlab.records import Fidelity, FidelityAsk, encode
from tests.measure_bench import PlainSession, bench, tiny_folder

ASK = FidelityAsk(windows=4, length=256, burn_in=8, top_k=64)


@pytest.mark.parametrize(
    ("burn_in", "length", "wanted"),
    [
        (32, 512, [32, 64, 128, 256, 512]),
        (32, 600, [32, 64, 128, 256, 512, 600]),
        (1, 100, [1, 32, 64, 100]),
        (100, 101, [100, 101]),
    ],
)
def test_stretches_double_and_cover_every_position_once(burn_in: int, length: int, wanted: list[int]) -> None:
    assert edges(burn_in, length) == wanted


def test_damage_is_where_it_was_put() -> None:
    rng = np.random.default_rng(0)
    base = rng.gamma(2.0, 1.0, (12, 480))
    worse = base.copy()
    worse[:, 224:] += 0.1 + 0.05 * rng.standard_normal((12, 256))
    found = stretches(32, base, worse, worse - base)
    assert [(one.start, one.stop) for one in found] == [(32, 64), (64, 128), (128, 256), (256, 512)]
    assert [one.change.value for one in found[:3]] == [0.0, 0.0, 0.0]
    last = found[-1].change
    assert last.low is not None
    assert last.high is not None
    assert 0.09 < last.low < last.value < last.high < 0.11
    assert last.n == 12 * 256
    assert found[-1].nll.value - found[-1].nll_baseline == pytest.approx(last.value)


def test_the_interval_holds_windows_together() -> None:
    """A loss that differs between windows and not within them is known from as many numbers as there are windows."""
    shift = np.linspace(-0.1, 0.3, 8)[:, None]
    one = stretches(32, np.ones((8, 32)), np.ones((8, 32)) + shift, np.abs(shift) + np.zeros((8, 32)))[0]
    assert one.change.standard_error == pytest.approx(float(shift.std(ddof=1)) / 8**0.5)


def test_a_single_position_has_no_interval() -> None:
    (one,) = stretches(40, np.ones((1, 1)), np.ones((1, 1)), np.zeros((1, 1)))
    assert (one.change.value, one.change.low, one.change.n) == (0.0, None, 1)


def _fidelity(folder: Path, path: str | None, session: PlainSession) -> Fidelity:
    record, _ = fidelity(bench(folder, session, reference=path, fidelity=ASK))
    assert isinstance(record, Fidelity)
    return record


def test_the_stage_keeps_stretches_that_add_up(tmp_path: Path) -> None:
    _, files = reference(bench(tmp_path, fidelity=ASK))
    moved = PlainSession(tiny_folder())
    with torch.no_grad():
        moved.model.model.layers[0].self_attn.v_proj.weight.mul_(1.2)
    record = _fidelity(tmp_path, files["reference.npz"], moved)
    assert [one.stop for one in record.stretches] == [32, 64, 128, 256]
    total = sum(one.kl.n * one.kl.value for one in record.stretches) / record.positions
    assert total == pytest.approx(record.kl.value, rel=1e-9)
    nll = sum(one.nll.n * one.nll.value for one in record.stretches) / record.positions
    assert np.exp(nll) == pytest.approx(record.perplexity.value, rel=1e-9)
    assert b'"stretches"' in encode(record)
