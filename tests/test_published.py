"""Published scores: faults in the file are named, and a baseline is held against them, never failed by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantlab import anchors, catalog, host, pipeline
from quantlab.errors import BadInput
from quantlab.ledgers import Ledger
from quantlab.measure import items
from quantlab.pipeline.assemble import Walk, assemble
from quantlab.records import Accuracy, Number, PublishedScore, Suite, SuiteTask, TaskScore

ROW = PublishedScore(
    publisher="Meta",
    benchmark="MMLU",
    task="mmlu_llama",
    metric="exact_match,strict_match",
    shots=5,
    stated="macro_avg/acc",
    percent={"3b": 63.4},
    source="https://example.org/card",
)


def score(
    task: str, share: float, group: str = "", shots: int = 5, metric: str = "exact_match,strict_match"
) -> TaskScore:
    number = Number(value=share, unit="share", n=100, standard_error=0.04)
    return TaskScore(task=task, metric=metric, n=100, score=number, shots=shots, group=group)


def told(*scores: TaskScore, row: PublishedScore = ROW, **ask: Any) -> list[str]:
    suite = Suite(summary="s", tasks=(SuiteTask(task="mmlu_llama", **ask),))
    return list(anchors.notes(Accuracy(suite="s", tasks=scores, items=""), suite, [(row, 63.4)]))


def test_a_baseline_close_to_the_published_score_is_said_to_be() -> None:
    (note,) = told(score("mmlu_llama", 0.61))
    assert "Baseline MMLU (mmlu_llama, 5-shot): 61.0 % ± 4.0 against 63.4 % published by Meta" in note
    assert "-2.4 points, within 3 points" in note
    assert note.endswith("Source: https://example.org/card")
    assert "Check" not in note


def test_a_baseline_far_off_says_what_to_check() -> None:
    (note,) = told(score("mmlu_llama", 0.57))
    assert "-6.4 points, outside 3 points. Check chat template, shots" in note


def test_a_group_is_the_mean_of_its_tasks_each_weighing_the_same() -> None:
    parts = [score("mmlu_llama_a", 0.5, "mmlu_llama"), score("mmlu_llama_b", 0.7, "mmlu_llama"), score("other", 0.0)]
    (note,) = told(*parts, limit=20)
    assert "60.0 % ± 2.8" in note
    assert "first 20 items only of each task" in note


def test_another_metric_or_protocol_is_named_instead_of_suspected() -> None:
    row = PublishedScore(
        publisher="Meta", benchmark="IFEval", task="mmlu_llama", metric="acc", shots=5, stated="mean of four",
        percent={"3b": 63.4}, source="https://example.org", differs="four figures are averaged",
    )  # fmt: skip
    (note,) = told(score("mmlu_llama", 0.5), row=row)
    assert "outside 3 points" in note
    assert "four figures are averaged; exact_match,strict_match here, mean of four there" in note
    assert "Check" not in note


def test_other_shots_are_not_held_against_it() -> None:
    assert told(score("mmlu_llama", 0.61, shots=0)) == []
    assert told(score("another", 0.61)) == []


def test_the_file_names_known_models_and_a_page_for_every_score() -> None:
    rows = catalog.published_scores(catalog.model("3b"))
    told = {row.benchmark: percent for row, percent in rows}
    assert (told["MMLU"], told["GSM8K (CoT)"], told["ARC-C"], told["HellaSwag"]) == (63.4, 77.7, 78.6, 69.8)
    assert catalog.published_scores(catalog.model("meta-llama/Llama-3.2-3B-Instruct")) == rows
    assert catalog.published_scores(catalog.model("smollm2-135m")) == ()
    for word in ("1b", "11b", "90b", "1b-base", "3b-base", "11b-base", "90b-base"):
        assert catalog.published_scores(catalog.model(word)), word


def test_the_suite_of_the_model_card_meets_its_published_scores() -> None:
    suite = catalog.suite("llama32").record
    assert isinstance(suite, Suite)
    rows = [row for row, _ in catalog.published_scores(catalog.model("1b"))]
    for task in suite.tasks:
        assert any((row.task, row.shots) == (task.task, task.shots) for row in rows), task.task
    exact = {row.task for row in rows for task in suite.tasks if (row.task, row.metric) == (task.task, task.metric)}
    assert exact == {"mmlu_llama", "gsm8k_llama", "arc_challenge_llama"}


def test_the_note_stands_in_the_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs")
    items.write([], tmp_path / "items.parquet")
    resolved = pipeline.resolve(pipeline.Ask(model="3b", recipes=("fp8",), suite="llama32"))
    walk = Walk(name="bf16", recipe=resolved.recipes[0][1])
    scored = score("hellaswag", 0.705, shots=0, metric="acc_norm")
    place = ledger.adopt("items", "items.parquet", tmp_path / "items.parquet")
    walk.accuracy = Accuracy(suite="llama32", tasks=(scored,), items=place)
    run = assemble(resolved, [walk], host.describe(), ledger)
    assert any("against 69.8 % published by Meta, +0.7 points, within 3 points" in note for note in run.notes)
    assert run.candidates[0].verdict.status == "baseline"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("    percnt: {3b: 50}\n", "percnt"),
        ("    percent: {3bb: 50}\n", "no model is called '3bb'"),
        ("    percent: {3b: 500}\n", "not a score in percent"),
        ("    percent: {3b: half}\n", "expected a number"),
        ("    percent: {3b: 50}\n    source: Meta says so\n", "no page"),
        ("    percent: {3b: 50}\n    metric: acc\n", "metric of no task"),
    ],
)
def test_faults_in_the_file_are_named_with_their_line(
    change: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = "accuracy:\n  - publisher: P\n    benchmark: B\n    shots: 0\n    stated: acc\n"
    source = "" if "source" in change else "    source: https://example.org\n"
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "published.yaml").write_text(row + source + change)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        catalog.published_scores(catalog.model("3b"))
    assert named in str(caught.value)
    assert "evals/published.yaml, line" in str(caught.value)
