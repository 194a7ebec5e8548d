"""Questions and pictures of easy-VQA: shapes of 64 x 64 pixels (MIT, Victor Zhou, 2019; package easy-vqa 1.0).

From the test split come the items of the suite `vqa-quick`, a JSONL a kind of question and the pictures beside them.
From the train split come the pairs a model is calibrated on; a picture that one of the two holds is never in the other.

The kinds are scored apart because they are differently hard and have different choices: guessing gives 1/2, 1/8, 1/3.
All questions of one picture share its cluster: a picture that is seen wrongly is wrong in all of them.

    pip install --no-deps easy-vqa==1.0
    python scripts/make_easyvqa.py
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

KINDS = {"yesno": ("yes", "no"), "shape": ("circle", "rectangle", "triangle")}
"""Kind -> its choices; every other answer is a colour."""

Question = tuple[str, str, int]
"""Text, answer, number of the picture."""


def split(name: str) -> tuple[list[Question], dict[int, str], list[str]]:
    """Questions and picture files of "train" or "test", and all colours."""
    import easy_vqa

    texts, answers, pictures = getattr(easy_vqa, f"get_{name}_questions")()
    known = {answer for choices in KINDS.values() for answer in choices}
    colours = sorted(set(easy_vqa.get_answers()) - known)
    paths = getattr(easy_vqa, f"get_{name}_image_paths")()
    return list(zip(texts, answers, pictures, strict=True)), paths, colours


def kind_of(answer: str) -> str:
    return next((kind for kind, choices in KINDS.items() if answer in choices), "colour")


def suite(into: Path, pictures: int, seed: int) -> dict[str, int]:
    """Write easyvqa_<kind>.jsonl and easyvqa/<number>.png to `into`; returns items by kind."""
    questions, paths, colours = split("test")
    chosen = set(random.Random(seed).sample(sorted(paths), pictures))
    rows: dict[str, list[dict[str, object]]] = {"yesno": [], "colour": [], "shape": []}
    for place, (text, answer, picture) in enumerate(questions):
        if picture in chosen:
            kind = kind_of(answer)
            choices = list(KINDS.get(kind, colours))
            rows[kind].append(
                {
                    "id": f"easyvqa-{place}",
                    "cluster": f"picture-{picture}",
                    "kind": kind,
                    "image": f"easyvqa/{picture}.png",
                    "query": text,
                    "choices": choices,
                    "gold": choices.index(answer),
                }
            )
    for kind, items in rows.items():
        write(into / f"easyvqa_{kind}.jsonl", items)
    take({picture: paths[picture] for picture in chosen}, into / "easyvqa")
    return {kind: len(items) for kind, items in rows.items()}


def calibration(into: Path, pairs: int, seed: int) -> int:
    """Write easyvqa.jsonl and easyvqa/<number>.png to `into`: one question a picture, of all kinds in turn."""
    questions, paths, _ = split("train")
    random.Random(seed).shuffle(questions)
    rows: list[dict[str, object]] = []
    used: dict[int, str] = {}
    for text, answer, picture in questions:
        wanted = ("yesno", "colour", "shape")[len(rows) % 3]
        if picture not in used and kind_of(answer) == wanted:
            used[picture] = paths[picture]
            rows.append({"question": text, "answer": answer, "image": f"easyvqa/{picture}.png"})
        if len(rows) == pairs:
            break
    write(into / "easyvqa.jsonl", rows)
    take(used, into / "easyvqa")
    return len(rows)


def write(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def take(pictures: dict[int, str], into: Path) -> None:
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for number, path in pictures.items():
        shutil.copyfile(path, into / f"{number}.png")
