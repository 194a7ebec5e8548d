"""Run against run: what is judged, what is refused and why, and which run a word means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from quantlab.changes import between
from quantlab.chosen import choose
from quantlab.cli import cli
from quantlab.errors import BadInput
from quantlab.ledgers import Ledger
from quantlab.records import Cell, Number, Run, encode
from quantlab.records.versus import RecipePair, Versus
from quantlab.report import versus as face
from quantlab.versus import failed, unjudged, versus
from tests.ledger_samples import entry
from tests.report_runs import demo, gpu, hostile
from tests.versus_runs import changed, items, run, sweep


def held(before: Any, after: Any, left: Any = None, right: Any = None, **words: Any) -> tuple[Versus, RecipePair]:
    sides = [{"fp8": {"facts": each}} if each is not None else {} for each in (left, right)]
    found = versus(before, after, *sides, **words)
    return found, next(pair for pair in found.pairs if pair.recipe_name == "fp8")


def test_more_wrong_answers_to_the_same_items_are_a_regression() -> None:
    found, pair = held(run(30), run(90), items(30), items(90))
    assert pair.status == "regression"
    assert pair.comparison is not None
    assert pair.comparison.suite.difference is not None
    assert pair.comparison.suite.difference.value == pytest.approx(-10.0)
    assert (pair.comparison.suite.regressed, pair.comparison.suite.improved) == (60, 0)
    assert failed(found)
    assert "worse" in found.summary


def test_a_loss_within_the_policy_is_accepted_and_too_few_items_decide_nothing() -> None:
    _, pair = held(run(30), run(31), items(30), items(31))
    assert pair.status == "accept"
    _, pair = held(run(1), run(2), items(1, n=40), items(2, n=40))
    assert pair.status == "insufficient"


def test_the_paired_test_sees_what_two_verdicts_hide() -> None:
    before, after = run(30), run(90)
    assert before.candidates[0].verdict == after.candidates[0].verdict
    assert held(before, after, items(30), items(90))[1].status == "regression"


def test_another_tokenizer_forms_no_difference_and_judges_no_speed() -> None:
    found, pair = held(run(30, 200.0), run(90, 100.0), items(30), items(90, tokens=7))
    assert pair.status == "not comparable"
    assert "another tokenizer" in pair.reason
    assert {cell.finding for cell in pair.speed} == {"not judged"}
    assert any("another tokenizer" in note for note in found.notes)
    assert unjudged(found)
    assert not failed(found)


def test_only_the_same_text_in_other_tokens_is_another_tokenizer() -> None:
    """Other prompts take other numbers of tokens, and other items are other texts: neither says anything of tokens."""
    before = items(30)
    for after in (items(90, prompt="Question {}", tokens=7), replace(items(90, tokens=7), ids=before.ids[::-1])):
        found, pair = held(run(30, 200.0), run(90, 100.0), before, after)
        assert not any("another tokenizer" in note for note in found.notes)
        assert "slower" in {cell.finding for cell in pair.speed}
    one = replace(before, tokens=[6, *before.tokens[1:]])
    assert any("another tokenizer" in note for note in held(run(30), run(90), before, one)[0].notes), (
        "one item is enough"
    )


@pytest.mark.parametrize(("words", "shown"), [({}, 512), ({"bytes": 0}, None), ({"simulated": True}, None)])
def test_the_size_of_a_checkpoint_is_that_of_one_that_exists(words: dict[str, Any], shown: int | None) -> None:
    """A simulated checkpoint's file holds 16 bit a weight, which is not the size of what is claimed."""

    def with_checkpoint(one: Run, **fields: Any) -> Run:
        fp8 = next(each for each in gpu().candidates if each.recipe_name == "fp8")
        assert fp8.calibrated is not None
        made = changed(fp8.calibrated, checkpoint=changed(fp8.calibrated.checkpoint, **fields))
        return changed(one, candidates=(changed(one.candidates[0], calibrated=made),))

    before, after = with_checkpoint(run(30), bytes=512), with_checkpoint(run(31), **({"bytes": 512} | words))
    pair = held(before, after)[1]
    assert (pair.bytes_before, pair.bytes_after) == (512, shown)
    assert held(before, run(31))[1].bytes_after is None


def test_items_that_are_not_here_are_named() -> None:
    found = versus(run(30), run(90), {"fp8": "the table of its items is not here"}, {"fp8": {"facts": items(90)}})
    assert found.pairs[0].comparison is None
    assert "earlier run: the table of its items is not here" in found.pairs[0].reason


