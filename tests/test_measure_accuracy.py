"""A suite end to end on a tiny model: rows, scores, resuming after a kill, and results that cannot be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from quantlab.errors import BadInput, Broken
from quantlab.measure import items as item_rows
from quantlab.measure.accuracy import accuracy
from quantlab.measure.items import preferred
from quantlab.records import Accuracy, EngineConfig, Event, SuiteTask
from tests import measure_bench
from tests.measure_bench import PlainSession, bench, tiny_folder, write_task

TASKS = (SuiteTask(task="ql_facts", limit=8), SuiteTask(task="ql_agreement", limit=6, metric="acc_norm", shots=1))


def measure(folder: Path, session: Any = None, **fields: Any) -> tuple[Accuracy, dict[str, list[Any]]]:
    record, files = accuracy(bench(folder, session, **{"tasks": TASKS, **fields}))
    assert isinstance(record, Accuracy)
    assert list(files) == ["items.parquet"]
    columns: dict[str, list[Any]] = pq.read_table(files["items.parquet"]).to_pydict()
    return record, columns


def test_every_item_is_kept_and_the_scores_are_their_means(tmp_path: Path) -> None:
    record, columns = measure(tmp_path)
    facts, agreement = record.tasks
    assert (facts.task, facts.metric, facts.n, facts.shots, facts.chance) == ("ql_facts", "acc", 8, 0, 0.25)
    assert (agreement.metric, agreement.n, agreement.shots, agreement.chance) == ("acc_norm", 6, 1, 0.5)
    assert columns["task"] == ["ql_facts"] * 8 + ["ql_agreement"] * 6
    assert facts.score.value == sum(columns["correct"][:8]) / 8
    assert columns["id"][0] == "facts-0001"
    assert all(
        len(json.loads(choices)) == len(lls)
        for choices, lls in zip(columns["choices"], columns["loglikelihoods"], strict=True)
    )
    for right, answer, correct in zip(columns["right"], columns["answer"], columns["correct"], strict=True):
        assert (right == answer) == bool(correct)
    assert columns["bos"] == [1] * 14
    assert len(set(columns["prompt_digest"])) == 14
    assert record.requests == 8 * 4 + 6 * 2
    assert facts.broken == facts.truncated == 0
    assert columns["prompt"][8].count("\n\n") == 1, "one shot before the question"


def test_progress_counts_items_and_ends_at_all_of_them(tmp_path: Path) -> None:
    events: list[Event] = []
    measure(tmp_path, events=events)
    progress = [event for event in events if event.kind == "progress"]
    assert (progress[-1].done, progress[-1].total) == (14, 14)
    assert [event.done for event in progress] == sorted(event.done for event in progress)


def test_prompts_digest_tells_shots_template_and_order_apart(tmp_path: Path) -> None:
    plain = SuiteTask(task="ql_facts", limit=4)
    kinds = (
        plain,
        SuiteTask(task="ql_facts", limit=4, shots=1),
        SuiteTask(task="ql_facts", limit=4, chat_template=True),
        SuiteTask(task="ql_facts", limit=3),
    )
    digests = [measure(tmp_path / str(n), tasks=(task,))[0].tasks[0].prompts_digest for n, task in enumerate(kinds)]
    assert len(set(digests)) == 4
    assert measure(tmp_path / "again", tasks=(plain,))[0].tasks[0].prompts_digest == digests[0]


@pytest.mark.parametrize("blocks", [0, 1, 3, 5])
def test_an_interrupted_run_continues_and_gives_the_same_bytes(tmp_path: Path, blocks: int) -> None:
    undisturbed = PlainSession(tiny_folder())
    measure(tmp_path / "whole", undisturbed)
    assert undisturbed.calls >= 6
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "cut", PlainSession(tiny_folder(), break_after=blocks))
    assert not (tmp_path / "cut" / "items.parquet").exists()
    second = PlainSession(tiny_folder())
    measure(tmp_path / "cut", second)
    assert second.calls == undisturbed.calls - blocks, "only the block in flight was lost"
    assert (tmp_path / "cut" / "items.parquet").read_bytes() == (tmp_path / "whole" / "items.parquet").read_bytes()


def test_answers_of_another_checkpoint_in_the_same_folder_are_not_used(tmp_path: Path) -> None:
    measure(tmp_path)
    other = PlainSession(tiny_folder())
    measure(tmp_path, other, config=EngineConfig(dtype="bfloat16", device="cpu", token_budget=64))
    assert other.calls > 0


def test_nan_answers_are_counted_as_broken_and_can_be_written(tmp_path: Path) -> None:
    session = PlainSession(tiny_folder())
    with torch.no_grad():
        session.model.lm_head.weight[5, 5] = float("nan")
    record, columns = measure(tmp_path, session)
    assert [task.broken for task in record.tasks] == [8, 6]
    assert columns["answered"] == [False] * 14


def test_generated_answers_are_extracted_and_missing_ones_counted(tmp_path: Path) -> None:
    docs = [{"q": f"{n} and {n} is", "a": str(2 * n), "subject": f"s{n % 2}"} for n in range(4)]
    folder = write_task(
        tmp_path / "own",
        "gen",
        docs,
        output_type="generate_until",
        doc_to_text="{{q}}",
        doc_to_target="{{a}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        filter_list=[
            {
                "name": "digits",
                "filter": [{"function": "regex", "regex_pattern": "([0-9]+)"}, {"function": "take_first"}],
            },
            {"name": "raw", "filter": [{"function": "take_first"}]},
        ],
    )
    fields: dict[str, Any] = {"tasks_folder": str(folder)}
    record, columns = measure(tmp_path / "a", tasks=(SuiteTask(task="gen"),), **fields)
    (score,) = record.tasks
    assert (score.metric, score.n, score.chance) == ("exact_match,digits", 4, None)
    assert score.broken == columns["answered"].count(False)
    assert [answer for answer, found in zip(columns["answer"], columns["answered"], strict=True) if not found] == [
        ""
    ] * score.broken
    assert columns["cluster"] == ["s0", "s1", "s0", "s1"]
    assert columns["id"] == ["0", "1", "2", "3"]
    raw, columns = measure(tmp_path / "b", tasks=(SuiteTask(task="gen", metric="exact_match,raw"),), **fields)
    assert raw.tasks[0].metric == "exact_match,raw"
    assert raw.tasks[0].broken == 0
    assert any(columns["answer"])


def test_a_task_of_one_subject_has_an_error_bar_all_the_same(tmp_path: Path) -> None:
    docs = [{"q": f"{n}?", "choices": ["yes", "no"], "gold": n % 2, "subject": "anatomy"} for n in range(6)]
    folder = write_task(
        tmp_path / "own",
        "one",
        docs,
        output_type="multiple_choice",
        doc_to_text="{{q}}",
        doc_to_choice="{{choices}}",
        doc_to_target="gold",
    )
    record, columns = measure(tmp_path / "a", tasks=(SuiteTask(task="one"),), tasks_folder=str(folder))
    assert columns["cluster"] == columns["id"] == [str(n) for n in range(6)]
    assert record.tasks[0].score.standard_error is not None


def test_a_model_without_chat_template_is_refused_where_one_is_asked_for(tmp_path: Path) -> None:
    at = bench(tmp_path, tasks=(SuiteTask(task="ql_facts", limit=2, chat_template=True),))
    at.tokenizer.chat_template = None
    with pytest.raises(BadInput, match="no chat template"):
        accuracy(at)


def test_the_answer_follows_the_metric() -> None:
    likelihoods, choices = [-2.0, -3.0], ["ab", "abcdéf"]
    assert preferred(likelihoods, choices, "acc") == 0
    assert preferred(likelihoods, choices, "acc_norm") == 1
    assert preferred([-2.0, -6.1], choices, "acc_norm") == 0
    assert preferred([-2.0, -6.1], choices, "acc_bytes") == 1
    assert preferred([*likelihoods, -1.0, -9.0], choices, "acc_mutual_info") == 1


def test_rows_that_contradict_lm_eval_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_rows, "preferred", lambda likelihoods, choices, metric: len(choices) - 1)
    with pytest.raises(Broken, match="differ on"):
        measure(tmp_path)


def test_the_same_task_scored_twice_in_one_folder_gives_the_same_file(tmp_path: Path) -> None:
    measure(tmp_path)
    before = (tmp_path / "items.parquet").read_bytes()
    again = PlainSession(tiny_folder())
    measure(tmp_path, again)
    assert again.calls == 0
    assert (tmp_path / "items.parquet").read_bytes() == before
    assert measure_bench.tiny_folder().is_dir()
