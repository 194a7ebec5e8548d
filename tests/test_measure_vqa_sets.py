"""The VQA sets of the hub, as stand-ins with their columns and types, through their own task files, lm-eval and the
real small Llama 3.2 Vision."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from quantlab import catalog
from quantlab.catalog.digests import definition
from quantlab.engines import Session, engine
from quantlab.errors import BadInput
from quantlab.measure import vqa
from quantlab.measure.accuracy import accuracy
from quantlab.measure.seeing import SeeingLM
from quantlab.records import Accuracy, Suite, SuiteTask
from tests.test_engines_torch_images import CONFIG, MODEL, artifact
from tests.test_measure_seeing import bench
from tests.vqa_sets import SPLIT, picture, row, write

METRICS = {"vqav2": "vqa_accuracy", "textvqa": "vqa_accuracy", "docvqa": "anls", "chartqa": "relaxed_accuracy",
           "ai2d": "acc"}  # fmt: skip


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """With room for 512 tokens of an answer: the model's own context is 256."""
    folder = tmp_path_factory.mktemp("models") / "longer"
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 1024
    (folder / "config.json").write_text(json.dumps(config))
    with engine("torch").open(artifact(folder), CONFIG) as found:
        yield found


def suite(folder: Path, name: str, task: str = "", **fields: Any) -> Suite:
    """The built-in suite's first line, with a local mirror in place of the hub."""
    record = catalog.suite(name).record
    assert isinstance(record, Suite)
    changed: dict[str, Any] = {"data": {SPLIT[name]: str(folder)}, **({"task": task} if task else {}), **fields}
    return msgspec.structs.replace(record, tasks=(msgspec.structs.replace(record.tasks[0], **changed),), controls=())


def scored(tmp_path: Path, session: Session, asked: Suite) -> tuple[Accuracy, dict[str, list[Any]]]:
    record, files = accuracy(bench(tmp_path / "work", session, asked))
    assert isinstance(record, Accuracy)
    return record, pq.read_table(files["items.parquet"]).to_pydict()


@pytest.mark.parametrize("name", METRICS)
def test_a_set_is_scored_by_its_own_metric_and_clustered_by_picture(
    session: Session, tmp_path: Path, name: str
) -> None:
    folder = write(tmp_path / name, name, [row(name, number) for number in range(7)], shards=2)
    record, items = scored(tmp_path, session, suite(folder, name, limit=6))
    assert record.tasks[0].metric.startswith(METRICS[name])
    assert record.tasks[0].n == 6
    assert len(set(items["cluster"])) == 3, "two questions about each picture"
    assert all("<|image|>" in one and "<image>" not in one for one in items["prompt"])
    assert record.tasks[0].broken == sum(not one for one in items["answered"])
    judge = {"vqav2": vqa.people, "textvqa": vqa.people, "docvqa": vqa.document, "chartqa": vqa.chart,
             "ai2d": vqa.option}[name]  # fmt: skip
    for answer, value in zip(items["answer"], items["correct"], strict=True):
        assert [value] == list(judge(row(name), [answer or vqa.NOTHING]).values())


def test_mmmu_is_lm_evals_with_several_pictures_and_equal_guesses(session: Session, tmp_path: Path) -> None:
    two = {"question": "<image 1> <image 2> what is the red shape?", "image_2": {"bytes": picture("blue"), "path": ""}}
    rows = [row("mmmu", 0), row("mmmu", 1, **two), row("mmmu", 2, question_type="open", answer="circle", options="[]")]
    folder = write(tmp_path / "mmmu", "mmmu", rows)
    record, items = scored(tmp_path, session, suite(folder, "mmmu", "mmmu_val_math"))
    assert record.tasks[0].n == 3
    assert [one.count("<|image|>") for one in items["prompt"]] == [1, 2, 1]
    assert items["kind"] == ["multiple-choice", "multiple-choice", "open"]
    _, again = scored(tmp_path / "again", session, suite(folder, "mmmu", "mmmu_val_math"))
    assert again["correct"] == items["correct"]


