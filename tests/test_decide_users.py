"""Users within the limits from loads, and pictures as evidence: the H100 entries with what a sweep would have added."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import quantlab as ql
from quantlab import catalog
from quantlab.decide import explain
from quantlab.decide.evidence import gather
from quantlab.ledgers import Ledger
from tests.test_decide import RESULTS, asked


def load(users: int, rate: float, ttft: float, tpot: float, **words: Any) -> dict[str, Any]:
    def times(p90: float) -> dict[str, float]:
        return {"p50": p90 / 2, "p90": p90, "p99": p90 * 2}

    figures = {"tokens_per_second": {"value": rate, "unit": "tokens/s"}, "ttft": times(ttft), "tpot": times(tpot)}
    return {"isl": 512, "osl": 128, "concurrency": users, "mode": "offline", "waiting": 0.0, **figures, **words}


def with_results(folder: Path, **added: Any) -> Path:
    """The bf16 and fp8 entries of the H100 with fields of their results replaced."""
    for path in sorted(RESULTS.rglob("throughput/*.json")):
        entry = json.loads(path.read_text())
        entry["result"] |= {name: value(entry) for name, value in added.items()}
        place = folder / "entries" / "throughput" / f"{path.parts[-4]}-{path.name}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(entry))
    (folder / "ledger.json").write_text('{"schema": 1}')
    return folder


def test_the_most_users_within_the_limits_by_kind_with_knee_and_queue(tmp_path: Path) -> None:
    def loads(entry: dict[str, Any]) -> list[dict[str, Any]]:
        if entry["recipe"] != "fp8":
            return []
        return [
            load(1, 200, 0.02, 0.003),
            load(16, 2900, 0.05, 0.004),
            load(64, 3200, 0.15, 0.015),
            load(128, 3300, 0.9, 0.03, waiting=30.0),
            load(16, 2500, 0.3, 0.005, mode="served"),
            load(64, 9999, 0.1, 0.001, mode="served", valid=False, reason="the load was not kept"),
        ]

    folder = with_results(tmp_path, load=loads)
    found = asked("3b", "h100", [folder], ttft="200ms", tpot="20ms", unproven=True)
    rows = {row.recipe: row for row in found.rows}
    served, flight = rows["fp8"].users
    assert (served.kind, served.most, served.breaks) == ("served", None, 16)
    assert (flight.kind, flight.most, flight.breaks, flight.tokens_per_second) == ("in flight", 64, 128, 3200)
    assert (flight.knee, flight.saturated) == (16, 128)
    assert rows["bf16"].users == ()
    text = explain(found)
    assert any("in flight, 512 in, 128 out: 64 users within the limits (p90)" in line for line in text)
    assert any("128 are too many: ttft 900 ms is above 200 ms" in line for line in text)
    assert any(line.startswith("    static batch: ") for line in text)
    assert any("static batches, which say nothing of queueing" in line for line in found.missing)
    assert any("the load was not kept" in line for line in found.missing)
    free = asked("3b", "h100", [folder], unproven=True)
    flight = next(row for row in free.rows if row.recipe == "fp8").users[1]
    assert (flight.most, flight.breaks) == (128, None)


def test_pictures_are_evidence_of_a_vision_model_and_never_of_text(tmp_path: Path) -> None:
    def pictures(entry: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"images": 1, "cell": cell} for cell in entry["result"]["cells"]]

    for path in sorted(with_results(tmp_path, pictures=pictures).rglob("throughput/*.json")):
        entry = json.loads(path.read_text())
        entry["model"] = "11b"
        entry["result"]["cells"] = []
        path.write_text(json.dumps(entry))
    cells = gather(catalog.model("11b"), [Ledger(tmp_path)], catalog.published()).cells
    seen = [cell for cell in cells if cell.group == "11b on 1 x h100"]
    assert seen
    assert {cell.point.images for cell in seen} == {1}
    assert all(cell.work.image_bytes > 0 for cell in seen)
    words = {"gpu": "h100", "folders": [tmp_path], "unproven": True, "engine": "vllm", "batch": "1..4"}
    with_one = ql.recommend("11b", images=1, **words).record  # type: ignore[arg-type]
    alone = ql.recommend("11b", **words).record  # type: ignore[arg-type]
    assert not any(speed.tier == "measured" for row in alone.rows for speed in row.speeds)
    assert with_one.workload != alone.workload


@pytest.mark.parametrize("tpot", ["1us"])
def test_limits_that_nothing_holds(tmp_path: Path, tpot: str) -> None:
    folder = with_results(tmp_path, load=lambda entry: [load(1, 200, 0.02, 0.003)])
    found = asked("3b", "h100", [folder], tpot=tpot)
    lines = [each.sentence for row in found.rows for each in row.users]
    assert lines
    assert all("not one of the measured loads is within the limits" in line for line in lines)
