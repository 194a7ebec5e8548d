"""Needle items: every answer stands where it should, blind answers are at chance, and the files are the generator's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from quantlab import catalog

ROOT = Path(__file__).parent.parent
LENGTHS = (512, 1024, 2048, 4096)
Row = dict[str, Any]


def rows(length: int) -> list[Row]:
    text = (ROOT / "evals" / "items" / f"long_{length}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def prompt(row: Row) -> str:
    task = yaml.safe_load((ROOT / "evals" / "tasks" / "long_512.yaml").read_text(encoding="utf-8"))
    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(task["doc_to_text"]).render(**row)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_context_holds_what_is_asked(length: int) -> None:
    for row in rows(length):
        context, _, question = prompt(row).rpartition("\nQuestion:")
        right = row["choices"][row["gold"]]
        there = [choice for choice in row["choices"] if choice in context]
        assert there == ([right] if row["kind"] == "one" else row["choices"])
        key = question.rpartition("Answer: ")[2].removeprefix("The pass code of the ").removesuffix(" is").strip(":")
        line = {"lookup": f"{key}: {right};"}.get(row["kind"], f"The pass code of the {key} is {right}.")
        assert context.count(line) == 1
        assert not question.endswith(" "), "the blank before a choice is the task file's"


@pytest.mark.parametrize("length", LENGTHS)
def test_whoever_does_not_read_the_question_is_at_chance(length: int) -> None:
    found = rows(length)
    assert Counter(row["kind"] for row in found) == {"one": 8, "four": 32, "lookup": 24}
    for start in range(0, len(found), 4):
        square = found[start : start + 4]
        assert len({row["cluster"] for row in square}) == 1
        assert sorted(row["gold"] for row in square) == [0, 1, 2, 3]
        assert sorted(row["choices"][row["gold"]] for row in square) == sorted(square[0]["choices"])
        if square[0]["kind"] != "one":
            assert len({tuple(row["order"]) for row in square}) == 1, "one context, computed once"


@pytest.mark.parametrize("length", LENGTHS)
def test_needles_lie_in_every_part_of_the_context(length: int) -> None:
    for row in rows(length):
        if row["kind"] == "four":
            places = sorted(4 * place // len(row["order"]) for place, number in enumerate(row["order"]) if number < 0)
            assert len(set(places)) >= 3


def test_lengths_grow_as_they_say() -> None:
    """About four characters a token in filler, three in lists; `accuracy` records the tokens that were sent."""
    sizes = [[len(prompt(row)) for row in rows(length) if row["kind"] == "four"] for length in LENGTHS]
    for length, size in zip(LENGTHS, sizes, strict=True):
        assert 3.9 * length < min(size) <= max(size) < 5.2 * length


def test_the_generator_writes_these_bytes() -> None:
    code = "from items.needles import make; from items.squares import write; from pathlib import Path; import sys\n"
    code += "for n in (512, 4096): write(Path(sys.argv[1]) / f'{n}', make(n, 4096))"
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT / "scripts", check=True)
        for length in (512, 4096):
            made = (Path(folder) / str(length)).read_bytes()
            assert made == (ROOT / "evals" / "items" / f"long_{length}.jsonl").read_bytes()


@pytest.mark.parametrize("word", ["long-quick", "long"])
def test_the_suites_read_their_items(word: str) -> None:
    found = catalog.suite(word)
    assert len(catalog.suite_digest(found)) == 64
    names = [task.task for task in found.record.tasks]  # type: ignore[union-attr]
    assert names == [f"ql_long_{length}" for length in LENGTHS if length < 4096 or word == "long"]