def test_a_response_over_which_mmmu_draws_lots_is_no_answer() -> None:
    from lm_eval.tasks.mmmu.utils import process_results

    task = SimpleNamespace(config=SimpleNamespace(process_results=process_results))
    doc = row("mmmu", 3)
    vqa.steady(task)
    assert [vqa.guessed(task, doc, text) for text in ("(B)", "it is B", "no idea", "")] == [False, False, True, True]
    assert len({task.config.process_results(doc, ["no idea"])["acc"] for _ in range(9)}) == 1
    lots = {task.config.process_results(row("mmmu", number), ["no idea"])["acc"] for number in range(20)}
    assert lots == {0.0, 1.0}, "another document, another lot"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\n Two dogs.\nBecause I see them.", "Two dogs."),
        ("  ", vqa.NOTHING),
        ("", vqa.NOTHING),
    ],
)
def test_a_short_answer_is_the_first_line(text: str, answer: str) -> None:
    assert vqa.short([[text]], [{}]) == [[answer]]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("B. triangle", "B"),
        ("The answer is C.", "C"),
        ("The correct answer is: **B**", "B"),
        ("Answer: A. No, the answer is B", "B"),
        ("a triangle", "B"),
        ("A leaf", vqa.NOTHING),
        ("the answer is a leaf", vqa.NOTHING),
        ("circle or triangle", vqa.NOTHING),
        ("E", vqa.NOTHING),
        ("", vqa.NOTHING),
    ],
)
def test_the_letter_of_an_option(text: str, answer: str) -> None:
    assert vqa.letter([[text]], [{"options": ["circle", "triangle", "square"]}]) == [[answer]]


RESPONSES = [
    "FINAL ANSWER: 14",
    "thinking...\n**Final Answer:** 14.5",
    "final answer: 13.2",
    "Answer: 5\nFINAL ANSWER: 14%",
    "it is 14",
    "",
    "FINAL ANSWER:",
    "FINAL ANSWER: $14",
    "FINAL ANSWER: fourteen",
    "FINAL ANSWER: 0.14",
]


@pytest.mark.parametrize("label", ["14", "14%", "Fourteen", "0.14"])
def test_chartqa_scores_as_lm_evals_task_does(label: str) -> None:
    from lm_eval.tasks.chartqa.utils import relaxed_accuracy

    for response in RESPONSES:
        doc = {"label": [label]}
        ours = vqa.chart(doc, vqa.final([[response]], [doc])[0])
        assert ours == relaxed_accuracy([label], [response]), response
    assert [vqa.final([[one]], [{}])[0][0] == vqa.NOTHING for one in RESPONSES] == [False] * 4 + [True] * 3 + [
        False
    ] * 3


