"""Recipes calibrated together are, byte for byte, the recipes calibrated alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from quantlab.calibrate import modelopt
from quantlab.calibrate.feed import Feed
from quantlab.records import Calibrated, CalibrateJob, CalibrateJobs, Calibration, Event
from quantlab.worker import Reporter
from tests.test_calibrate_modelopt import RECIPES, job

NAMES = ("fp8", "nvfp4", "int8_sq", "int4_awq", "w4a8_awq", "int4", "fp8_rowwise", "awq_folded")


def jobs_of(source: Path, into: Path, names: tuple[str, ...] = NAMES) -> tuple[CalibrateJob, ...]:
    return tuple(job(source, into / name, name) for name in names)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def together(jobs: tuple[CalibrateJob, ...]) -> tuple[dict[str, Calibrated], dict[str, str], list[Event]]:
    events: list[Event] = []
    failed = modelopt.run_all(CalibrateJobs(jobs=jobs), Reporter(events.append))
    made = {
        event.recipe: msgspec.json.decode(event.result, type=Calibrated)
        for event in events
        if event.kind == "result" and event.result is not None
    }
    return made, failed, events


def test_together_is_alone(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    whole = Feed._forward

    def count(self: Feed, model: object) -> None:
        fed.append(1)
        whole(self, model)  # type: ignore[arg-type]

    monkeypatch.setattr(Feed, "_forward", count)
    made, failed, _ = together(jobs_of(tiny_model, tmp_path / "together"))
    assert failed == {}
    assert set(made) == set(NAMES)
    passes = len(fed)
    for spec in jobs_of(tiny_model, tmp_path / "alone"):
        alone = modelopt.run(spec, Reporter())
        assert contents(Path(spec.into)) == contents(tmp_path / "together" / spec.recipe_name), spec.recipe_name
        assert alone.checkpoint.digest == made[spec.recipe_name].checkpoint.digest
    # Alone: one pass each of fp8, nvfp4, int8_sq, two each of three AWQs. Together: fp8's, int4_awq's two.
    assert (passes, len(fed) - passes) == (3, 9)


def test_the_record_says_what_was_shared_and_with_whom(tiny_model: Path, tmp_path: Path) -> None:
    made, _, events = together(jobs_of(tiny_model, tmp_path, ("fp8", "int8_sq", "int4_awq", "w4a8_awq")))
    assert not [note for note in made["fp8"].notes if "shared" in note]
    assert "activations shared with fp8, not measured again" in made["int8_sq"].notes
    assert [note for note in made["w4a8_awq"].notes if note.startswith("activations and AWQ's search shared with")]
    assert made["int8_sq"].peak_bytes > 0
    assert made["int8_sq"].seconds > 0
    assert made["int8_sq"].cpu_seconds > 0
    assert {event.recipe for event in events} == {"fp8", "int8_sq", "int4_awq", "w4a8_awq"}


def test_another_text_or_batch_is_fed_again(tiny_model: Path, tmp_path: Path) -> None:
    jobs = jobs_of(tiny_model, tmp_path, ("fp8", "nvfp4", "int8_sq"))
    other = Calibration(samples=3, length=32)
    small = Calibration(samples=4, length=32, batch=2)
    changed = (
        jobs[0],
        msgspec.structs.replace(jobs[1], recipe=msgspec.structs.replace(RECIPES["nvfp4"], calibration=other)),
        msgspec.structs.replace(jobs[2], recipe=msgspec.structs.replace(RECIPES["int8_sq"], calibration=small)),
    )
    made, failed, _ = together(changed)
    assert failed == {}
    assert not [note for one in made.values() for note in one.notes if "shared" in note]


def test_a_recipe_that_fails_takes_no_other_along(tiny_model: Path, tmp_path: Path) -> None:
    jobs = jobs_of(tiny_model, tmp_path, ("fp8", "int4_awq", "int8_sq"))
    odd = msgspec.structs.replace(jobs[1], group_size=48)
    made, failed, _ = together((jobs[0], odd, jobs[2]))
    assert set(made) == {"fp8", "int8_sq"}
    assert list(failed) == ["int4_awq"]
    assert "no multiple of the group size 48" in failed["int4_awq"]
    assert not (tmp_path / "int4_awq").exists()
