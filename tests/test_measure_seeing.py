"""Tasks about pictures through lm-eval on the real small Llama 3.2 Vision: scores, controls, the canary, and what is
refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from quantlab import catalog
from quantlab.catalog.digests import pictures, set_digest, sights_digest, suite_digest
from quantlab.engines import Session, engine
from quantlab.errors import BadInput, Broken
from quantlab.measure import Bench
from quantlab.measure.accuracy import accuracy
from quantlab.measure.canary import canary
from quantlab.records import Accuracy, Canary, SightAsk, Suite, SuiteTask
from quantlab.worker import Reporter
from tests.measure_bench import ROOT, job, write_task
from tests.test_engines_torch_images import CONFIG, MODEL, artifact

TASK = {
    "output_type": "multiple_choice",
    "doc_to_image": "image",
    "doc_to_text": "<image>{{query}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with engine("torch").open(artifact(MODEL), CONFIG) as found:
        yield found


def bench(folder: Path, session: Session, suite: Suite, **fields: Any) -> Bench:
    from transformers import AutoTokenizer

    spec = msgspec.structs.replace(job(folder, MODEL), suite=suite, config=CONFIG, artifact=artifact(MODEL), **fields)
    return Bench(spec, session, AutoTokenizer.from_pretrained(MODEL), Reporter())


def vqa(**fields: Any) -> Suite:
    record = catalog.suite("vqa-quick").record
    assert isinstance(record, Suite)
    few = tuple(msgspec.structs.replace(one, limit=30) for one in record.tasks[1:])
    shuffled = tuple(msgspec.structs.replace(one, limit=30) for one in record.controls[1:3])
    blind = tuple(msgspec.structs.replace(one, limit=30) for one in record.controls[4:])
    return msgspec.structs.replace(record, **{"tasks": few, "controls": (*shuffled, *blind), **fields})


def test_scores_controls_and_items(session: Session, tmp_path: Path) -> None:
    record, files = accuracy(bench(tmp_path, session, vqa()))
    assert isinstance(record, Accuracy)
    assert [task.task for task in record.tasks] == ["ql_easyvqa_colour", "ql_easyvqa_shape"]
    for task in record.tasks:
        assert task.score.value > 0.9
        assert task.nll is not None
        assert 0 < task.nll.value < 0.2
    assert [one.task.partition(", ")[2] for one in record.controls] == ["shuffled images"] * 2 + ["no images"] * 2
    assert all(one.score.value < 0.7 for one in record.controls), "who does not look cannot know"
    table = pq.read_table(files["items.parquet"]).to_pydict()
    assert len(table["id"]) == 60
    assert len(set(table["cluster"])) < 50
    assert table["prompt"][0].startswith("<image>what")
    quantized = msgspec.structs.replace(artifact(MODEL).checkpoint, format="fp8")
    made = bench(tmp_path / "q", session, vqa())
    spec = msgspec.structs.replace(
        made.spec, artifact=msgspec.structs.replace(made.spec.artifact, checkpoint=quantized)
    )
    again, _ = accuracy(Bench(spec, session, made.tokenizer, made.reporter))
    assert isinstance(again, Accuracy)
    assert again.controls == ()
    assert [one.prompts_digest for one in again.tasks] == [one.prompts_digest for one in record.tasks]


def test_another_image_processor_makes_scores_incomparable(session: Session, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "processor_config.json").read_text())
    config["image_processor"]["image_mean"][0] += 0.01
    (folder / "processor_config.json").write_text(json.dumps(config))
    suite = vqa(tasks=(SuiteTask(task="ql_easyvqa_shape", limit=4),), controls=())
    digests = []
    for place in (MODEL, folder):
        made = bench(tmp_path / place.name, session, suite)
        spec = msgspec.structs.replace(made.spec, artifact=artifact(place))
        record, _ = accuracy(Bench(spec, session, made.tokenizer, made.reporter))
        assert isinstance(record, Accuracy)
        digests.append(record.tasks[0].prompts_digest)
    assert digests[0] != digests[1]


def test_the_canary_looks_at_pictures(session: Session, tmp_path: Path) -> None:
    record, _ = canary(bench(tmp_path, session, vqa()))
    assert isinstance(record, Canary)
    assert record.passed, record.reason
    assert [one.completion for one in record.prompts] == ["triangle", "black", "blue"]
    wrong = tuple(SightAsk(image=one.image, question=one.question, answer="no") for one in vqa().sights)
    record, _ = canary(bench(tmp_path, session, vqa(sights=wrong)))
    assert isinstance(record, Canary)
    assert not record.passed
    with pytest.raises(BadInput, match="without tokens"):
        canary(bench(tmp_path, session, vqa(sights=(SightAsk(image=wrong[0].image, question="what?", answer=" "),))))


GOOD = {"image": str(ROOT / "evals" / "items" / "easyvqa" / "0.png"), "query": "what is the red shape?",
        "choices": ["circle", "triangle"], "gold": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": ""}, "questions come without a picture"),
        ({"image": "gone.png"}, "No such file"),
        ({"image": "mine.jsonl"}, "no picture"),
        ({"choices": ["", ""]}, "an answer has no tokens"),
        ({"choices": []}, "."),
    ],
)
def test_items_that_cannot_be_asked_are_refused(
    session: Session, tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    folder = write_task(tmp_path / "tasks", "mine", [GOOD, {**GOOD, **change}], **TASK)
    suite = vqa(tasks=(SuiteTask(task="mine"),), controls=())
    with pytest.raises((BadInput, Broken, ValueError, IndexError), match=problem):
        accuracy(bench(tmp_path / "w", session, suite, tasks_folder=str(folder)))


def test_generated_answers_and_a_text_suite(session: Session, tmp_path: Path) -> None:
    spoken = {**TASK, "output_type": "generate_until", "doc_to_target": "{{choices[gold]}}",
              "generation_kwargs": {"until": ["<|end_of_text|>"], "max_gen_toks": 3, "do_sample": False},
              "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}  # fmt: skip
    spoken.pop("doc_to_choice")
    folder = write_task(tmp_path / "tasks", "mine", [GOOD], **spoken)
    suite = vqa(tasks=(SuiteTask(task="mine"),), controls=())
    record, _ = accuracy(bench(tmp_path / "w", session, suite, tasks_folder=str(folder)))
    assert isinstance(record, Accuracy)
    assert record.tasks[0].score.value == 1.0
    text = msgspec.structs.replace(suite, modality="text", sights=())
    with pytest.raises(BadInput, match="asks about images"):
        accuracy(bench(tmp_path / "t", session, text, tasks_folder=str(folder)))


def test_a_changed_picture_changes_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = tmp_path / "calibration" / "sets"
    shutil.copytree(ROOT / "calibration" / "sets", sets)
    suites = tmp_path / "evals"
    for name in ("suites", "tasks", "items"):
        shutil.copytree(ROOT / "evals" / name, suites / name)
    monkeypatch.chdir(tmp_path)
    assert len(pictures(suites / "items" / "easyvqa_shape.jsonl")) > 300

    def digests() -> tuple[str, str, str]:
        suite = catalog.suite("vqa-quick")
        return set_digest(catalog.calibration_set("easyvqa")), suite_digest(suite, "accuracy"), sights_digest(suite)

    before = digests()
    for picture in (next((sets / "easyvqa").glob("*.png")), suites / "items" / "easyvqa" / "0.png"):
        picture.write_bytes(picture.read_bytes() + b"\0")
    assert all(a != b for a, b in zip(before, digests(), strict=True))


def test_the_items_are_whole() -> None:
    clusters = set()
    for kind, choices in (("yesno", 2), ("colour", 8), ("shape", 3)):
        for line in (ROOT / "evals" / "items" / f"easyvqa_{kind}.jsonl").read_text().splitlines():
            item = json.loads(line)
            assert len(set(item["choices"])) == choices > item["gold"] >= 0
            assert (ROOT / "evals" / "items" / item["image"]).is_file()
            clusters.add(item["cluster"])
    assert len(clusters) == 400


def test_an_early_run_asks_its_controls_about_its_first_slice(session: Session, tmp_path: Path) -> None:
    kept = vqa()
    first, _ = accuracy(bench(tmp_path / "a", session, kept, part=(0, 20)))
    second, _ = accuracy(bench(tmp_path / "b", session, kept, part=(20, 30)))
    assert isinstance(first, Accuracy)
    assert isinstance(second, Accuracy)
    own = {one.task: one.n for one in first.tasks}
    assert sum(own.values()) == 20
    assert [(one.task, one.n) for one in first.controls] == [
        (f"{task}, {kind} images", own[task]) for kind in ("shuffled", "no") for task in own
    ]
    assert all(one.score.value < 0.8 for one in first.controls)
    assert second.controls == ()


def test_the_sentence_about_controls_names_their_items(session: Session, tmp_path: Path) -> None:
    from quantlab.pipeline.answers import _controls

    record, _ = accuracy(bench(tmp_path, session, vqa(controls=vqa().controls[:1]), part=(0, 20)))
    assert isinstance(record, Accuracy)
    task = record.controls[0].task.partition(", ")[0]
    own = next(one for one in record.tasks if one.task == task)
    text = _controls("bf16", record)
    assert f"its own picture {100 * own.score.value:.1f} %" in text
    assert f"about the first {own.n} items" in text
