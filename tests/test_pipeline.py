"""The whole walk on a tiny model: real ModelOpt, real lm-eval, real child processes; twice, killed, and two at once."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from quantlab import catalog, pipeline
from quantlab.errors import Broken, QuantlabError
from quantlab.ledgers import Ledger
from quantlab.records import Candidate, Event, Run

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """\
summary: FP8 on very little text
preset: FP8_DEFAULT_CFG
format: fp8
calibration: {set: python-docs, samples: 4, length: 64}
"""
SUITE = f"""\
summary: a handful of items
synthetic: true
tasks:
  - {{task: ql_arithmetic, metric: acc, limit: 48}}
  - {{task: ql_agreement, metric: acc, limit: 48}}
canary:
  - the cat sat on the mat and the cat sat on the mat and
  - one two three four five six one two three four five six
  - a rose is red and a rose is sweet a rose is red and a rose is sweet
fidelity: {{text: {ROOT / "evals" / "texts" / "heldout.txt"}, windows: 2, length: 64, burn_in: 8, top_k: 64}}
"""
GRID = "summary: one cell\nisl: [8]\nosl: [4]\nbatch: [2]\nrepeats: 2\n"


@dataclass
class Seen:
    """A watcher that remembers."""

    stages: list[tuple[str, str, bool]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def stage(self, recipe: str, stage: str, *, cached: bool) -> None:
        self.stages.append((recipe, stage, cached))

    def event(self, recipe: str, event: Event) -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)


@dataclass(frozen=True)
class Bench:
    folder: Path
    model: Path

    def ask(self, recipe: str = "few.yaml", engine: str = "fake") -> pipeline.Ask:
        return pipeline.Ask(
            model=str(self.model),
            recipes=(str(self.folder / recipe),),
            suite=str(self.folder / "suite.yaml"),
            grid=str(self.folder / "grid.yaml"),
            engine=engine,
        )

    def command(self, ledger: Path) -> list[str]:
        ask = self.ask()
        return [sys.executable, "-m", "quantlab", "run", *ask.recipes, "--model", ask.model, "--suite", ask.suite,
                "--grid", ask.grid, "--engine", "fake", "--ledger", str(ledger), "--json"]  # fmt: skip


@pytest.fixture(scope="module")
def bench(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    folder.joinpath("few.yaml").write_text(RECIPE)
    folder.joinpath("suite.yaml").write_text(SUITE)
    folder.joinpath("grid.yaml").write_text(GRID)
    return Bench(folder, tiny_model)


@pytest.fixture(scope="module")
def first(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Ledger, Seen]:
    ledger, seen = Ledger(tmp_path_factory.mktemp("runs")), Seen()
    return pipeline.run(bench.ask(), ledger, seen), ledger, seen


def numbers(run: Run) -> list[bytes]:
    """What a run found out, without times."""
    found = []
    for each in run.candidates:
        accuracy = (
            [msgspec.structs.replace(task, seconds=0.0) for task in each.accuracy.tasks] if each.accuracy else None
        )
        fidelity = msgspec.structs.replace(each.fidelity, seconds=0.0) if each.fidelity else None
        digest = each.calibrated.checkpoint.digest if each.calibrated else None
        found.append(msgspec.json.encode([digest, accuracy, fidelity, each.comparison, each.verdict]))
    return found


def test_a_run_walks_all_stages_and_judges(first: tuple[Run, Ledger, Seen]) -> None:
    run, ledger, seen = first
    baseline, candidate = run.candidates
    assert (baseline.recipe_name, baseline.verdict.status) == ("bf16", "baseline")
    assert candidate.verification is not None
    assert candidate.verification.passed, candidate.verification
    assert candidate.failure is None
    assert candidate.comparison is not None
    assert candidate.comparison.suite.n == 96
    assert candidate.fidelity is not None
    assert candidate.fidelity.kl.value > 0
    assert {stage for _, stage, cached in seen.stages if not cached} >= {"calibrate", "verify", "canary"}
    stages = {(entry.recipe, entry.stage, entry.status) for entry in ledger.entries()}
    assert ("bf16", "reference", "done") in stages
    assert ("few", "fidelity", "done") in stages
    assert ("few", "throughput", "done") in stages
    assert any("generated items" in note for note in run.notes)


def test_a_baseline_that_is_no_language_model_ends_the_run_each_time(bench: Bench, tmp_path: Path) -> None:
    text = bench.folder.joinpath("suite.yaml").read_text()
    bench.folder.joinpath("lost.yaml").write_text(text[: text.index("canary:")] + text[text.index("fidelity:") :])
    ask = dataclasses.replace(bench.ask(), suite=str(bench.folder / "lost.yaml"))
    ledger = Ledger(tmp_path / "runs")
    for _ in range(2):  # the second time the failed canary comes out of the ledger
        with pytest.raises(Broken, match="no language model"):
            pipeline.run(ask, ledger)
    assert {entry.stage for entry in ledger.entries()} == {"calibrate", "verify", "canary"}


def test_the_ledger_tells_nothing_of_this_machine(first: tuple[Run, Ledger, Seen], bench: Bench) -> None:
    _, ledger, _ = first
    for entry in ledger.entries():
        text = msgspec.json.encode(entry.spec).decode()
        assert str(bench.folder) not in text
        assert str(ledger.root) not in text


def test_the_frame_holds_the_headline_numbers(first: tuple[Run, Ledger, Seen]) -> None:
    _, ledger, _ = first
    frame = ledger.frame()
    assert len(frame) == len(ledger.entries())
    assert frame[frame.stage == "accuracy"]["score"].between(0, 1).all()


def test_a_second_run_computes_nothing_and_says_the_same(first: tuple[Run, Ledger, Seen], bench: Bench) -> None:
    run, ledger, _ = first
    before, seen = len(ledger.entries()), Seen()
    again = pipeline.run(bench.ask(), ledger, seen)
    assert all(cached for _, _, cached in seen.stages)
    assert len(ledger.entries()) == before
    assert numbers(again) == numbers(run)


def test_another_margin_is_judged_without_measuring(first: tuple[Run, Ledger, Seen], bench: Bench) -> None:
    _, ledger, _ = first
    seen = Seen()
    loose = dataclasses.replace(bench.ask(), max_drop=60.0)
    assert pipeline.run(loose, ledger, seen).candidates[1].verdict.status == "accept"
    assert all(cached for _, _, cached in seen.stages)


@pytest.mark.parametrize("stage", ["calibrate", "accuracy"])
def test_kill_9_and_the_same_command_again_give_the_same_numbers(
    stage: str, first: tuple[Run, Ledger, Seen], bench: Bench, tmp_path: Path
) -> None:
    undisturbed, whole, _ = first
    root = tmp_path / "runs"
    environment = {**os.environ, "QUANTLAB_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        bench.command(root), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until_at(stage, Ledger(root), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    ledger = Ledger(root)
    assert len(ledger.entries()) < len(whole.entries())
    assert numbers(pipeline.run(bench.ask(), ledger)) == numbers(undisturbed)


def until_at(stage: str, ledger: Ledger, process: subprocess.Popen[bytes], seconds: float = 240) -> None:
    """Wait until the candidate is being calibrated, or the baseline's reference is written and accuracy is next."""
    before = {"calibrate": ("canary", "bf16"), "accuracy": ("reference", "bf16")}[stage]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "the run ended before it could be killed"
        if any((entry.stage, entry.recipe) == before for entry in ledger.entries()):
            return
        time.sleep(0.02)
    raise AssertionError("the stage never came")


