"""Where items come from, and every way a suite's line can be wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from quantlab.errors import BadInput, NoAccess
from quantlab.measure.tasks import LoadedTask, load
from quantlab.records import Suite, SuiteTask
from tests.measure_bench import ROOT, write_task

TASKS = ROOT / "evals" / "tasks"
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
DOCS = [{"query": f"{n}?", "choices": ["yes", "no"], "gold": n % 2} for n in range(5)]


def loaded(tmp_path: Path, *tasks: SuiteTask, folder: Path = TASKS) -> list[LoadedTask]:
    return load(Suite(summary="", tasks=tasks), tmp_path, folder, tmp_path / "scratch")


def test_our_own_tasks_load_without_lm_evals_own_and_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import lm_eval.tasks

    def no_network(*args: Any) -> None:
        raise AssertionError("somebody opened a socket")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    monkeypatch.setattr(lm_eval.tasks.TaskManager, "all_groups", property(no_network))
    elsewhere = ("data_package", "\n  hub:")
    names = [path.stem for path in sorted(TASKS.glob("*.yaml")) if not any(w in path.read_text() for w in elsewhere)]
    suite = Suite(summary="", tasks=tuple(SuiteTask(task=f"ql_{name}") for name in names), modality="vision")
    found = load(suite, tmp_path, TASKS, tmp_path / "scratch")
    assert [one.name for one in found] == [f"ql_{name}" for name in names]
    assert sum(one.items for one in found) > 1900
    assert {one.metric for one in found} == {"acc"}


def test_a_limit_larger_than_the_task_is_no_more_than_the_task(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "own", "t", DOCS, **CHOICE)
    assert loaded(tmp_path, SuiteTask(task="t", limit=99), folder=folder)[0].items == 5
    assert loaded(tmp_path, SuiteTask(task="t", limit=2), folder=folder)[0].items == 2


def test_local_files_stand_in_for_the_hub(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "own", "t", DOCS, **CHOICE)
    hub = {
        **CHOICE,
        "dataset_path": "nobody/nowhere",
        "dataset_kwargs": None,
        "dataset_name": "main",
        "training_split": "train",
    }
    write_task(folder, "far", DOCS[:3], **hub)
    with pytest.raises(NoAccess, match="nobody/nowhere"):
        loaded(tmp_path, SuiteTask(task="far"), folder=folder)
    data = {"test": "own/far.jsonl"}
    assert loaded(tmp_path, SuiteTask(task="far", data=data), folder=folder)[0].items == 3
    with pytest.raises(BadInput, match="shots from the split 'train'"):
        loaded(tmp_path, SuiteTask(task="far", data=data, shots=1), folder=folder)
    both = {**data, "train": "own/t.jsonl"}
    assert loaded(tmp_path, SuiteTask(task="far", data=both, shots=1), folder=folder)[0].items == 3


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"test": "own/none.jsonl"}, "no file"),
        ({"train": "own/t.jsonl"}, "items from the split 'test'"),
        ({"test": "own/t.yaml"}, "cannot read t.yaml"),
        ({"test": "own/broken.jsonl"}, "cannot be read"),
        ({"test": "own/empty.jsonl"}, "is empty"),
        ({"test": "own/blank.jsonl"}, "cannot be read"),
    ],
)
def test_wrong_data_are_named(tmp_path: Path, data: dict[str, str], match: str) -> None:
    folder = write_task(tmp_path / "own", "t", DOCS, **CHOICE)
    (folder / "broken.jsonl").write_text('{"query": "a", \n')
    (folder / "empty.jsonl").write_text("")
    (folder / "blank.jsonl").write_text("\n\n")
    with pytest.raises(BadInput, match=match):
        loaded(tmp_path, SuiteTask(task="t", data=data), folder=folder)


def test_items_out_of_a_package_are_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "itemsforquantlab"
    write_task(package / "data", "cases", DOCS, **CHOICE)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    source = {"metadata": {"data_package": {"package": "itemsforquantlab", "file": "data/cases.jsonl"}}}
    folder = write_task(tmp_path / "own", "t", [], **{**CHOICE, **source, "dataset_kwargs": None})
    with pytest.raises(NoAccess, match="itemsforquantlab") as missing:
        loaded(tmp_path, SuiteTask(task="t"), folder=folder)
    assert "quantlab[items]" in missing.value.cure
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert loaded(tmp_path, SuiteTask(task="t"), folder=folder)[0].items == 5
    assert "itemsforquantlab" not in sys.modules
    with pytest.raises(NoAccess, match="nosuchpackage"):
        loaded(tmp_path, SuiteTask(task="t", package="nosuchpackage"), folder=folder)


def test_shots_that_a_task_forbids_are_refused(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "own", "t", DOCS, **CHOICE, num_fewshot=0)
    with pytest.raises(BadInput, match="without shots"):
        loaded(tmp_path, SuiteTask(task="t", shots=3), folder=folder)
    assert loaded(tmp_path, SuiteTask(task="t", shots=0), folder=folder)[0].task.config.num_fewshot == 0


@pytest.mark.parametrize("metric", ["acc_norm", "f1", "acc,strict", "nonsense"])
def test_a_metric_that_is_no_mean_over_items_is_refused_before_anything_runs(tmp_path: Path, metric: str) -> None:
    metrics = [*CHOICE["metric_list"], {"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    folder = write_task(tmp_path / "own", "t", DOCS, **{**CHOICE, "metric_list": metrics})
    with pytest.raises(BadInput, match="mean over items") as refused:
        loaded(tmp_path, SuiteTask(task="t", metric=metric), folder=folder)
    assert "Choose one of: acc." in refused.value.cure


def test_a_task_that_runs_a_models_code_is_refused(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "own", "t", DOCS, **CHOICE, unsafe_code=True)
    with pytest.raises(BadInput, match="runs code"):
        loaded(tmp_path, SuiteTask(task="t"), folder=folder)


def test_a_task_twice_is_refused(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "own", "t", DOCS, **CHOICE)
    with pytest.raises(BadInput, match="asks t twice"):
        loaded(tmp_path, SuiteTask(task="t"), SuiteTask(task="t", shots=1), folder=folder)


def test_lm_evals_own_tasks_are_known_by_name_and_their_data_by_file(tmp_path: Path) -> None:
    """One test for all that needs lm-eval's whole index: reading it takes seconds."""
    docs = [
        {
            "ind": n,
            "ctx_a": "He sits",
            "ctx_b": "down and",
            "activity_label": "Sitting",
            "endings": ["runs", "rests", "a", "b"],
            "label": "1",
        }
        for n in range(2)
    ]
    write_task(tmp_path, "hella", docs)
    local = SuiteTask(task="hellaswag", data={"validation": "hella.jsonl"})
    (hellaswag,) = loaded(tmp_path, local)
    assert (hellaswag.items, hellaswag.metric) == (2, "acc")
    assert hellaswag.task.doc_to_text(hellaswag.task.eval_docs[0]) == "Sitting: He sits Down and"
    with pytest.raises(BadInput, match="no task 'helaswag'") as unknown:
        loaded(tmp_path, SuiteTask(task="helaswag"))
    assert "hellaswag" in unknown.value.cure
    with pytest.raises(BadInput, match="single task"):
        loaded(tmp_path, SuiteTask(task="mmlu", data={"test": "hella.jsonl"}))
    with pytest.raises(NoAccess, match="Rowan/hellaswag"):
        loaded(tmp_path, SuiteTask(task="hellaswag"))
