"""The offline suite's questions and texts: well formed, and blind to anything but what they ask."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ITEMS = ROOT / "evals" / "items"
TASKS = ROOT / "evals" / "tasks"
LONG = tuple(f"long_{length}" for length in (512, 1024, 2048, 4096))
PICTURES = [f"{name}_{kind}" for name in ("easyvqa", "hardshapes") for kind in ("yesno", "colour", "shape")]
SYNTHETIC = ["agreement", "arithmetic", "cloze", "definitions", "elements", "facts", "kinds"]
FIELDS = ["id", "cluster", "kind", "query", "choices", "gold"]

Row = dict[str, Any]


def rows(task: str) -> list[Row]:
    return [json.loads(line) for line in (ITEMS / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def squares(task: str) -> list[list[Row]]:
    """Items that share a cluster and a set of choices."""
    found: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows(task):
        found[(row["cluster"], row["kind"], *sorted(row["choices"]))].append(row)
    return list(found.values())


@pytest.mark.parametrize("task", [*SYNTHETIC, "mmlu_dev"])
def test_every_item_is_well_formed(task: str) -> None:
    for number, row in enumerate(rows(task), start=1):
        assert list(row) == FIELDS
        assert row["id"] == f"{task}-{number:04d}"
        assert all(isinstance(row[name], str) and row[name].strip() for name in ("cluster", "kind", "query"))
        assert len(set(row["choices"])) == len(row["choices"]) >= 2
        assert all(choice and choice == choice.strip() for choice in row["choices"])
        assert row["gold"] in range(len(row["choices"]))
        assert row["query"] == row["query"].strip(), "the blank before a choice is the task file's"


@pytest.mark.parametrize("task", [*SYNTHETIC, "mmlu_dev"])
def test_no_question_comes_twice(task: str) -> None:
    asked = Counter((row["query"], tuple(sorted(row["choices"]))) for row in rows(task))
    assert asked.most_common(1)[0][1] == 1


@pytest.mark.parametrize("task", SYNTHETIC)
def test_a_square_uses_each_choice_as_answer_equally_often(task: str) -> None:
    for square in squares(task):
        answers = Counter(row["choices"][row["gold"]] for row in square)
        assert set(answers) == set(square[0]["choices"])
        assert len(square) == 4
        assert len(set(answers.values())) == 1


@pytest.mark.parametrize("task", SYNTHETIC)
def test_squares_stand_together_so_that_a_limit_keeps_them_whole(task: str) -> None:
    found = rows(task)
    assert len(found) % 4 == 0
    for start in range(0, len(found), 4):
        assert len({(row["cluster"], row["kind"]) for row in found[start : start + 4]}) == 1


def first_longest(choices: list[str]) -> int:
    return max(range(len(choices)), key=lambda n: len(choices[n]))


def first_shortest(choices: list[str]) -> int:
    return min(range(len(choices)), key=lambda n: len(choices[n]))


def most_words(choices: list[str]) -> int:
    return max(range(len(choices)), key=lambda n: (len(choices[n].split()), choices[n]))


BLIND: dict[str, Callable[[list[str]], int]] = {
    "first": lambda choices: 0,
    "last": lambda choices: len(choices) - 1,
    "shortest": lambda choices: choices.index(min(choices, key=lambda c: (len(c), c))),
    "longest": lambda choices: choices.index(max(choices, key=lambda c: (len(c), c))),
    "first in the alphabet": lambda choices: choices.index(min(choices)),
    "fewest bytes": lambda choices: choices.index(min(choices, key=lambda c: (len(c.encode()), c))),
    "most words": most_words,
}


@pytest.mark.parametrize("task", SYNTHETIC)
@pytest.mark.parametrize("taste", BLIND)
def test_who_does_not_read_the_question_scores_exactly_chance(task: str, taste: str) -> None:
    found = rows(task)
    right = sum(BLIND[taste](row["choices"]) == row["gold"] for row in found)
    assert right * len(found[0]["choices"]) == len(found)


@pytest.mark.parametrize("task", SYNTHETIC)
@pytest.mark.parametrize("taste", [first_shortest, first_longest])
def test_length_is_no_help_even_with_ties_broken_by_position(task: str, taste: Callable[[list[str]], int]) -> None:
    found = rows(task)
    chance = 1 / len(found[0]["choices"])
    score = sum(taste(row["choices"]) == row["gold"] for row in found) / len(found)
    assert abs(score - chance) <= 3 * (chance * (1 - chance) / len(found)) ** 0.5


@pytest.mark.parametrize("task", SYNTHETIC)
def test_positions_are_balanced(task: str) -> None:
    places = Counter(row["gold"] for row in rows(task))
    assert len(places) == len(rows(task)[0]["choices"])
    assert len(set(places.values())) == 1


@pytest.mark.parametrize("task", SYNTHETIC)
def test_the_question_does_not_contain_a_choice(task: str) -> None:
    for row in rows(task):
        for choice in row["choices"]:
            assert not re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", row["query"], re.IGNORECASE), row["id"]


def test_choices_of_an_item_look_alike() -> None:
    for row in rows("elements"):
        if row["kind"] in ("symbol", "number"):
            assert len({len(choice) for choice in row["choices"]}) == 1, row["id"]
    for task, characters in {"definitions": 2, "kinds": 4, "cloze": 10, "arithmetic": 0}.items():
        for row in rows(task):
            lengths = [len(choice) for choice in row["choices"]]
            assert max(lengths) - min(lengths) <= characters, row["id"]
            assert len({len(choice.split()) for choice in row["choices"]}) == 1, row["id"]


def test_agreement_does_not_reward_the_nearest_noun() -> None:
    """Each square holds both numbers of the deciding word with both numbers of the distractor."""
    for square in squares("agreement"):
        assert len({row["query"] for row in square}) == 4
        assert Counter(row["choices"][row["gold"]] for row in square).most_common()[0][1] == 2


def test_sums_are_right() -> None:
    work = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
    for row in rows("arithmetic"):
        a, word, b = row["query"].removeprefix("Question: What is ").removesuffix("?\nAnswer:").split()
        assert row["choices"][row["gold"]] == str(work[word](int(a), int(b)))


def test_counts_are_those_of_the_readme() -> None:
    told = dict(re.findall(r"^\| `(\w+)\.jsonl` \| (\d+) \|", (ITEMS / "README.md").read_text("utf-8"), re.MULTILINE))
    assert {task: len(rows(task)) for task in (*SYNTHETIC, "mmlu_dev", *PICTURES, *LONG)} == {
        k: int(v) for k, v in told.items()
    }
    assert {path.stem for path in ITEMS.glob("*.jsonl")} == set(told)


def test_every_file_has_its_licence_named() -> None:
    licences = (ROOT / "evals" / "LICENCES.md").read_text(encoding="utf-8")
    for path in ITEMS.glob("*.jsonl"):
        assert f"`items/{path.name}`" in licences
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in licences


OWN = [path for path in sorted(TASKS.glob("*.yaml")) if "\n  hub:" not in path.read_text("utf-8")]
"""Task files without those of the hub's sets: test_measure_vqa_sets.py has those."""


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_task_files_name_data_that_exist(path: Path) -> None:
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "include" in task:
        task = yaml.safe_load((TASKS / task["include"]).read_text(encoding="utf-8")) | task
    assert (task["task"], task["output_type"]) == (f"ql_{path.stem}", "multiple_choice")
    if "data_package" in task["metadata"]:
        assert set(task["metadata"]["data_package"]) == {"package", "file"}
    else:
        assert (TASKS / task["dataset_kwargs"]["data_files"]["test"]).resolve() == ITEMS / f"{path.stem}.jsonl"


