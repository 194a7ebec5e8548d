"""A finished checkpoint beside recipes: the same numbers as the recipe that made it, the same gate, the same report."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quantlab import pipeline
from quantlab.errors import BadInput, Broken, Refused
from quantlab.formats.convert import convert
from quantlab.ledgers import Ledger
from quantlab.pipeline.assemble import items_by_task
from quantlab.records import Candidate, Run
from tests.finished_parts import copied, say
from tests.test_pipeline import GRID, RECIPE, ROOT, Seen

SUITE = f"""\
summary: a few items
synthetic: true
tasks:
  - {{task: ql_agreement, metric: acc, limit: 40}}
fidelity: {{text: {ROOT / "evals" / "texts" / "heldout.txt"}, windows: 4, length: 64, burn_in: 8, top_k: 64}}
"""
INT4 = "summary: int4\npreset: INT4_BLOCKWISE_WEIGHT_ONLY_CFG\nformat: int4\ngroup_size: 32\n"


@dataclasses.dataclass(frozen=True)
class Shop:
    """What a recipe run left, and its exports as somebody else would publish them."""

    ask: pipeline.Ask
    run: Run
    ledger: Ledger
    folder: Path

    def judged(self, *words: str, root: Path, seen: Seen | None = None, **fields: Any) -> Run:
        ask = dataclasses.replace(self.ask, recipes=words, **fields)
        return pipeline.run(ask, Ledger(root), seen)


@pytest.fixture(scope="module")
def shop(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    for name, text in (("few.yaml", RECIPE), ("four.yaml", INT4), ("suite.yaml", SUITE), ("grid.yaml", GRID)):
        folder.joinpath(name).write_text(text)
    ask = pipeline.Ask(
        model=str(tiny_model),
        recipes=(str(folder / "few.yaml"), str(folder / "four.yaml")),
        suite=str(folder / "suite.yaml"),
        grid=str(folder / "grid.yaml"),
        stages=("calibrate", "verify", "fidelity", "accuracy"),
    )
    ledger = Ledger(folder / "runs")
    run = pipeline.run(ask, ledger)
    for each in run.candidates[1:]:
        assert each.calibrated is not None
        made = copied(ledger.path(each.calibrated.checkpoint.path), folder / f"org-{each.recipe_name}")
        shutil.rmtree(made / "quantlab")
    return Shop(ask, run, ledger, folder)


def _numbers(found: Candidate, ledger: Ledger) -> list[Any]:
    assert found.fidelity is not None
    assert found.accuracy is not None
    columns = {task: table.columns for task, table in items_by_task(ledger, found.accuracy).items()}
    scores = [msgspec.structs.replace(task, seconds=0.0) for task in found.accuracy.tasks]
    return [found.fidelity.kl, found.fidelity.top1, found.fidelity.kl_percentiles, scores, columns]


def test_judged_as_finished_checkpoint_an_export_gives_the_numbers_of_its_recipe(shop: Shop, tmp_path: Path) -> None:
    root, seen = tmp_path / "other", Seen()
    run = shop.judged(str(shop.folder / "org-few"), str(shop.folder / "org-four"), root=root, seen=seen)
    for before, after in zip(shop.run.candidates[1:], run.candidates[1:], strict=True):
        assert after.failure is None, after.failure
        assert after.recipe_name == f"org-{before.recipe_name}"
        assert _numbers(after, Ledger(root)) == _numbers(before, shop.ledger)
        assert after.comparison == before.comparison
        assert after.verdict == before.verdict
        assert after.calibrated is not None
        assert before.calibrated is not None
        mine, theirs = after.calibrated.checkpoint, before.calibrated.checkpoint
        assert msgspec.structs.replace(mine, path="", recipe="") == msgspec.structs.replace(theirs, path="", recipe="")
        assert after.verification is not None
        errors = {one.layer: one.weight_error for one in after.verification.damage}
        assert before.verification is not None
        for one in before.verification.damage:
            assert errors[one.layer] == pytest.approx(one.weight_error, abs=2e-6)
    assert ("org-few", "calibrate", False) not in seen.stages
    # The checks come first: a checkpoint of another model is not worth an hour of measuring the baseline.
    checked = [place for place, (_, stage, cached) in enumerate(seen.stages) if stage == "verify" and not cached]
    assert max(checked[:2]) < seen.stages.index(("bf16", "calibrate", False))
    assert any("org-few: Made elsewhere: org-few, by modelopt" in note for note in run.notes)
    assert "org-few" in run.command


def test_a_second_run_and_the_recipes_own_ledger_compute_nothing(shop: Shop) -> None:
    """A checkpoint is its bytes: what the recipe's run measured is this checkpoint's number as well."""
    seen = Seen()
    run = shop.judged(str(shop.folder / "org-few"), root=shop.ledger.root, seen=seen)
    measured = {stage for _, stage, cached in seen.stages if not cached}
    assert measured <= {"verify"}
    assert run.candidates[1].comparison == shop.run.candidates[1].comparison


@pytest.mark.parametrize("layout", ["compressed-tensors", "autoawq"])
def test_the_same_codes_in_the_layouts_of_others(shop: Shop, tmp_path: Path, layout: Any) -> None:
    convert(shop.folder / "org-four", tmp_path / "theirs", layout)
    (tmp_path / "theirs" / "quantlab_conversion.json").unlink()
    run = shop.judged(str(tmp_path / "theirs"), root=shop.ledger.root)
    before, after = shop.run.candidates[2], run.candidates[1]
    assert after.failure is None, after.failure
    assert before.fidelity is not None
    assert after.fidelity is not None
    if layout == "compressed-tensors":  # its scales are kept in float32
        assert after.fidelity.kl == before.fidelity.kl
        assert after.fidelity.top1 == before.fidelity.top1
    else:
        assert after.fidelity.kl.value == pytest.approx(before.fidelity.kl.value, rel=0.05)
    assert after.calibrated is not None
    assert after.calibrated.finished is not None
    assert after.calibrated.finished.layout == layout


def test_beside_a_recipe_and_in_the_report(shop: Shop, tmp_path: Path) -> None:
    from quantlab import report

    run = shop.judged(str(shop.folder / "four.yaml"), str(shop.folder / "org-few"), root=shop.ledger.root)
    assert [each.recipe_name for each in run.candidates] == ["bf16", "four", "org-few"]
    paths = report.write(run, tmp_path, "both")
    for kind in ("html", "markdown"):
        text = next(path for name, path in paths.items() if kind in name or path.suffix == ".md").read_text()
        assert "made elsewhere" in text.lower()
        assert "org-few" in text
    again = msgspec.json.decode(msgspec.json.encode(run), type=Run)
    assert again == run


def test_another_model_ends_it_before_the_baseline_is_measured(shop: Shop, tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(9)
    other = copied(tiny_model, tmp_path / "other")
    LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_model)).to(torch.bfloat16).save_pretrained(other)
    seen = Seen()
    with pytest.raises(Broken, match="another model's") as caught:
        shop.judged(str(shop.folder / "org-few"), root=tmp_path / "runs", seen=seen, model=str(other))
    assert "--model" in caught.value.cure
    assert {stage for _, stage, _ in seen.stages} == {"verify"}
    # Beside a recipe it is a line of the report, and the run goes on.
    run = shop.judged(
        str(shop.folder / "org-few"), str(shop.folder / "four.yaml"), root=tmp_path / "runs", model=str(other)
    )
    bad, good = run.candidates[1:]
    assert bad.verdict.status == "anomalous"
    assert bad.fidelity is None
    assert good.fidelity is not None


def test_other_dimensions_end_it_before_anything_starts(shop: Shop, tmp_path: Path) -> None:
    folder = say(copied(shop.folder / "org-few", tmp_path / "q"), "config.json", num_attention_heads=8)
    seen = Seen()
    with pytest.raises(BadInput, match="num_attention_heads 8 against 4"):
        shop.judged(str(folder), root=tmp_path / "runs", seen=seen)
    assert seen.stages == []


def test_words(shop: Shop, tmp_path: Path) -> None:
    twin = copied(shop.folder / "org-few", tmp_path / "twin" / "org-few")
    ask = dataclasses.replace(shop.ask, recipes=(str(twin), str(shop.folder / "org-few"), "fp8"))
    names = [found.name for found, _ in pipeline.resolve(ask).recipes]
    assert names == ["bf16", "twin/org-few", f"{shop.folder.name}/org-few", "fp8"]
    for word, error, text in (
        (str(shop.folder / "nowhere"), BadInput, "does not exist"),
        (str(shop.folder), BadInput, "config.json"),
        ("model-Q4_K.gguf", Refused, "GGUF"),
    ):
        with pytest.raises(error, match=text):
            pipeline.resolve(dataclasses.replace(shop.ask, recipes=(word,)))
    hub = pipeline.resolve(dataclasses.replace(shop.ask, recipes=("RedHatAI/Llama-3.2-3B-Instruct-FP8",)))
    assert hub.recipes[1][0].name == "RedHatAI/Llama-3.2-3B-Instruct-FP8"


def test_repair_and_study_need_a_recipe(shop: Shop) -> None:
    from quantlab.pipeline.repair import repair
    from quantlab.pipeline.repair_ask import RepairAsk

    ask = dataclasses.replace(shop.ask, recipes=(str(shop.folder / "org-few"),))
    with pytest.raises(BadInput, match="finished checkpoint"):
        repair(RepairAsk(ask=ask), shop.ledger)


def test_dry_run_says_what_was_recognised_and_starts_nothing(shop: Shop, tmp_path: Path) -> None:
    words = [str(shop.folder / "org-four"), "--model", shop.ask.model, "--dry-run", "--ledger", str(tmp_path / "no")]
    command = [sys.executable, "-m", "quantlab", "run", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "Made elsewhere: org-four, by modelopt" in done.stdout
    assert "W4A16_AWQ in the layout of modelopt, groups of 32" in done.stdout
    assert not (tmp_path / "no").exists()


def test_what_torch_does_not_compute_is_refused_with_the_engine_that_may(shop: Shop, tmp_path: Path) -> None:
    convert(shop.folder / "org-four", tmp_path / "q", "compressed-tensors")
    said = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    say(tmp_path / "q", "config.json", quantization_config=said | {"sparsity_config": {"format": "sparse-24-bitmask"}})
    run = shop.judged(str(tmp_path / "q"), root=shop.ledger.root)
    assert run.candidates[1].verdict.status == "infeasible"
    assert "sparse-24-bitmask" in run.candidates[1].verdict.reason
    assert "--engine vllm" in run.candidates[1].verdict.reason
