"""A small study of calibration on a tiny model: what the grid says, and that it goes on cell by cell."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from quantlab import pipeline
from quantlab.errors import BadInput, Refused
from quantlab.ledgers import Ledger
from quantlab.pipeline.study import StudyAsk, estimate, study
from tests.test_pipeline import Seen
from tests.test_pipeline_repair import SUITE

RECIPE = """\
summary: FP8 on very little text
preset: FP8_DEFAULT_CFG
format: fp8
calibration: {set: python-docs, samples: 4, length: 32}
"""


@pytest.fixture(scope="module")
def place(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    folder.joinpath("few.yaml").write_text(RECIPE)
    folder.joinpath("suite.yaml").write_text(SUITE)
    folder.joinpath("model").symlink_to(tiny_model)
    return folder


def ask(place: Path, recipe: str = "few.yaml", **changes: object) -> StudyAsk:
    words = pipeline.Ask(
        model=str(place / "model"),
        recipes=(recipe if recipe == "int4_rtn" else str(place / recipe),),
        suite=str(place / "suite.yaml"),
    )
    return dataclasses.replace(StudyAsk(ask=words, samples=(1, 8), seeds=2), **changes)  # type: ignore[arg-type]


def test_a_grid_is_measured_once_and_judged_against_its_noise(place: Path) -> None:
    ledger, seen = Ledger(place / "runs"), Seen()
    said = estimate(ask(place), ledger)
    assert said.startswith("4 calibrations: about ")
    assert not ledger.entries()
    found = study(ask(place), ledger, seen)
    assert [(cell.samples, len(cell.kl)) for cell in sorted(found.cells, key=lambda cell: cell.samples)] == [
        (1, 2),
        (8, 2),
    ]
    assert found.cells[0].above_best is None
    assert found.cells[1].above_best is not None
    assert found.cells[1].above_best.value == pytest.approx(found.largest)
    assert [axis.axis for axis in found.axes] == ["samples"]
    assert found.axes[0].p_value == pytest.approx(found.p_value)
    assert found.noise > 0
    assert said in seen.said
    again = Seen()
    wider = study(ask(place, seeds=3), ledger, again)
    fresh = [stage for _, stage, cached in again.stages if not cached]
    assert sorted(fresh) == ["calibrate", "calibrate", "fidelity", "fidelity"]
    assert {cell.kl[:2] for cell in wider.cells} == {cell.kl for cell in found.cells}


def test_what_leaves_nothing_to_compare_is_refused(place: Path) -> None:
    ledger = Ledger(place / "runs")
    with pytest.raises(BadInput, match="nothing to compare"):
        study(ask(place, samples=(4,)), ledger)
    with pytest.raises(BadInput, match="nothing to compare"):
        study(ask(place, seeds=1), ledger)
    with pytest.raises(BadInput, match="no set is called 'python-docz'"):
        study(ask(place, sets=("python-docz",)), ledger)
    with pytest.raises(Refused, match="weights only"):
        study(ask(place, "int4_rtn"), ledger)
