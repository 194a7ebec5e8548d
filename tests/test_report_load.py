"""The sweep over requests in flight on every face of the report."""

from __future__ import annotations

import msgspec
import pytest

from quantlab.records import Candidate, Knee, LoadCell, Number, Percentiles, Run
from quantlab.report import figures, load, to_html, to_markdown, users
from quantlab.report.rows import rows
from quantlab.score.limits import Limits
from tests.report_runs import HOSTILE, bare, demo, gpu
from tests.test_report import Page, screen


def cell(concurrency: int, mode: str = "offline", **fields: object) -> LoadCell:
    rate = Number(value=100.0 * concurrency, unit="tokens/s", low=90.0 * concurrency, high=110.0 * concurrency)
    given = {"tokens_per_second": rate, "ttft": Percentiles(p50=0.02, p90=0.04, p99=0.08), "waiting": 1.5, **fields}
    return LoadCell(isl=512, osl=128, concurrency=concurrency, mode=mode, **given)  # type: ignore[arg-type]


def swept(run: Run, *cells: LoadCell, why: str = "because") -> Run:
    """The run whose native candidates were swept."""
    knee = Knee(isl=512, osl=128, mode="offline", concurrency=4, saturated=None, least_gain=0.2, text=why)

    def with_load(one: Candidate) -> Candidate:
        if one.throughput is None:
            return one
        timed = msgspec.structs.replace(one.throughput, load=cells, knees=(knee,))
        return msgspec.structs.replace(one, throughput=timed)

    return msgspec.structs.replace(run, candidates=tuple(with_load(one) for one in run.candidates))


def test_cells_knees_and_reasons_are_on_every_face() -> None:
    bad = cell(64, valid=False, reason="out of memory with 64 requests in flight", tokens_per_second=None)
    run = swept(gpu(), cell(1), cell(4), cell(16, "served", source="aiperf 0.13.0"), bad)
    page, text = Page(to_html(run)), to_markdown(run)
    for face in (page.text, text, " ".join(screen(run, 140).split())):
        assert "knee at 4 requests in flight (offline): because." in face
    for face in (page.text, text):
        assert "out of memory with 64 requests in flight" in face
        assert "served" in face
    row = next(line for line in text.splitlines() if [one.strip() for one in line.split("|")][2:3] == ["served"])
    assert [one.strip() for one in row.split("|")][1:9] == [
        "bf16",
        "served",
        "512",
        "128",
        "16",
        "1,600",
        figures.NOTHING,
        "20.0",
    ]


def test_lines_are_recipes_and_modes_and_marks_lie_in_order() -> None:
    run = swept(gpu(), cell(16), cell(1), cell(4), cell(1, "served"), cell(4, "served"))
    ((rate, wait),) = load.charts(run, rows(run))
    names = [line.name for line in rate.lines]
    assert names[:2] == ["bf16", "bf16, served"]
    first = rate.lines[0].marks
    assert [mark.x for mark in first] == sorted(mark.x for mark in first)
    assert first[0].y > first[-1].y, "more tokens are higher"
    assert all(mark.hollow for mark in rate.lines[1].marks)
    assert rate.hint == "hollow: served over HTTP"
    assert [tick.text for tick in rate.x_ticks] == ["1", "4", "16"]
    assert all(mark.top < mark.y == mark.bottom for line in wait.lines for mark in line.marks), "median to p99"


@pytest.mark.parametrize("run", [demo(), bare()], ids=["demo", "bare"])
def test_nothing_is_shown_where_nothing_was_swept(run: Run) -> None:
    assert load.charts(run, rows(run)) == []
    assert "Under load" not in Page(to_html(run)).text
    assert "Under load" not in to_markdown(run)


def test_other_peoples_words_are_inert() -> None:
    bad = cell(4, valid=False, reason=HOSTILE[0], tokens_per_second=None)
    run = swept(gpu(), cell(1), bad, why=" ".join(HOSTILE))
    page = Page(to_html(run))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "\x1b" not in screen(run, 100, force_terminal=False)


def test_users_within_usual_limits_are_on_both_pages() -> None:
    """20 ms a token up to 4, 60 up to 16: quick ends at 1 by the first token, chat at 4, patient is not reached."""

    def timed(load: int, first: float, step: float, mode: str = "offline", **fields: object) -> LoadCell:
        def times(p90: float) -> Percentiles:
            return Percentiles(p50=p90 / 2, p90=p90, p99=p90 * 9)

        return cell(load, mode, **{"ttft": times(first), "tpot": times(step), **fields})

    unkept = timed(1, 0.1, 0.01, "served", tpot=None)
    bad = timed(2, 9.0, 9.0, valid=False, reason="the load was not kept")
    run = swept(gpu(), timed(16, 0.3, 0.06), timed(1, 0.2, 0.02), timed(4, 0.25, 0.02), bad, unkept)
    body = [line for line in users.body(rows(run)) if line[0] == "bf16"]
    assert body[0] == (
        "bf16",
        "offline",
        "512",
        "128",
        "1 at 100 tokens/s",
        "4 at 400 tokens/s",
        "16 or more at 1,600 tokens/s",
    )
    assert len(body) == 1, "where no time per token was kept, nothing is said"
    for face in (Page(to_html(run)).text, to_markdown(run)):
        assert "16 or more at 1,600 tokens/s" in face
        assert "Users within limits" in face
    ((_, _, each),) = load.charts(run, rows(run))
    assert each.title == "Time per further token, 512 in, 128 out"
    assert users.body(rows(demo())) == []
    assert "Users within limits" not in to_markdown(demo()) + to_html(demo())


def test_users_are_those_that_recommend_counts() -> None:
    """One rule on both sides: a load between that breaks ends the count."""
    held = users.carried([cell(1), cell(4, ttft=Percentiles(p50=1.0, p90=2.0, p99=3.0)), cell(16)], Limits(ttft=0.5))
    assert held is not None
    assert held.concurrency == 1