@pytest.mark.parametrize("task", PICTURES)
def test_every_question_about_a_picture_has_it(task: str) -> None:
    for row in rows(task):
        assert list(row) == ["id", "cluster", "kind", "image", "query", "choices", "gold"]
        assert (ITEMS / row["image"]).is_file()
        assert row["gold"] in range(len(set(row["choices"])))


def test_drawn_pictures_come_out_the_same_again(tmp_path: Path) -> None:
    code = "from pathlib import Path; from items import hard_shapes; hard_shapes.make(Path('.'), 3, 2889)"
    path = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=path, check=True)
    for number in range(3):
        name = f"hardshapes/{number}.png"
        assert (tmp_path / name).read_bytes() == (ITEMS / name).read_bytes()
    assert (tmp_path / "hardshapes_shape.jsonl").read_text().splitlines() == (
        (ITEMS / "hardshapes_shape.jsonl").read_text().splitlines()[:3]
    )


def test_every_item_file_has_a_task() -> None:
    assert {path.stem for path in ITEMS.glob("*.jsonl")} <= {path.stem for path in TASKS.glob("*.yaml")}


def test_calibration_text_and_held_out_text_share_no_passage() -> None:
    held_out = (ROOT / "evals" / "texts" / "heldout.txt").read_text(encoding="utf-8")
    calibration = (ROOT / "calibration" / "sets" / "python-docs.txt").read_text(encoding="utf-8")
    for text in (held_out, calibration):
        assert len(text) > 150_000
        assert "gutenberg" not in text.lower()
    for flatten in (str, lambda text: " ".join(text.split())):
        known, other = flatten(held_out), flatten(calibration)
        windows = {known[at : at + 200] for at in range(len(known) - 199)}
        assert not any(other[at : at + 200] in windows for at in range(len(other) - 199))


def run_generator(into: Path, *more: str, seed: str = "0") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "make_items.py"), "--into", str(into), *more]
    return subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("seed", ["0", "1"])
def test_regeneration_gives_the_same_bytes(tmp_path: Path, seed: str) -> None:
    """With another hash seed too: no order may hang on a set."""
    assert run_generator(tmp_path, "--only", "arithmetic", seed=seed).returncode == 0
    assert (tmp_path / "arithmetic.jsonl").read_bytes() == (ITEMS / "arithmetic.jsonl").read_bytes()


def test_generator_refuses_a_task_it_cannot_make(tmp_path: Path) -> None:
    for task in ("cloze", "geography"):
        done = run_generator(tmp_path, "--only", task)
        assert done.returncode != 0
        assert task in done.stderr
    assert not list(tmp_path.iterdir())
