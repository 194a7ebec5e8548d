"""A whole repair on a tiny model with real ModelOpt: search, curve, recipe file, report."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from quantlab import catalog, pipeline, report
from quantlab.errors import BadInput, Refused
from quantlab.ledgers import Ledger
from quantlab.records.repair import Repair
from quantlab.report import figures
from tests.test_pipeline import ROOT, Seen

RECIPE = """\
summary: AWQ on very little text
preset: INT4_AWQ_CFG
format: int4_awq
group_size: 64
calibration: {set: python-docs, samples: 4, length: 32}
"""
SUITE = f"""\
summary: some items
synthetic: true
tasks:
  - {{task: ql_arithmetic, metric: acc, limit: 60}}
canary:
  - the cat sat on the mat and the cat sat on the mat and
  - one two three four one two three four one two
fidelity: {{text: {ROOT / "evals" / "texts" / "heldout.txt"}, windows: 8, length: 64, burn_in: 8, top_k: 64}}
"""


@pytest.fixture(scope="module")
def place(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repair")
    folder.joinpath("awq.yaml").write_text(RECIPE)
    folder.joinpath("suite.yaml").write_text(SUITE)
    folder.joinpath("model").symlink_to(tiny_model)
    return folder


def ask(place: Path, bits: float | None = 6.0, recipe: str = "awq.yaml", **changes: object) -> pipeline.RepairAsk:
    words = pipeline.Ask(
        model=str(place / "model"),
        recipes=(str(place / recipe),),
        suite=str(place / "suite.yaml"),
        stages=("calibrate", "verify", "fidelity", "accuracy"),  # random weights are no language model
    )
    made = pipeline.RepairAsk(ask=words, bits=bits, length=64, samples=2, points=1, out=str(place / "out.yaml"))
    made = dataclasses.replace(made, keep=("int4_awq_g32", "int8_wo"))
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(place: Path) -> tuple[Repair, Ledger]:
    ledger = Ledger(place / "runs")
    return pipeline.repair(ask(place), ledger), ledger


def test_it_keeps_layers_within_the_budget_and_the_curve_shows_it(done: tuple[Repair, Ledger]) -> None:
    found, _ = done
    first, *_, last = found.points
    assert (first.name, first.layers, last.name) == ("awq", 0, "int8_wo")
    (chosen,) = [point for point in found.points if point.chosen]
    assert first.bits < chosen.bits <= 6.0
    assert first.fidelity is not None
    assert chosen.fidelity is not None
    assert chosen.fidelity.kl.value < first.fidelity.kl.value
    assert [point.bits for point in found.points] == sorted(point.bits for point in found.points)


def test_the_new_recipe_is_one_like_any_other_and_gives_what_the_curve_promised(
    done: tuple[Repair, Ledger], place: Path
) -> None:
    found, _ = done
    read = catalog.recipe(str(place / "out.yaml"))
    assert {part.format for part in read.record.keep} == {"int4_awq_g32", "int8_wo"}  # type: ignore[union-attr]
    assert read.path.read_text() == found.recipe_text
    baseline, _, after = found.run.candidates
    assert (baseline.verdict.status, after.recipe_name, after.failure) == ("baseline", "out", None)
    assert after.verification is not None
    assert after.verification.passed, after.verification
    (chosen,) = [point for point in found.points if point.chosen]
    assert after.fidelity is not None
    assert chosen.fidelity is not None
    assert after.fidelity.kl.value == pytest.approx(chosen.fidelity.kl.value, abs=1e-9)
    assert after.calibrated is not None
    assert after.calibrated.checkpoint.bits_per_weight == chosen.bits
    assert after.comparison is not None
    assert after.comparison.suite.n == 60


def test_again_it_takes_everything_from_the_ledger(done: tuple[Repair, Ledger], place: Path) -> None:
    found, ledger = done
    seen = Seen()
    again = pipeline.repair(ask(place), ledger, seen)
    assert [line for line in seen.stages if not line[2]] == []
    assert again.points == found.points


def test_the_page_and_the_screen_say_the_same(done: tuple[Repair, Ledger], tmp_path: Path) -> None:
    found, _ = done
    page = report.write_repair(found, tmp_path, "repair").read_text()
    console = Console(width=140, record=True, file=io.StringIO())
    report.repair_terminal(found, console)
    said = console.export_text()
    (chosen,) = [point for point in found.points if point.chosen]
    assert chosen.fidelity is not None
    for text in (f"{chosen.bits:.2f}", figures.mean(chosen.fidelity.kl), found.repaired_name):
        assert text in page
        assert text in said
    assert page.count('class="point') == len(found.points)
    assert "http" not in page.replace("http-equiv", "")
    assert msgspec.json.decode((tmp_path / "repair.json").read_bytes(), type=Repair) == found


def test_another_budget_searches_nothing_again(done: tuple[Repair, Ledger], place: Path) -> None:
    _, ledger = done
    seen = Seen()
    found = pipeline.repair(ask(place, 7.0, out=str(place / "seven.yaml"), rounds=1), ledger, seen)
    assert ("awq", "search", True) in seen.stages
    assert max(point.bits for point in found.points if point.chosen) > 6.0


@pytest.mark.parametrize(
    ("bits", "problem"), [(4.0, "itself takes 4.5 bits"), (4.501, "no group of layers fits"), (9.0, "nothing is left")]
)
def test_a_budget_that_buys_nothing_is_refused(
    done: tuple[Repair, Ledger], place: Path, bits: float, problem: str
) -> None:
    with pytest.raises(BadInput, match=problem):
        pipeline.repair(ask(place, bits), done[1])


def test_what_cannot_be_repaired_is_refused(done: tuple[Repair, Ledger], place: Path) -> None:
    with pytest.raises(Refused, match="keeps layers already"):
        pipeline.repair(ask(place, recipe="out.yaml"), done[1])
    words = dataclasses.replace(ask(place).ask, recipes=("bf16",))
    with pytest.raises(Refused, match="nothing to repair"):
        pipeline.repair(dataclasses.replace(ask(place), ask=words), done[1])
    words = dataclasses.replace(ask(place).ask, recipes=("nvfp4_awq",))
    with pytest.raises(Refused, match="from one layer into the next"):
        pipeline.repair(dataclasses.replace(ask(place), ask=words), done[1])
    with pytest.raises(BadInput, match="says something else"):
        pipeline.repair(ask(place, 5.6), done[1])


def test_a_dry_run_says_formats_budget_and_passes_and_computes_nothing(place: Path) -> None:
    ledger = Ledger(place / "dry")
    said = " ".join(pipeline.foretold(ask(place, samples=5, rounds=3), ledger))
    assert "int4_awq_g32 or int8_wo; budget 6 bits a weight" in said
    assert "8 forward and 4 backward passes" in said  # 2 formats x 2 batches of at most 4 sequences
    said = " ".join(pipeline.foretold(ask(place, samples=5, rounds=3, keep=("int8_wo",)), ledger))
    assert "12 forward and 6 backward passes" in said  # 3 rounds x 2 batches
    assert not list(ledger.entries())
    with pytest.raises(BadInput, match="itself takes"):
        pipeline.foretold(ask(place, bits=4.0), ledger)