def test_speed_is_a_regression_only_where_spreads_lie_apart() -> None:
    found, pair = held(run(30, 200.0), run(30, 150.0))
    slow = [cell for cell in pair.speed if cell.finding == "slower"]
    assert slow
    assert pair.status == "regression"
    assert all(cell.overlap is False and cell.ratio == pytest.approx(0.75) for cell in slow)
    assert held(run(30, 200.0), run(30, 150.0), max_slower=40)[1].status == "accept"
    assert {cell.finding for cell in held(run(30, 200.0), run(31, 199.0))[1].speed} <= {"same", "not judged"}
    assert held(run(30, 150.0), run(30, 200.0))[1].status == "accept"
    assert held(run(30, 150.0), run(31, 200.0))[1].status == "not comparable"  # its accuracy is not known
    assert failed(found)


@pytest.mark.parametrize(
    ("words", "why"),
    [({"numerics": "emulated"}, "not the format's own speed"), ({"device": "NVIDIA L4"}, "another device")],
)
def test_speed_of_other_kernels_or_devices_is_shown_and_not_judged(words: dict[str, Any], why: str) -> None:
    _, pair = held(run(30, 200.0), run(31, 100.0, **words))
    timed = [cell for cell in pair.speed if cell.before and cell.after]
    assert timed
    assert all(cell.finding == "not judged" and why in cell.why for cell in timed)


def test_an_invalid_cell_and_a_speed_of_nothing_have_no_ratio() -> None:
    zero = Cell(isl=1, osl=1, batch=1, tokens_per_second=Number(value=0.0, unit="tokens/s"))
    nan = Cell(isl=1, osl=1, batch=2, tokens_per_second=Number(value=float("nan"), unit="tokens/s"))
    one, two = run(30), run(31)
    timed = changed(two.candidates[0].throughput, cells=(zero, nan))
    two = changed(two, candidates=(changed(two.candidates[0], throughput=timed),))
    cells = held(one, two)[1].speed
    assert [cell.ratio for cell in cells if cell.isl == 1] == [None, None]
    assert any("invalid in the earlier run" in cell.why for cell in cells)
    assert all(cell.why for cell in cells)


@pytest.mark.parametrize("words", [{"status": "infeasible"}, {"status": "regression", "rung": "canary"}])
def test_what_worked_and_does_not_any_more_is_a_regression(words: dict[str, Any]) -> None:
    before, after = run(30), run(31)
    broken = changed(after.candidates[0].verdict, **words)
    after = changed(after, candidates=(changed(after.candidates[0], verdict=broken),))
    assert held(before, after)[1].status == "regression"


def test_recipes_of_one_run_only_are_named_and_fail_nothing() -> None:
    before, after = demo(), changed(demo(), candidates=demo().candidates[:2])
    found = versus(before, after, {}, {})
    assert {pair.recipe_name for pair in found.pairs if pair.status == "gone"} >= {"int4_awq"}
    assert not failed(found)


def test_changes_name_what_differs_and_only_that() -> None:
    before = gpu()
    assert between(before, before) == ()
    host = changed(before.host, versions={**before.host.versions, "torch": "9.9"})
    recipe = changed(before.candidates[1].recipe, summary="other words", kv_cache="fp8")
    after = changed(before, host=host, candidates=(before.candidates[0], changed(before.candidates[1], recipe=recipe)))
    found = versus(before, after, {}, {})
    assert [(c.part, c.name, c.after) for c in found.changes] == [("versions", "torch", "9.9")]
    own = next(pair for pair in found.pairs if pair.recipe_name == "fp8").changes
    assert [(c.part, c.name, c.after) for c in own] == [("recipe", "kv_cache", "fp8")]


def test_the_faces_hold_hostile_names(tmp_path: Path) -> None:
    found = versus(demo(), hostile(), {}, {}, names=("<script>x</script>", "\x1b[31m"))
    page, source = face.to_html(found), face.to_markdown(found)
    assert "<script>window.pwned" not in page
    assert "<script>x" not in page
    assert "\x1b" not in page + source
    assert "<script>" not in source


def ledger(folder: Path) -> Ledger:
    book = Ledger(folder)
    for each in (gpu(), changed(gpu(), model=changed(gpu().model, word="3b"), created="2026-12-01T08:00:00Z")):
        book.save_run(each)
    return book


