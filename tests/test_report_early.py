"""The report of an early run: the claim, how much of the suite it took, and no interval that would be wrong."""

from __future__ import annotations

import msgspec
import pytest

from quantlab import looks
from quantlab.records import Look, Number, Run
from quantlab.report import rows, to_html, to_json, to_markdown
from tests.report_runs import demo
from tests.test_report import Page, screen

CHANGE = msgspec.structs.replace


def early() -> Run:
    """The demo run with FP8 accepted at the second look."""
    run = demo()
    policy = CHANGE(run.policy, early=True, scope="suite")
    fp8 = run.candidates[1]
    assert fp8.comparison is not None
    between = Number(value=-0.7, unit="points", n=800, low=-1.94, high=0.63, confidence=0.95)
    look = Look(status="accept", difference=between, scored=800, items=2404, looks=2, decided_after=412)
    comparison = looks.on_suite(fp8.comparison, look, scores=(0.681, 0.674))
    verdict = looks.verdict(look, policy, comparison.population)
    candidates = (run.candidates[0], CHANGE(fp8, comparison=comparison, verdict=verdict))
    return CHANGE(run, policy=policy, candidates=candidates)


@pytest.mark.parametrize("face", ["screen", "html", "markdown", "json"])
def test_every_face_says_what_is_claimed_and_what_it_took(face: str) -> None:
    run = early()
    text = {
        "screen": lambda: " ".join(screen(run, 140).split()),
        "html": lambda: Page(to_html(run)).text.replace("−", "-"),
        "markdown": lambda: to_markdown(run).replace("\\", ""),
        "json": lambda: to_json(run).decode(),
    }[face]()
    assert "on this suite: -0.7 points [-1.9, +0.6]" in text
    assert "decided after 412 of 2,404 items" in text
    if face in ("html", "markdown"):
        assert "800 of 2,404 items scored, decided after 412, 2 looks" in text
    if face != "json":
        assert "at most 2 points lost on this suite, 95 % sure, scored until certain" in text


def test_tasks_of_a_stopped_run_show_differences_without_intervals() -> None:
    found = rows.task_rows(early())
    assert found
    assert all(row.task.difference is not None and row.task.difference.low is None for row in found)
    assert "scoring stopped early" in to_html(early())


def test_a_claim_beyond_the_suite_says_so() -> None:
    assert "at most 2 points lost beyond this suite, 95 % sure" in to_markdown(demo())
    assert rows.effort(demo().candidates[1]) == ""


def test_a_run_without_accuracy_claims_nothing() -> None:
    run = demo()
    timed = CHANGE(run, candidates=tuple(CHANGE(each, accuracy=None, comparison=None) for each in run.candidates))
    for text in (to_markdown(timed), to_html(timed), " ".join(screen(timed, 140).split())):
        assert "not judged, accuracy was not measured" in text
        assert "points lost" not in text
