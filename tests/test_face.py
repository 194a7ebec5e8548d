"""The notebook face: names that stay what they are, and a result that shows itself."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path

import msgspec
import pytest

import quantlab as ql
from quantlab.errors import BadInput
from quantlab.face import Result
from tests.report_runs import bare, demo


def test_the_face_survives_the_import_of_every_room(tmp_path: Path) -> None:
    for room in ("ledgers", "plans", "catalog", "pipeline", "judge", "report"):
        importlib.import_module(f"quantlab.{room}")
    for _ in range(2):
        assert ql.ledger(tmp_path / "runs").frame().empty
        assert ql.recipe("fp8").name == "fp8"
    with pytest.raises(AttributeError, match="nothing"):
        _ = ql.nothing


def test_a_plan_needs_neither_weights_nor_a_ledger(tmp_path: Path) -> None:
    planned = ql.plan("smollm2-135m", ["int4_awq"], root=tmp_path / "runs")
    assert dict(planned.plans)["int4_awq"].group_size == 64


def test_a_result_is_a_page_a_text_and_files(tmp_path: Path) -> None:
    result = Result(demo())
    assert result["fp8"].verdict.status == "accept"
    with pytest.raises(KeyError, match="fp8"):
        result["fp9"]
    assert "fp8: accept" in str(result)
    shown = result._repr_html_()
    assert shown.startswith("<iframe")
    assert "<script" not in shown, "the page is inside the frame, escaped"
    assert {path.suffix for path in result.write(tmp_path).values()} == {".html", ".md", ".json"}


def test_plans_and_recommendations_show_tables_and_escape_what_is_not_ours(tmp_path: Path) -> None:
    here = ql.plan("smollm2-135m", ["int4_awq"], root=tmp_path / "runs")
    assert "int4_awq" in here._repr_html_()
    there = ql.plan("90b", ["bf16", "fp8"], gpu="h200", tp=2, context="8k")
    assert [each.recipe for each in there] == ["bf16", "fp8"]
    page = there._repr_html_()
    assert "<td" in page
    assert "KV cache" in page, "the arithmetic is there, behind a click"
    found = ql.recommend("3b", gpu="h100", folders=[ql.builtin() / "benchmarks/results/gpu"], tpot="0.5ms")
    assert "<details open><summary>To relax" in found._repr_html_()
    bad = msgspec.structs.replace(found.record, sentence="<script>alert(1)</script>")
    assert "<script" not in dataclasses.replace(found, record=bad)._repr_html_()


def test_frames_have_a_row_a_recipe_a_layer_a_flip_and_a_cell() -> None:
    result = Result(demo())
    table = result.frame().set_index("recipe")
    assert list(table.index) == [each.recipe_name for each in result.record.candidates]
    suite = result["fp8"].comparison.suite  # type: ignore[union-attr]
    assert table.loc["fp8", "difference"] == suite.difference.value  # type: ignore[union-attr]
    assert math.isnan(table.loc["bf16", "difference"]), "the baseline has none, which is not zero"
    assert len(result.damage()) == sum(
        len(each.verification.damage) for each in result.record.candidates if each.verification
    )
    assert set(result.flips().direction) <= {"regressed", "improved", "churn"}
    assert len(result.flips()) == sum(len(each.flips) for each in result.record.candidates)
    assert Result(bare()).damage().empty
    assert Result(bare()).flips().empty
    cells = ql.cells(ql.builtin() / "benchmarks/results/gpu")
    assert set(cells.recipe) == {"bf16", "fp8", "int4_awq"}
    assert (cells[~cells.valid].reason != "").all()


def test_last_takes_what_was_run_and_says_when_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run yet"):
        ql.last(root=tmp_path)
    assert ql.cells(tmp_path).empty
    ql.ledger(tmp_path).save_run(demo())
    result = ql.last(root=tmp_path)
    assert result.record == demo()
    with pytest.raises(BadInput, match="of model '3b'"):
        ql.last("3b", root=tmp_path)
    with pytest.raises(BadInput, match="accuracy"):
        result.items("fp8")