def test_a_word_finds_the_newest_run_it_fits(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    first, second = book.run_documents()
    assert choose(book, "3b").name == second.stem
    assert choose(book, "smol").name == first.stem
    assert choose(book, "2026-12-01").run.model.word == "3b"
    assert choose(book, first.stem).name == first.stem
    assert choose(book, first.stem.rpartition("-")[2]).name == first.stem
    assert choose(Ledger(tmp_path / "none"), str(first)).run.model.word == "smollm2-135m"
    with pytest.raises(BadInput, match="'nonsense'"):
        choose(book, "nonsense")
    with pytest.raises(BadInput):
        choose(book, "")


def test_the_engines_version_comes_from_the_entries_and_bad_tables_are_named(tmp_path: Path) -> None:
    from quantlab.pipeline.compared import compared
    from quantlab.records import digest

    book = Ledger(tmp_path)
    chosen = []
    for wrong, version in ((30, "vllm 0.23.0"), (31, "vllm 0.24.0")):
        identity = digest(wrong)
        book.append(changed(entry("throughput", identity), spec={"artifact": {"engine_version": version}}))
        one = run(wrong)
        one = changed(one, candidates=(changed(one.candidates[0], identities={"throughput": identity}),))
        table = book.path(one.candidates[0].accuracy.items)
        table.parent.mkdir(parents=True)
        table.write_bytes(b"no Parquet")
        chosen.append(choose(book, book.save_run(one).stem))
    found = compared(*chosen)
    assert ("engine", "version", "vllm 0.24.0") in [(c.part, c.name, c.after) for c in found.pairs[0].changes]
    assert "cannot be read" in found.pairs[0].reason


def report(book: Ledger, *words: str) -> Any:
    return CliRunner().invoke(cli, ["report", "--ledger", str(book.root), *words])


def test_the_command_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for words, told in (
        (("--compare", "3b", "3b"), "same run twice"),
        (("--compare", "3b", "7b"), "no run is '7b'"),
        (("--all", "3b"), "do not go together"),
        (("--gate",), "do not go together"),
        (("--compare", "3b", "smol", "--max-slower", "nan"), "no loss of speed"),
    ):
        done = report(book, *words)
        assert isinstance(done.exception, BadInput), words
        assert told in str(done.exception)


def test_entries_without_a_run_are_a_clear_error(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    book.append(entry("throughput"))
    done = report(book)
    assert "only 1 entries of single stages" in str(done.exception)


def test_the_gate_fails_on_a_regression_and_on_nothing_to_judge(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    ids = []
    for each in (run(30, 200.0), run(30, 150.0), run(30, 200.0, device="NVIDIA L4")):
        ids.append(book.save_run(each).stem)
    slower = report(book, "--compare", ids[0], ids[1], "--gate")
    assert (slower.exit_code, "slower in" in slower.output) == (10, True)
    assert report(book, "--compare", ids[1], ids[0], "--gate", "--json").exit_code == 0
    assert report(book, "--compare", ids[0], ids[2], "--gate", "--json").exit_code == 11
    assert sorted(path.suffix for path in (tmp_path / "reports").iterdir()) == [".html", ".json", ".md"]


def test_all_runs_stand_on_one_page_with_links_that_lead_somewhere(tmp_path: Path) -> None:
    import re

    book = ledger(tmp_path)
    book.save_run(changed(gpu(), notes=("another run of the same second",)))
    done = report(book, "--all")
    assert done.exit_code == 0, done.output
    page = (book.root / "reports" / "index.html").read_text("utf-8")
    links = set(re.findall(r'href="([^"#]+\.html)"', page))
    assert len(links) == 3
    assert all((book.root / "reports" / link).is_file() for link in links)
    assert report(book, "--all", "--json").output.encode().strip() == encode(book.runs())


def test_a_crossing_within_the_spread_is_called_a_tie() -> None:
    from quantlab.report.answer import charts
    from quantlab.report.rows import rows

    found = sweep()
    ((load, over),) = charts(found, rows(found))
    assert [line.name for line in load.lines] == ["bf16", "fp8", "int4_awq"]
    assert over.crossings == ("int4_awq is ahead at batch 1, fp8 at batch 64",)
    wide = changed(found, candidates=tuple(_wider(each) for each in found.candidates))
    ((_, over),) = charts(wide, rows(wide))
    assert over.crossings[0].endswith("a tie within the spread of the repeats")
    assert charts(demo(), rows(demo())) == []  # emulated, so that no speed is a format's own


def _wider(candidate: Any) -> Any:
    cells = []
    for cell in candidate.throughput.cells:
        rate = cell.tokens_per_second
        wide = changed(rate, low=0.5 * rate.value, high=2 * rate.value) if rate else None
        cells.append(changed(cell, tokens_per_second=wide))
    return changed(candidate, throughput=changed(candidate.throughput, cells=tuple(cells)))
