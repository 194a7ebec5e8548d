"""Several recipes of a run: calibrated in one child, killed between two of them, gone on with the missing ones."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantlab import child, pipeline
from quantlab.errors import StageFailed
from quantlab.ledgers import Ledger
from tests.terminal import Terminal, require_gone
from tests.test_pipeline import Seen

FEW = "{set: python-docs, samples: 4, length: 64}"
MANY = "{set: python-docs, samples: 64, length: 64, batch: 1}"
RECIPES = {
    "one": f"summary: FP8\npreset: FP8_DEFAULT_CFG\nformat: fp8\ncalibration: {FEW}\n",
    "two": f"summary: INT8\npreset: INT8_SMOOTHQUANT_CFG\nformat: int8_sq\ncalibration: {MANY}\n",
    "three": f"summary: FP8 and its cache\npreset: FP8_DEFAULT_CFG\nformat: fp8\nkv_cache: fp8\ncalibration: {FEW}\n",
    "wrong": f"summary: a typing error\npreset: FP8_DEFALT_CFG\nformat: fp8\ncalibration: {FEW}\n",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("recipes")
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    return {name: str(folder / f"{name}.yaml") for name in RECIPES}


def ask(model: Path, recipes: tuple[str, ...]) -> pipeline.Ask:
    return pipeline.Ask(model=str(model), recipes=recipes, engine="fake", stages=("calibrate",))


def made(root: Path) -> dict[str, tuple[str, str]]:
    """Recipe -> status of its calibration and digest of the checkpoint."""
    return {
        entry.recipe: (entry.status, entry.result["checkpoint"]["digest"] if entry.result else "")
        for entry in Ledger(root).entries("calibrate")
    }


@pytest.fixture(scope="module")
def alone(tiny_model: Path, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digest of each recipe's checkpoint, each calibrated by a run of its own."""
    root = tmp_path_factory.mktemp("alone")
    for name in ("one", "two", "three"):
        pipeline.run(ask(tiny_model, (files[name],)), Ledger(root))
    return {name: digest for name, (_, digest) in made(root).items()}


def test_a_run_calibrates_all_in_one_child_and_records_each(
    tiny_model: Path, files: dict[str, str], alone: dict[str, str], tmp_path: Path
) -> None:
    ledger, seen = Ledger(tmp_path / "runs"), Seen()
    names = ("one", "wrong", "two", "three")
    run = pipeline.run(ask(tiny_model, tuple(files[name] for name in names)), ledger, seen)
    assert made(ledger.root) == {name: ("done", digest) for name, digest in alone.items()} | {"wrong": ("failed", "")}
    assert [each.failure is not None for each in run.candidates] == [False, False, True, False, False]
    assert run.candidates[2].failure is not None
    assert "FP8_DEFAULT_CFG" in run.candidates[2].failure.cure
    shared = {each.recipe_name: each.calibrated.notes for each in run.candidates if each.calibrated}
    assert "activations shared with one, not measured again" in shared["three"]
    # Each is announced once as new, in the child, and once out of the ledger, when it walks by itself.
    assert [stage for stage in seen.stages if stage[0] == "three"][:2] == [
        ("three", "calibrate", False),
        ("three", "calibrate", True),
    ]
    for entry in ledger.entries("calibrate"):
        assert str(tmp_path) not in msgspec.json.encode(entry.spec).decode()


def test_killed_between_two_recipes_the_next_run_takes_up_there(
    tiny_model: Path, files: dict[str, str], alone: dict[str, str], tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    words = [files[name] for name in ("one", "two", "three")]
    command = [sys.executable, "-m", "quantlab", "run", *words, "--model", str(tiny_model), "--engine", "fake"]
    command += ["--stage", "calibrate", "--ledger", str(root)]
    for how in ("kill -9", "Ctrl-C"):
        terminal = Terminal(command)
        terminal.until(r"two +calibrate +measuring activations")
        assert (terminal.kill() if how == "kill -9" else terminal.press_ctrl_c()) in (-signal.SIGKILL, 130)
        require_gone(root)
        assert made(root).keys() == {"bf16", "one"}
    last = Terminal(command)
    assert last.wait() == 0, last.text[-2000:]
    assert {name: digest for name, (_, digest) in made(root).items()} == alone
    assert len(Ledger(root).entries("calibrate")) == 4


def test_a_child_that_dies_of_one_recipe_leaves_the_others_to_walk_alone(
    tiny_model: Path, files: dict[str, str], alone: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, seen = child.run, Seen()

    def dies(task: str, *rest: Any, **more: Any) -> Any:
        if task == "calibrate_all":
            raise StageFailed("the child was killed", place="stage calibrate_all")
        return whole(task, *rest, **more)

    monkeypatch.setattr(child, "run", dies)
    ledger = Ledger(tmp_path / "runs")
    pipeline.run(ask(tiny_model, (files["one"], files["three"])), ledger, seen)
    assert made(ledger.root)["three"] == ("done", alone["three"])
    assert any("together failed" in text for text in seen.said)
