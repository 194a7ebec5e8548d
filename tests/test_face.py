"""The notebook face: names that stay what they are, and a result that shows itself."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import quantlab as ql
from quantlab.face import Result
from tests.report_runs import demo


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