def test_prompt_of_chartqa_is_lm_evals() -> None:
    import lm_eval
    import yaml

    theirs = Path(lm_eval.__file__).parent / "tasks" / "chartqa" / "chartqa_llama.yaml"
    ours = definition("ql_chartqa")
    assert ours is not None
    assert ours["doc_to_text"] == yaml.safe_load(theirs.read_text("utf-8"))["doc_to_text"]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def bomb() -> bytes:
    """A small PNG that announces 30,000 x 30,000 pixels."""
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + picture()[33:]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": {"bytes": cut(picture(size=(400, 400), form="JPEG")), "path": "1.jpg"}}, "truncated|broke off|read"),
        ({"image": {"bytes": b"<html>404</html>", "path": "1.png"}}, "no picture"),
        ({"image": {"bytes": bomb(), "path": "1.png"}}, "pixels are more than|too large"),
        ({"image": None}, "without a picture"),
        ({"answers": []}, "row 1.*answers are empty|answers are empty"),
        ({"answers": None}, "answers are empty"),
    ],
)
def test_bad_rows_are_refused_before_anything_is_asked(
    session: Session, tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    folder = write(tmp_path / "docvqa", "docvqa", [row("docvqa", 0), row("docvqa", 1, **change)])
    with pytest.raises(BadInput, match=problem) as caught:
        scored(tmp_path, session, suite(folder, "docvqa"))
    assert "docvqa" in str(caught.value.place)
    assert caught.value.cure


def test_one_persons_answer_is_no_vqa_accuracy() -> None:
    with pytest.raises(BadInput, match="1 answers"):
        vqa.people({"question": "what?", "answers": ["yes"]}, ["yes"])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK"])
def test_every_ordinary_mode_is_scored(session: Session, tmp_path: Path, mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    held = {"bytes": picture(mode=mode, form=form), "path": "x"}
    folder = write(tmp_path / "ai2d", "ai2d", [row("ai2d", 0, image=held)])
    record, _ = scored(tmp_path, session, suite(folder, "ai2d"))
    assert record.tasks[0].n == 1


def test_missing_mirror_and_wrong_columns_say_so(session: Session, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no file|does not exist"):
        scored(tmp_path, session, suite(tmp_path / "gone", "docvqa"))
    folder = write(tmp_path / "ai2d", "ai2d", [row("ai2d")])
    (folder / "test-00000-of-00001.parquet").rename(folder / "validation-00000-of-00001.parquet")
    with pytest.raises(BadInput, match=r"no 'image'|read|answers|undefined|KeyError|data"):
        scored(tmp_path / "b", session, suite(folder, "docvqa"))


def test_the_chat_template_of_llama_is_told_of_the_picture(session: Session, tmp_path: Path) -> None:
    """Its template writes "Cutting Knowledge Date" into a system message unless a part of a message is a picture."""
    template = (
        "{% set ns = namespace(seen=false) %}{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}{% set ns.seen = true %}{% endif %}{% endfor %}{% endfor %}{{ bos_token }}"
        "{% if not ns.seen %}SYSTEM{% endif %}{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<|image|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    made = bench(tmp_path, session, suite(tmp_path, "docvqa"))
    made.tokenizer.chat_template = template
    lm = SeeingLM(session, made.tokenizer, None, 64, None)  # type: ignore[arg-type]
    text = lm.apply_chat_template([{"role": "user", "content": "<image>what?"}])
    assert text == f"{made.tokenizer.bos_token}<|image|>what?"
    assert lm.apply_chat_template([{"role": "user", "content": "what?"}]).endswith("SYSTEMwhat?")


def test_a_mirror_is_part_of_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "docvqa", "docvqa", [row("docvqa", 0)])
    written = {"summary": "mine", "modality": "vision",
               "tasks": [{"task": "ql_docvqa", "data": {"validation": "docvqa"}}]}  # fmt: skip
    (tmp_path / "mine.yaml").write_text(json.dumps(written))
    before = catalog.suite_digest(catalog.suite(str(tmp_path / "mine.yaml")), "accuracy")
    write(folder, "docvqa", [row("docvqa", 1)])
    assert catalog.suite_digest(catalog.suite(str(tmp_path / "mine.yaml")), "accuracy") != before


def test_pictures_are_written_once_and_not_decoded(session: Session, tmp_path: Path) -> None:
    folder = write(tmp_path / "ai2d", "ai2d", [row("ai2d", number) for number in range(6)])
    scored(tmp_path, session, suite(folder, "ai2d"))
    files = sorted((tmp_path / "work" / "pictures").iterdir())
    assert len(files) == 3
    assert {file.read_bytes() for file in files} == {picture(colour) for colour in ("red", "teal", "gray")}
    assert io.BytesIO(files[0].read_bytes()).getvalue()[:4] == b"\x89PNG"


def test_every_suite_of_the_hub_names_its_task_and_metric() -> None:
    for name, metric in {**METRICS, "mmmu": "acc"}.items():
        record = catalog.suite(name).record
        assert isinstance(record, Suite)
        assert record.modality == "vision"
        assert [one.metric for one in (*record.tasks, *record.controls)] == [metric] * (1 + len(record.controls))
    whole = catalog.suite("llama32-vision").record
    assert isinstance(whole, Suite)
    assert isinstance(whole.tasks[0], SuiteTask)
    assert {one.task for one in whole.tasks} == {*(f"ql_{name}" for name in METRICS), "mmmu_val"}
