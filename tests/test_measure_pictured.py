"""Throughput with pictures in the prompt: on the real small Llama 3.2 Vision, in the record and in the reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantlab import catalog, sight
from quantlab.engines import Image, SeeingSession, Session, engine
from quantlab.errors import BadInput
from quantlab.measure.throughput import throughput
from quantlab.pipeline.answers import notes
from quantlab.records import Grid, Model, Recipe, Suite, SuiteTask, Throughput
from quantlab.report import pictured, to_html, to_markdown
from quantlab.report.rows import rows
from tests import measure_bench
from tests.report_runs import demo
from tests.test_engines_torch_images import CONFIG, MODEL, artifact
from tests.test_measure_seeing import bench, vqa

GRID = Grid(summary="test", isl=(12,), osl=(4,), batch=(1, 2), images=(1, 2), warmup=0, repeats=2, max_variation=9.0)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with engine("torch").open(artifact(MODEL), CONFIG) as found:
        yield found


class Watched:
    """A real session that remembers what it was asked."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.asked, self.encoded = inner, [], []
        self.device, self.max_length = inner.device, inner.max_length

    def generate(self, requests: Any) -> Any:
        self.asked += requests
        return self.inner.generate(requests)

    def logprobs(self, requests: Any) -> Any:
        return self.inner.logprobs(requests)

    def encode(self, images: Any) -> Any:
        self.encoded.append(list(images))
        return self.inner.encode(images)


@pytest.fixture(scope="module")
def timed(session: Session, tmp_path_factory: pytest.TempPathFactory) -> tuple[Throughput, Watched]:
    watched = Watched(session)
    record, _ = throughput(bench(tmp_path_factory.mktemp("t"), watched, vqa(), grid=GRID))
    assert isinstance(record, Throughput)
    return record, watched


def test_text_and_pictures_and_the_encoder_are_timed_apart(timed: tuple[Throughput, Watched]) -> None:
    record, watched = timed
    assert [cell.batch for cell in record.cells] == [1, 2]
    assert [(one.images, one.cell.batch) for one in record.pictures] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert all(one.cell.valid for one in record.pictures), [one.cell.reason for one in record.pictures]
    # A tile of 32 pixels is 16 patches and the class vector; the pictures fill all four.
    assert [one.image_tokens for one in record.pictures] == [4 * 17, 4 * 17, 2 * 4 * 17, 2 * 4 * 17]
    for one in record.pictures:
        rate = one.encoder_images_per_second
        assert rate is not None
        assert (rate.unit, rate.n) == ("images/s", 2)
        assert 0 < (rate.low or 0) <= rate.value <= (rate.high or 0)
    assert [len(some) for some in watched.encoded] == [1, 1, 2, 2, 2, 2, 4, 4]
    seeing = [one for one in watched.asked if one.images]
    assert all(one.prompt.count(64) == len(one.images) and len(one.prompt) == 12 for one in seeing)
    digests = [image.digest for one in seeing for image in one.images]
    assert len(set(digests)) == len(digests), "no request finds its picture encoded already"


def test_a_model_or_session_without_eyes_says_so(session: Session, tmp_path: Path) -> None:
    record, _ = throughput(measure_bench.bench(tmp_path, grid=GRID))
    assert isinstance(record, Throughput)
    assert {(one.cell.valid, one.cell.reason) for one in record.pictures} == {
        (False, "the model or its engine takes no pictures")
    }
    assert all(cell.valid or "twice" not in cell.reason for cell in record.cells)
    with engine("torch").open(measure_bench.job(tmp_path).artifact, CONFIG) as text:
        assert isinstance(text, SeeingSession)
        with pytest.raises(BadInput, match="takes no images"):
            text.encode([Image("x.png", "x")])


def test_reports_show_pictures_beside_the_same_without(timed: tuple[Throughput, Watched]) -> None:
    run = demo()
    first = msgspec.structs.replace(run.candidates[0], throughput=timed[0])
    run = msgspec.structs.replace(run, candidates=(first, *run.candidates[1:]))
    lines = pictured.body(rows(run))
    assert len(lines) == 4
    assert [line[2] for line in lines] == ["68", "68", "136", "136"]
    assert "image tokens" in to_markdown(run)
    assert "With pictures in the prompt" in to_html(run)
    assert "With pictures in the prompt" not in to_html(demo())
    said = list(notes(vqa(), [first]))
    assert any("2 pictures a prompt (136 image tokens)" in one or "1 pictures a prompt" in one for one in said)


def test_a_grid_with_more_pictures_than_tokens_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("summary: x\nisl: [2]\nosl: [1]\nbatch: [1]\nimages: [2]\n")
    with pytest.raises(BadInput, match="leave no text"):
        catalog.grid(str(path))
    path.write_text("summary: x\nisl: [9]\nosl: [1]\nbatch: [1]\nimages: [0]\n")
    with pytest.raises(BadInput, match="images"):
        catalog.grid(str(path))


@pytest.mark.parametrize(("word", "cross", "heads"), [("11b", 8, 8), ("90b", 20, 8)])
def test_the_plan_counts_keys_and_values_of_the_pictures(word: str, cross: int, heads: int) -> None:
    model = catalog.model(word)
    assert isinstance(model, Model)
    assert model.shape is not None
    found, (line,) = sight.cache(model.shape, msgspec.structs.replace(GRID, images=(1,)), 2)
    assert found == 2 * cross * heads * 128 * 2 * 6404 * 2
    assert "6,404 image tokens" in line
    assert sight.cache(model.shape, msgspec.structs.replace(GRID, images=()), 2) == (0, [])


def test_the_plan_names_what_a_suite_needs_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    suite = catalog.suite("llama32-vision").record
    assert isinstance(suite, Suite)
    said, refused = sight.data(suite)
    assert refused == []
    assert [one.partition(":")[0] for one in said] == [
        *(f"ql_{name}" for name in ("vqav2", "textvqa", "docvqa", "chartqa", "ai2d")),
        "mmmu_val",
    ]
    assert all("network" in one and "Licence: " in one for one in said[:-1])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(sight.data(suite)[1]) == 5
    (tmp_path / "hub" / "datasets--lmms-lab--DocVQA").mkdir(parents=True)
    assert len(sight.data(suite)[1]) == 4
    mirrored = msgspec.structs.replace(suite, tasks=(SuiteTask(task="ql_docvqa", data={"validation": "x"}),))
    assert sight.data(mirrored) == ([], [])
    assert sight.data(vqa()) == ([], [])


def test_a_text_model_is_refused_a_hub_suite() -> None:
    model, recipe, suite = catalog.model("3b"), catalog.recipe("bf16").record, catalog.suite("docvqa").record
    assert isinstance(recipe, Recipe)
    assert isinstance(suite, Suite)
    assert "reads text only" in next(sight.refusals(model, recipe, suite, None))
