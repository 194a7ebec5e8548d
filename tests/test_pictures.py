"""Charts in notebooks: a title in every mark that stands for one row, and none that lies; in a real browser too."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from quantlab.pictures import titled
from tests.test_report_browser import BROWSER, DRIVER, chrome

__all__ = ["chrome"]

POINT = '<path aria-label="{}" role="graphics-symbol" aria-roledescription="{}" d="M0,0" fill="red"/>'
needs_altair = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("altair", "vl_convert"))), reason="not installed: pip install -e '.[lab]'"
)


def test_a_mark_of_one_row_is_titled_and_one_of_many_lets_the_pointer_through() -> None:
    assert "<title>batch: 4&#10;recipe: fp8</title></path>" in titled(POINT.format("batch: 4; recipe: fp8", "point"))
    for kind in ("line mark", "area mark"):
        line = titled(POINT.format("batch: 1; recipe: fp8", kind))
        assert "<title>" not in line
        assert 'pointer-events="none"/>' in line
    rule = '<line aria-label="low: 1" role="graphics-symbol" aria-roledescription="rule mark" x2="0" y2="9"></line>'
    assert titled(rule).endswith("><title>low: 1</title></line>")


def test_what_a_mark_says_stays_text() -> None:
    said = titled(POINT.format("recipe: &lt;script&gt;alert(1)&lt;/script&gt;", "point"))
    assert "<script" not in said
    assert "&lt;script&gt;" in said


@needs_altair
@pytest.mark.browser
@pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with chromedriver on this machine")
def test_in_a_browser_each_point_says_its_numbers(chrome: Any, tmp_path: Path) -> None:
    import altair
    import pandas

    from quantlab.pictures import _render

    frame = pandas.DataFrame({"batch": [1, 4, 16], "speed": [10.0, 35.0, 90.0], "recipe": ["fp8"] * 3})
    chart = altair.Chart(frame).mark_line(point=True).encode(x="batch:Q", y="speed:Q", color="recipe:N")
    page = tmp_path / "chart.html"
    page.write_text(f"<!doctype html><meta charset=utf-8>{_render(chart.to_dict())['text/html']}")
    chrome.get(page.as_uri())
    found = chrome.execute_script(
        "return [...document.querySelectorAll('[aria-roledescription=point]')].map(mark => {"
        " const box = mark.getBoundingClientRect();"
        " const hit = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);"
        " return hit.querySelector('title')?.textContent; })"
    )
    assert found == [f"batch: {b}\nspeed: {s}\nrecipe: fp8" for b, s in ((1, 10), (4, 35), (16, 90))]
