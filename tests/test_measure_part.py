"""A slice of a suite asks exactly what the full run asks of the same items: prompts, shots, ids and answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from quantlab.errors import BadInput
from quantlab.measure.accuracy import accuracy
from quantlab.measure.part import Chosen, draw_of
from quantlab.records import Accuracy, SuiteTask
from quantlab.score.draw import Draw
from tests.measure_bench import PlainSession, bench, tiny_folder, write_task

TASKS = (
    SuiteTask(task="ql_facts", limit=8),
    SuiteTask(task="ql_agreement", limit=6, shots=1),  # shots drawn one document after the other
    SuiteTask(task="ql_kinds", limit=1),
)
SAME = ("task", "id", "cluster", "prompt", "prompt_digest", "answer", "correct", "loglikelihoods")


def measure(folder: Path, **fields: Any) -> tuple[Accuracy, list[tuple[Any, ...]]]:
    record, files = accuracy(bench(folder, PlainSession(tiny_folder()), **{"tasks": TASKS, **fields}))
    assert isinstance(record, Accuracy)
    columns = pq.read_table(files["items.parquet"]).to_pydict()
    return record, [tuple(map(str, row)) for row in zip(*(columns[name] for name in SAME), strict=True)]


def test_slices_put_together_are_the_full_run_item_by_item(tmp_path: Path) -> None:
    full, rows = measure(tmp_path / "full")
    draw = Draw((("ql_facts", 8), ("ql_agreement", 6), ("ql_kinds", 1)), seed=5)
    assert full.part is None
    found: dict[int, tuple[Any, ...]] = {}
    for begin, end in ((0, 4), (4, 9), (9, 99)):
        record, mine = measure(tmp_path / str(begin), part=(begin, end), seed=5)
        places = draw.places(begin, end).tolist()
        assert record.part == (begin, min(end, 15))
        assert record.sizes == draw.sizes
        assert sum(task.n for task in record.tasks) == len(mine) == len(places)
        found |= dict(zip(places, mine, strict=True))
    assert [found[place] for place in range(15)] == rows


def test_a_slice_after_the_last_item_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="15 items"):
        measure(tmp_path, part=(15, 20))


def test_an_id_that_is_unique_in_a_slice_only_is_no_id(tmp_path: Path) -> None:
    docs = [{"id": f"q{n // 2}", "q": f"{n}?", "choices": ["yes", "no"], "gold": n % 2} for n in range(6)]
    fields = {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{choices}}"}
    folder = write_task(tmp_path / "own", "twice", docs, doc_to_target="gold", **fields)
    _, rows = measure(tmp_path / "a", tasks=(SuiteTask(task="twice"),), tasks_folder=str(folder), part=(0, 2))
    assert {row[1] for row in rows} == {str(place) for place in Draw((("twice", 6),), 0).places(0, 2)}


def test_chosen_numbers_are_sorted_and_found() -> None:
    chosen = Chosen([7, 2, 5])
    assert list(chosen) == [2, 5, 7]
    assert 5 in chosen
    assert 3 not in chosen


def test_tasks_of_a_group_are_drawn_as_parts_of_one_task() -> None:
    def loaded(name: str, word: str, items: int) -> Any:
        return SimpleNamespace(name=name, items=items, ask=SuiteTask(task=word))

    grouped = draw_of([loaded("anatomy", "mmlu", 5), loaded("law", "mmlu", 7), loaded("gsm8k", "gsm8k", 9)], seed=2)
    assert grouped == Draw((("anatomy", 5), ("law", 7), ("gsm8k", 9)), 2, ("mmlu", "mmlu", "gsm8k"))
    alone = draw_of([loaded("law", "law", 7), loaded("gsm8k", "gsm8k", 9)], seed=2)
    assert alone.words == ()
