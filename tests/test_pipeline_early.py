"""Early runs with real children on a tiny model: looks, reuse, a kill between looks, collapse, contradictions."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from quantlab import pipeline
from quantlab.chosen import Chosen
from quantlab.errors import BadInput
from quantlab.ledgers import Ledger
from quantlab.pipeline.compared import compared
from quantlab.records import Accuracy, Run
from quantlab.report import to_html, to_markdown
from tests.test_pipeline import GRID, RECIPE, SUITE, Bench, Seen, numbers

STAGES = ("calibrate", "canary", "fidelity", "accuracy")
POLICY = "summary: early\nearly: true\nfirst_look: 24\nmax_drop: 10\nmax_gain: 50\n"
ROUGH = "summary: rounded\npreset: INT4_BLOCKWISE_WEIGHT_ONLY_CFG\nformat: int4\ngroup_size: 32\n"


class Early(Bench):
    """The bench of test_pipeline with a policy that looks after 24, 48 and 96 of 96 items."""

    def ask(self, *recipes: str, policy: str = "policy.yaml", **words: object) -> pipeline.Ask:  # type: ignore[override]
        paths = tuple(str(self.folder / name) for name in recipes or ("few.yaml",))
        ask = dataclasses.replace(super().ask(), recipes=paths, policy=str(self.folder / policy), stages=STAGES)
        return dataclasses.replace(ask, **words)  # type: ignore[arg-type]

    def command(self, ledger: Path) -> list[str]:
        words = super().command(ledger)
        return [*words, "--policy", self.ask().policy, *(word for stage in STAGES for word in ("--stage", stage))]

    def copy(self, ledger: Ledger, into: Path) -> Ledger:
        shutil.copytree(ledger.root, into)
        return Ledger(into)


@pytest.fixture(scope="module")
def bench(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Early:
    folder = tmp_path_factory.mktemp("early")
    files = {
        "few": RECIPE,
        "rough": ROUGH,
        "suite": re.sub(r"limit: \d+", "limit: 48", SUITE),
        "grid": GRID,
        "policy": POLICY,
    }
    files |= {"strict": POLICY.replace("max_drop: 10", "max_drop: 0.01")}
    files |= {"full": POLICY.replace("early: true", "scope: suite"), "touchy": POLICY + "collapse_kl: 0.0\n"}
    for name, text in files.items():
        folder.joinpath(f"{name}.yaml").write_text(text)
    return Early(folder, tiny_model)


@pytest.fixture(scope="module")
def first(bench: Early, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Ledger]:
    ledger = Ledger(tmp_path_factory.mktemp("runs"))
    return pipeline.run(bench.ask(), ledger), ledger


def slices(ledger: Ledger) -> list[tuple[str, tuple[int, int] | None]]:
    """(recipe, slice) of each accuracy entry, oldest first."""
    found = [(entry.recipe, ledger.result(entry)) for entry in ledger.entries("accuracy")]
    return [(recipe, record.part) for recipe, record in found if isinstance(record, Accuracy)]


def test_both_are_scored_slice_by_slice_and_only_until_it_is_decided(first: tuple[Run, Ledger]) -> None:
    run, ledger = first
    baseline, candidate = run.candidates
    assert slices(ledger) == [("bf16", (0, 24)), ("few", (0, 24)), ("bf16", (24, 48)), ("few", (24, 48))]
    assert candidate.comparison is not None
    look = candidate.comparison.look
    assert look is not None
    assert (look.status, look.scored, look.items, look.looks) == ("accept", 48, 96, 2)
    assert 24 < (look.decided_after or 0) <= 48
    assert look.difference.confidence == pytest.approx(0.9)
    assert (candidate.verdict.status, candidate.verdict.scope) == ("accept", "suite")
    assert (candidate.verdict.items_used, candidate.verdict.items_total) == (48, 96)
    assert f"decided after {look.decided_after} of 96 items" in candidate.verdict.reason
    assert run.policy.scope == "suite"
    assert candidate.fidelity is not None
    assert candidate.fidelity.positions == 384  # 4 windows of 96: the screen, whatever the suite holds
    for each in (baseline, candidate):
        assert each.accuracy is not None
        assert sum(task.n for task in each.accuracy.tasks) == 48
        assert len({each.accuracy.items, *each.accuracy.more}) == 2
        assert {"accuracy 0-24", "accuracy 24-48"} <= each.identities.keys()
    row = candidate.comparison.suite
    assert len(candidate.flips) == candidate.flipped == row.regressed + row.improved + row.churn


def test_a_second_call_computes_nothing_and_says_the_same(first: tuple[Run, Ledger], bench: Early) -> None:
    run, ledger = first
    before, seen = len(ledger.entries()), Seen()
    assert numbers(pipeline.run(bench.ask(), ledger, seen)) == numbers(run)
    assert all(cached for _, _, cached in seen.stages)
    assert len(ledger.entries()) == before
    assert any(text.startswith("look 2, few: on this suite: ") for text in seen.said)


def test_a_run_killed_between_looks_goes_on_to_the_same_verdict(
    first: tuple[Run, Ledger], bench: Early, tmp_path: Path
) -> None:
    run, whole = first
    ledger = bench.copy(whole, tmp_path / "runs")
    newest = sorted((ledger.root / "entries" / "accuracy").iterdir(), key=lambda path: int(path.name.split(".")[-2]))
    for path in newest[2:]:
        path.unlink()
    process = subprocess.Popen(
        bench.command(ledger.root),
        env={**os.environ, "QUANTLAB_HOME": str(tmp_path / "home")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 240
    while len(slices(ledger)) < 3 and time.monotonic() < end:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert slices(ledger) == slices(whole)[:3]
    assert numbers(pipeline.run(bench.ask(), ledger)) == numbers(run)
    assert slices(ledger) == slices(whole)


def test_a_second_precision_takes_the_baselines_slices_and_shares_the_budget(
    first: tuple[Run, Ledger], bench: Early, tmp_path: Path
) -> None:
    _, whole = first
    ledger = bench.copy(whole, tmp_path / "runs")
    run = pipeline.run(bench.ask("few.yaml", "rough.yaml"), ledger)
    new = slices(ledger)[len(slices(whole)) :]
    assert ("rough", (0, 24)) in new
    assert not {("bf16", (0, 24)), ("bf16", (24, 48)), ("few", (0, 24))} & set(new)
    for each in run.candidates[1:]:
        assert each.comparison is not None
        look = each.comparison.look
        assert look is not None
        assert look.status != "undecided"
        # Alone it would be 0.9; two share the budget, and the first to be accepted leaves its part to the other.
        assert look.scored == look.items or (look.difference.confidence or 0) >= 0.925 - 1e-9


def test_a_suite_that_is_known_in_full_is_not_scored_again_and_decides_exactly(
    first: tuple[Run, Ledger], bench: Early, tmp_path: Path
) -> None:
    early, whole = first
    ledger = bench.copy(whole, tmp_path / "runs")
    full = pipeline.run(bench.ask(policy="full.yaml"), ledger)
    (verdict, sooner) = (each.candidates[1].verdict for each in (full, early))
    assert (verdict.status, verdict.scope, verdict.items_used) == (sooner.status, "suite", 96)
    assert "all 96 items scored" in verdict.reason
    assert "Beyond this suite: [" in verdict.reason
    before, seen = len(ledger.entries()), Seen()
    again = pipeline.run(bench.ask(), ledger, seen)
    assert len(ledger.entries()) == before
    both = [run.candidates[1].comparison for run in (again, full)]
    assert both[0] is not None
    assert both[1] is not None
    assert both[0].suite.difference == both[1].suite.difference
    assert both[0].population == both[1].population
    one, other = slices(ledger)[0], slices(ledger)[-1]
    assert (one[1], other) == ((0, 24), ("few", None))


def test_an_early_run_to_the_end_of_its_suite_ranks_kinds_and_can_be_held_against_a_full_one(
    first: tuple[Run, Ledger], bench: Early, tmp_path: Path
) -> None:
    _, whole = first
    ledger = bench.copy(whole, tmp_path / "runs")
    sliced = pipeline.run(bench.ask(policy="strict.yaml"), ledger)
    comparison = sliced.candidates[1].comparison
    assert comparison is not None
    assert comparison.look is not None
    assert comparison.look.scored == comparison.look.items == 96
    assert {part for _, part in slices(ledger)} == {(0, 24), (24, 48), (48, 96)}
    full = pipeline.run(bench.ask(policy="full.yaml"), ledger)
    other = full.candidates[1].comparison
    assert other is not None
    assert len(comparison.categories) == len(other.categories) > 2
    assert [each.kind for each in comparison.categories] == [each.kind for each in other.categories]
    found = compared(chosen(sliced, ledger), chosen(full, ledger))
    rows = [pair.comparison.suite for pair in found.pairs if pair.comparison]
    assert len(rows) == 2
    assert [(row.n, row.regressed, row.improved) for row in rows] == [(96, 0, 0)] * 2


def test_an_early_run_that_stopped_ranks_nothing_compares_nothing_and_says_why(
    first: tuple[Run, Ledger], bench: Early, tmp_path: Path
) -> None:
    early, whole = first
    ledger = bench.copy(whole, tmp_path / "runs")
    full = pipeline.run(bench.ask(policy="full.yaml"), ledger)
    found = compared(chosen(early, ledger), chosen(full, ledger))
    for pair in found.pairs:
        assert pair.status == "not comparable"
        assert "scored until certain, 48 of 96 items" in pair.reason
        assert "--no-early" in pair.reason
    assert early.candidates[1].comparison is not None
    assert early.candidates[1].comparison.categories == ()
    assert "Not ranked: scoring stopped" in to_html(early)
    assert "Not ranked: scoring stopped" in to_markdown(early)
    assert "Not ranked" not in to_html(full)


def chosen(run: Run, ledger: Ledger) -> Chosen:
    return Chosen(run.created, run, ledger)


def test_what_collapsed_on_the_fidelity_screen_is_not_scored(
    first: tuple[Run, Ledger], bench: Early, tmp_path: Path
) -> None:
    _, whole = first
    ledger = bench.copy(whole, tmp_path / "runs")
    shutil.rmtree(ledger.root / "entries" / "fidelity")
    scored = slices(ledger)
    for _ in range(2):  # the second time it comes out of the ledger
        verdict = pipeline.run(bench.ask(policy="touchy.yaml"), ledger).candidates[1].verdict
        assert (verdict.status, verdict.rung) == ("regression", "fidelity")
        assert "found by the fidelity screen over 384 positions" in verdict.reason
        assert slices(ledger) == scored
        assert {entry.recipe for entry in ledger.entries("fidelity")} == {"few"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"early": True, "scope": "population"}, "--scope population"),
        ({"policy": "early", "scope": "population"}, "--scope population"),
        ({"policy": "said", "early": True}, "field scope"),
        ({"policy": "both"}, "line 2"),
        ({"policy": "none"}, "line 3"),
    ],
)
def test_contradictions_are_refused_with_a_cure(words: dict[str, object], named: str, tmp_path: Path) -> None:
    (tmp_path / "said.yaml").write_text("summary: x\nscope: population\n")
    (tmp_path / "both.yaml").write_text("summary: x\nscope: population\nearly: true\n")
    (tmp_path / "none.yaml").write_text("summary: x\nearly: true\nmax_drop: 0\n")
    name = words.get("policy", "default")
    path = tmp_path / f"{name}.yaml"
    ask = dataclasses.replace(pipeline.Ask(model="smollm2-135m"), **words)  # type: ignore[arg-type]
    with pytest.raises(BadInput) as refused:
        pipeline.resolve(dataclasses.replace(ask, policy=str(path) if path.exists() else str(name)))
    assert named in str(refused.value) + refused.value.place
    assert refused.value.cure


def test_the_claim_is_spelled_out_and_the_command_repeats_it() -> None:
    ask = pipeline.Ask(model="smollm2-135m", recipes=("fp8",), early=True)
    assert pipeline.resolve(ask).policy.scope == "suite"
    assert pipeline.assemble.command(ask).endswith("--early")
    plain = dataclasses.replace(ask, early=False, scope="population", policy="early")
    assert pipeline.resolve(plain).policy.claims == "population"
    assert pipeline.assemble.command(plain).endswith("--scope population --no-early")
    assert pipeline.resolve(pipeline.Ask(model="smollm2-135m")).policy.scope == "population"