def test_two_runs_at_once_share_the_work(bench: Bench, first: tuple[Run, Ledger, Seen], tmp_path: Path) -> None:
    undisturbed, whole, _ = first
    root = tmp_path / "runs"
    environment = {**os.environ, "QUANTLAB_HOME": str(tmp_path / "home")}
    both = [subprocess.Popen(bench.command(root), env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    outs = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [numbers(msgspec.json.decode(out, type=Run)) for out in outs] == [numbers(undisturbed)] * 2
    assert len(Ledger(root).entries()) == len(whole.entries())


def test_a_recipe_that_cannot_work_is_a_record_and_the_run_goes_on(
    bench: Bench, first: tuple[Run, Ledger, Seen]
) -> None:
    _, ledger, _ = first
    bench.folder.joinpath("wrong.yaml").write_text(RECIPE.replace("FP8_DEFAULT_CFG", "FP8_DEFALT_CFG"))
    run = pipeline.run(bench.ask("wrong.yaml"), ledger)
    wrong: Candidate = run.candidates[1]
    assert wrong.verdict.status == "infeasible"
    assert wrong.failure is not None
    assert "FP8_DEFAULT_CFG" in wrong.failure.cure + wrong.failure.problem
    assert any(entry.recipe == "wrong" and entry.status == "failed" for entry in ledger.entries())


def test_the_built_in_recipes_are_found_by_name() -> None:
    assert [catalog.recipe(word).name for word in ("bf16", "fp8", "int4_awq")] == ["bf16", "fp8", "int4_awq"]


def test_a_failure_while_measuring_keeps_what_was_finished_and_names_its_stage(bench: Bench, tmp_path: Path) -> None:
    bench.folder.joinpath("none.jsonl").write_text("this is not JSON\n")
    task = "  - {task: ql_arithmetic, metric: acc, limit: 8, data: {test: none.jsonl}}\n"
    text = bench.folder.joinpath("suite.yaml").read_text()
    broken = text[: text.index("tasks:")] + "tasks:\n" + task + text[text.index("canary:") :]
    bench.folder.joinpath("broken.yaml").write_text(broken)
    ask = dataclasses.replace(bench.ask(), suite=str(bench.folder / "broken.yaml"))
    ledger = Ledger(tmp_path / "runs")
    with pytest.raises(QuantlabError) as stopped:
        pipeline.run(ask, ledger)
    assert "Traceback" not in str(stopped.value)
    written = {(entry.stage, entry.status) for entry in ledger.entries()}
    assert {("canary", "done"), ("reference", "done"), ("accuracy", "failed")} <= written
    assert ("throughput", "done") not in written
