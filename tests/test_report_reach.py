"""Loss over length on every face of the report."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from quantlab.records import Number, Run
from quantlab.records.stretches import Stretch
from quantlab.report import reach, to_html, to_markdown
from tests.report_runs import bare, demo, hostile
from tests.test_report import Page


def nats(value: float, spread: float) -> Number:
    return Number(value=value, unit="nats", n=960, standard_error=spread / 2, low=value - spread, high=value + spread)


def stretch(start: int, change: float) -> Stretch:
    return Stretch(
        start=start,
        stop=2 * start,
        nll_baseline=2.5,
        nll=nats(2.5 + change, 0.1),
        change=nats(change, 0.01),
        kl=nats(abs(change), 0.001),
    )


def long(run: Run, last: int = 2048) -> Run:
    """The run with stretches up to `last` positions and tasks that know their lengths."""
    starts = [start for start in (32, 64, 128, 256, 512, 1024, 2048) if 2 * start <= last]
    found = [run.candidates[0]]
    for place, each in enumerate(run.candidates[1:], 1):
        parts = tuple(stretch(start, 0.01 * place * start / 1024) for start in starts)
        fidelity = each.fidelity and msgspec.structs.replace(each.fidelity, stretches=parts)
        found.append(msgspec.structs.replace(each, fidelity=fidelity, accuracy=_sized(each.accuracy)))
    return msgspec.structs.replace(run, candidates=tuple(found))


def _sized(accuracy: Any) -> Any:
    if accuracy is None:
        return None
    tasks = [msgspec.structs.replace(task, length=512 * 2**place) for place, task in enumerate(accuracy.tasks[:3])]
    return msgspec.structs.replace(accuracy, tasks=(*tasks, *accuracy.tasks[3:]))


def test_both_charts_share_places_and_hold_every_interval() -> None:
    position, prompt = reach.charts(long(demo()))
    chart, spots, _ = position
    assert [tick.text for tick in chart.x_ticks] == ["64", "128", "256", "512", "1,024", "2,048"]
    assert {len(line.marks) for line in chart.lines} == {6}
    marks = [mark for line in chart.lines for mark in line.marks]
    assert len(spots) == len(marks)
    assert all(0 <= mark.top <= mark.y <= mark.bottom <= chart.height and 0 < mark.x < 100 for mark in marks)
    assert chart.one is not None
    assert min(marks, key=lambda mark: mark.y).name == spots[-1].name
    assert [tick.text for tick in prompt[0].x_ticks] == ["512", "1,024", "2,048"]


def test_marks_of_recipes_lie_beside_each_other() -> None:
    chart, *_ = reach.charts(long(demo()))[0]
    first = [line.marks[0].x for line in chart.lines]
    assert len(set(first)) == len(first) > 1


def test_page_and_markdown_hold_the_numbers() -> None:
    run = long(demo())
    page = Page(to_html(run))
    assert [attrs.get("id") for tag, attrs in page.tags if tag == "section"].count("length") == 1
    assert "+0.0100 [0.0000, +0.0200]" in page.text
    told = to_markdown(run)
    assert "## Over length" in told
    assert "| 1,024 to 2,048 |" in told
    assert "needles" not in to_markdown(demo()).lower()


@pytest.mark.parametrize("run", [demo(), bare(), long(demo(), last=512)], ids=["none", "bare", "short"])
def test_short_windows_have_no_chart(run: Run) -> None:
    assert reach.by_position(run) == []
    assert ("Loss by position" in to_html(run)) is False


def test_names_are_harmless() -> None:
    page = Page(to_html(long(hostile())))
    assert [tag for tag, _ in page.tags].count("script") == 1
