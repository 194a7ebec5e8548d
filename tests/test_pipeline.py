"""The whole walk on a tiny model: real ModelOpt, real lm-eval, real child processes; twice, killed, and two at once."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from quantlab import catalog, pipeline
from quantlab.errors import Broken, QuantlabError
from quantlab.ledgers import Ledger
from quantlab.records import Candidate, Event, Run
from tests.terminal import Terminal, require_gone

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """\
summary: FP8 on very little text
preset: FP8_DEFAULT_CFG
format: fp8
calibration: {set: python-docs, samples: 64, length: 64, batch: 1}
"""
# As much as makes every stage last a second or so: long enough to be stopped inside it.
SUITE = f"""\
summary: some items
synthetic: true
tasks:
  - {{task: ql_arithmetic, metric: acc, limit: 160}}
  - {{task: ql_agreement, metric: acc, limit: 160}}
canary:
{"".join(f"  - the cat {n} sat on the mat and the cat {n} sat on the mat and{chr(10)}" for n in range(1000))}
fidelity: {{text: {ROOT / "evals" / "texts" / "heldout.txt"}, windows: 100, length: 128, burn_in: 8, top_k: 64}}
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

    def command(self, ledger: Path, *more: str, engine: str = "fake", recipes: tuple[str, ...] = ()) -> list[str]:
        ask = self.ask()
        words = [*(recipes or ask.recipes), "--model", ask.model, "--suite", ask.suite, "--grid", ask.grid]
        return [sys.executable, "-m", "quantlab", "run", *words, "--engine", engine, "--ledger", str(ledger), *more]


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
        canary = msgspec.structs.replace(each.canary, seconds=0.0) if each.canary else None
        checks = each.verification.checks if each.verification else None
        found.append(msgspec.json.encode([digest, checks, canary, fidelity, accuracy, each.comparison, each.verdict]))
    return found


def test_a_run_walks_all_stages_and_judges(first: tuple[Run, Ledger, Seen]) -> None:
    run, ledger, seen = first
    baseline, candidate = run.candidates
    assert (baseline.recipe_name, baseline.verdict.status) == ("bf16", "baseline")
    assert candidate.verification is not None
    assert candidate.verification.passed, candidate.verification
    assert candidate.failure is None
    assert candidate.comparison is not None
    assert candidate.comparison.suite.n == 320
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


STOPS = (
    ("bf16", "reference", "windows"),
    ("few", "calibrate", "measuring activations"),
    ("few", "verify", "metadata"),
    ("few", "canary", "a few sentences"),
    ("few", "fidelity", "windows"),
    ("few", "accuracy", "ql_arithmetic"),
)
"""Recipe, stage, and words that only the stage itself sends, once it is at work."""


def stop(terminal: Terminal, how: str, root: Path, recipe: str, stage: str, words: str) -> None:
    """Stop the run inside a stage; nothing of that stage may stand in the ledger, and nobody may be left."""
    terminal.until(rf"{recipe} +{stage} +{words}")
    if how == "kill -9":
        assert terminal.kill() == -signal.SIGKILL
    else:
        assert terminal.press_ctrl_c() == 130
        assert "The same command goes on where it was." in terminal.text
    require_gone(root)
    entries = Ledger(root).entries()
    assert {entry.status for entry in entries} <= {"done"}
    assert (recipe, stage) not in {(entry.recipe, entry.stage) for entry in entries}, "it was over before"


def test_stopped_in_every_stage_by_kill_9_and_ctrl_c_the_same_command_gives_the_same_numbers(
    first: tuple[Run, Ledger, Seen], bench: Bench, tmp_path: Path
) -> None:
    """One run of thirteen lives: each stage is killed, begun again, stopped by Ctrl-C, and begun again."""
    undisturbed, whole, _ = first
    root = tmp_path / "runs"
    for recipe, stage, words in STOPS:
        for how in ("kill -9", "Ctrl-C"):
            stop(Terminal(bench.command(root)), how, root, recipe, stage, words)
    last = Terminal(bench.command(root))
    assert last.wait() == 0, last.text[-2000:]
    ledger = Ledger(root)
    run = ledger.last_run()
    assert run is not None
    assert numbers(run) == numbers(undisturbed)
    assert kept_files(run, ledger) == kept_files(undisturbed, whole)
    names = [(entry.recipe, entry.stage) for entry in ledger.entries()]
    assert sorted(names) == sorted((entry.recipe, entry.stage) for entry in whole.entries())


def kept_files(run: Run, ledger: Ledger) -> list[bytes]:
    """All item results, and the baseline's distribution, byte for byte."""
    accuracies = [each.accuracy for each in run.candidates if each.accuracy]
    references = [ledger.result(entry) for entry in ledger.entries("reference")]
    return [ledger.path(name).read_bytes() for name in (*(a.items for a in accuracies), *(r.path for r in references))]


def test_stopped_while_timing_the_same_command_times_every_cell(
    first: tuple[Run, Ledger, Seen], bench: Bench, tmp_path: Path
) -> None:
    """Engine torch, because the fake one is never timed. Times are measured anew; what was timed is the same."""
    root = tmp_path / "runs"
    shutil.copytree(first[1].root, root)
    grid = tmp_path / "grid.yaml"
    grid.write_text("summary: long enough\nisl: [6, 8, 9]\nosl: [48]\nbatch: [1]\nrepeats: 8\nmax_variation: 9.0\n")
    command = bench.command(root, "--stage", "throughput", "--grid", str(grid), engine="torch", recipes=("bf16",))
    for entry in Ledger(root).entries("throughput"):
        assert entry.result is not None
        assert not entry.result["cells"][0]["valid"], "the fake engine's"
    before = len(Ledger(root).entries())
    for how in ("kill -9", "Ctrl-C"):
        terminal = Terminal(command)
        terminal.until("bf16 +throughput +6 in, 48 out")
        assert (terminal.kill() if how == "kill -9" else terminal.press_ctrl_c()) in (-signal.SIGKILL, 130)
        require_gone(root)
        assert len(Ledger(root).entries()) == before
    last = Terminal(command)
    assert last.wait() == 0, last.text[-2000:]
    (timed,) = Ledger(root).entries()[before:]
    assert (timed.recipe, timed.stage, timed.status) == ("bf16", "throughput", "done")
    cells = Ledger(root).result(timed).cells
    assert [(cell.isl, cell.osl, cell.batch, cell.valid) for cell in cells] == [(n, 48, 1, True) for n in (6, 8, 9)]


def test_two_runs_at_once_share_the_work(bench: Bench, first: tuple[Run, Ledger, Seen], tmp_path: Path) -> None:
    undisturbed, whole, _ = first
    root = tmp_path / "runs"
    environment = {**os.environ, "QUANTLAB_HOME": str(tmp_path / "home")}
    both = [subprocess.Popen(bench.command(root, "--json"), env=environment, stdout=subprocess.PIPE) for _ in range(2)]
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
