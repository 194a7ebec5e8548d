"""Flips and categories in the report: what fits is shown, what is left out is counted, what is sure is said."""

from __future__ import annotations

import msgspec
import pytest

from quantlab.records import Run
from quantlab.report import flips, to_html, to_markdown
from tests.report_runs import HOSTILE, bare, demo, hostile
from tests.test_report import Page


def test_all_of_them_with_margins_and_what_is_left_out() -> None:
    page = Page(to_html(demo()))
    assert "all 18" in page.text
    assert "60 shown of 412; 352 less surprising ones are left out" in page.text
    items = [attrs for tag, attrs in page.tags if tag == "li" and "data-direction" in attrs]
    assert len(items) == 78
    assert {attrs["data-direction"] for attrs in items} == {"regressed", "improved", "churn"}
    assert {attrs["data-kind"] for attrs in items} == {"", "geography"}
    assert "+2.50 → −3.50" in page.text


def test_the_budget_is_shared_and_escapes_count() -> None:
    run = demo()
    flip = msgspec.structs.replace(run.candidates[1].flips[0], prompt="<" * flips.PROMPT)
    many = tuple(msgspec.structs.replace(each, flips=(flip,) * 400, flipped=0) for each in run.candidates[1:3])
    found = flips.shown(msgspec.structs.replace(run, candidates=many))
    assert [one.total for one in found] == [400, max(400, _sides(run, 2))]
    assert len({len(one.shown) for one in found}) == 1
    assert 100 < len(found[0].shown) < 400
    assert flips.shown(bare()) == []


def _sides(run: Run, place: int) -> int:
    comparison = run.candidates[place].comparison
    assert comparison is not None
    return comparison.suite.regressed + comparison.suite.improved


def test_an_older_run_does_not_claim_to_show_all() -> None:
    run = demo()
    old = msgspec.structs.replace(run.candidates[2], flipped=0)
    (found,) = flips.shown(msgspec.structs.replace(run, candidates=(old,)))
    assert found.total == _sides(run, 2) > len(found.shown) == 60


def test_hostile_items_stay_texts() -> None:
    page = Page(to_html(hostile()))
    items = [attrs for tag, attrs in page.tags if tag == "li" and "data-direction" in attrs]
    assert len(items) == 6
    assert any(HOSTILE[1] in str(attrs["data-kind"]) for attrs in items)  # an attribute, whole, and not broken out of
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [tag for tag, attrs in page.tags if tag == "img" or any(name.startswith("on") for name in attrs)]


def test_categories_are_ranked_with_an_honest_note() -> None:
    run = demo()
    ((candidate, ranked),) = flips.categories(run)
    assert candidate.recipe_name == "int4_awq"
    assert [one.surely for one in ranked] == [True, False, False]
    note = flips.note(run)
    assert "worst of 3 categories looks bad by chance alone" in note
    assert "98.33 % each" in note
    markdown = to_markdown(run)
    assert note in markdown
    section = markdown.partition("## Categories")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if "int4" in line]
    assert [(cells[1].strip(), cells[5].strip()) for cells in rows] == [
        ("facts, geography", "yes"), ("facts, history", "no"), ("kinds", "no"),
    ]  # fmt: skip
    assert flips.note(bare()) == ""


@pytest.mark.parametrize("old", [{"task": "t", "id": "1", "direction": "regressed", "prompt": "p", "right": "a",
                                  "baseline": "a", "candidate": "b"}])  # fmt: skip
def test_a_report_of_an_older_run_is_still_read(old: dict[str, str]) -> None:
    from quantlab.records import Flip

    found = msgspec.convert(old, Flip)
    assert (found.kind, found.margin_baseline, found.surprise) == ("", None, None)
