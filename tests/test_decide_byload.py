"""Ranking by loads of a running engine: users within the limits decide, of one kind only; else the answer says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import quantlab as ql
from quantlab.cli import cli
from quantlab.decide import Recommendation, explain
from tests.test_decide import asked
from tests.test_decide_users import load, with_results

LIMITS = {"ttft": "200ms", "tpot": "20ms"}


def swept(folder: Path, **loads: list[dict[str, Any]]) -> Path:
    """The H100 entries, each recipe with these loads; every recipe's loads have 64 requests a user."""

    def given(entry: dict[str, Any]) -> list[dict[str, Any]]:
        return [each | {"requests": 64 * each["concurrency"]} for each in loads.get(entry["recipe"], [])]

    return with_results(folder, load=given)


def users(*rates: float, most: int = 64, **words: Any) -> list[dict[str, Any]]:
    """Loads 1, 4, 16, 64, 256 with these tokens a second; beyond `most` the first token takes 900 ms."""
    return [load(4**power, rate, 0.05 if 4**power <= most else 0.9, 0.005, **words) for power, rate in enumerate(rates)]


def ranked(folder: Path, **words: Any) -> Recommendation:
    return asked("3b", "h100", [folder], **{"unproven": True, "max_drop": 5, **words})


def test_users_within_the_limits_decide_against_the_static_batches(tmp_path: Path) -> None:
    """int4_awq is the slowest of the static batches at 64; here it carries four times the users of the others."""
    folder = swept(
        tmp_path,
        bf16=users(100, 350, 1200, 3000, most=16),
        fp8=users(150, 500, 1800, 4000, most=16),
        int4_awq=users(160, 550, 1700, 2500, most=64),
    )
    found = ranked(folder, **LIMITS)
    assert (found.choice, found.runner_up) == ("int4_awq", "fp8")
    assert found.ranked_by == "in flight, 512 in, 128 out"
    rows = {row.recipe: row for row in found.rows}
    assert {name: row.load and (row.load.users, row.load.tokens_per_second) for name, row in rows.items()} == {
        "bf16": (16, 1200),
        "fp8": (16, 1800),
        "int4_awq": (64, 2500),
    }
    assert rows["bf16"].why == "carries 16 users within the limits, int4_awq 64"
    held = rows["int4_awq"].load
    assert held is not None
    assert held.dollars_per_user_hour == pytest.approx(3.35 / 64)
    assert rows["int4_awq"].dollars_per_million == pytest.approx(3.35 / 3600 / 2500 * 1e6)
    assert "ship int4_awq (throughput, by load) if" not in found.sentence, "its accuracy is published"
    assert "64 users within TTFT 200 ms and TPOT 20 ms (p90) at 2,500 tokens/s; fp8 16 users" in found.sentence
    assert not any("static batches, which say nothing" in line for line in found.missing)
    assert found.stability is not None
    assert found.stability > 0.95
    static = ranked(folder, by="batch", **LIMITS)
    assert (static.choice, static.ranked_by) == ("fp8", "static batches")
    assert all(row.load is None for row in static.rows)
    assert not any("static batches, which say nothing" in line for line in static.missing), "it was asked for"


def test_equal_users_are_told_apart_by_speed_and_equal_speed_by_accuracy_and_memory(tmp_path: Path) -> None:
    folder = swept(tmp_path, bf16=users(100, 350), fp8=users(150, 500), int4_awq=users(160, 450))
    found = ranked(folder, tpot="20ms")
    assert found.choice == "fp8"
    assert {row.recipe: row.why for row in found.rows}[
        "int4_awq"
    ] == "as many users as fp8, 0.90 times the speed of fp8 there"
    near = swept(tmp_path / "near", bf16=users(100, 490), fp8=users(150, 500), int4_awq=users(160, 495))
    assert ranked(near, recipes=["bf16", "fp8"], tpot="20ms").choice == "bf16", "its loss is known to be none"


def test_without_limits_loads_are_ranked_only_when_asked_and_by_their_best_speed(tmp_path: Path) -> None:
    folder = swept(tmp_path, bf16=users(100, 300, 250), fp8=users(150, 200, 180), int4_awq=users(160, 170, 150))
    assert ranked(folder).ranked_by == "static batches"
    found = ranked(folder, by="load")
    rows = {row.recipe: row.load for row in found.rows}
    assert (found.choice, rows["bf16"] and rows["bf16"].users) == ("bf16", 4)
    assert "300 tokens/s with 4 in flight" in found.sentence
    quick = ranked(folder, by="load", objective="latency")
    assert quick.choice in ("fp8", "int4_awq"), "alone, both are faster"
    assert {row.load.users for row in quick.rows if row.load} == {1}


def _one_is_missing(folder: Path) -> Path:
    return swept(folder, bf16=users(100, 350), fp8=users(150, 500))


def _of_two_kinds(folder: Path) -> Path:
    return swept(folder, bf16=users(100, 350), fp8=users(150, mode="served"), int4_awq=users(160, 450))


def _of_two_lengths(folder: Path) -> Path:
    return swept(folder, bf16=users(100, 350), fp8=users(150, isl=64), int4_awq=users(160, 450))


def _no_load_in_common(folder: Path) -> Path:
    return swept(folder, bf16=users(100, 350)[:1], fp8=users(150, 500)[1:], int4_awq=users(160, 450))


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (_one_is_missing, "no load of int4_awq was measured, of bf16 and fp8 some were."),
        (_of_two_kinds, "in the same way"),
        (_of_two_lengths, "at the same lengths"),
        (_no_load_in_common, "in the same way"),
        (with_results, "no load of bf16 or fp8 or int4_awq was measured on h100 with vllm."),
    ],
)
def test_kinds_are_never_mixed_and_the_answer_says_why_static_batches_decide(
    tmp_path: Path, made: Callable[[Path], Path], why: str
) -> None:
    found = ranked(made(tmp_path), **LIMITS)
    assert found.ranked_by == "static batches"
    (line,) = [line for line in found.missing if "static batches, which say nothing of queueing: " in line]
    assert why in line
    assert any(step.startswith("Load: quantlab bench bf16 fp8 int4_awq") for step in found.next_steps)
    only = ranked(made(tmp_path), recipes=["bf16"], by="load")
    assert (only.ranked_by == "static batches") == (made is with_results), "who cannot be chosen needs no load"


@pytest.mark.parametrize(
    ("words", "why"), [({"objective": "memory"}, "memory is compared"), ({"objective": "energy"}, "energy is compared")]
)
def test_what_loads_do_not_decide(tmp_path: Path, words: dict[str, Any], why: str) -> None:
    folder = swept(tmp_path, bf16=users(100), fp8=users(150), int4_awq=users(160))
    found = ranked(folder, by="load", **words)
    assert found.ranked_by == "static batches"
    assert any(why in line for line in found.missing)


def test_served_comes_before_in_flight_and_users_are_counted_where_all_were_measured(tmp_path: Path) -> None:
    """fp8 was served up to 256; the others up to 16, so 16 is all that can be compared."""
    folder = swept(
        tmp_path,
        bf16=[*users(100, 350, 1200, mode="served"), *users(100, 350)],
        fp8=[*users(150, 500, 1800, 4000, 9000, most=256, mode="served"), *users(150, 500)],
        int4_awq=[*users(160, 550, 1700, mode="served"), *users(160, 550)],
    )
    found = ranked(folder, **LIMITS)
    assert found.ranked_by == "served, 512 in, 128 out"
    rows = {row.recipe: row for row in found.rows}
    assert {row.load and row.load.users for row in found.rows} == {16}
    assert rows["fp8"].load is not None
    assert rows["fp8"].load.loads == (1, 4, 16)
    assert rows["fp8"].users[0].most == 256, "its own sweep is shown whole"


def test_a_load_between_that_breaks_ends_the_count_though_nobody_else_was_measured_there(tmp_path: Path) -> None:
    broken = load(8, 700, 0.9, 0.005)
    folder = swept(tmp_path, bf16=users(100, 350, 1200), fp8=[*users(150, 500, 1800), broken])
    found = ranked(folder, recipes=["bf16", "fp8"], **LIMITS)
    assert {row.recipe: row.load and row.load.users for row in found.rows} == {"bf16": 16, "fp8": 4}
    assert found.choice == "bf16"


def test_a_time_nobody_kept_holds_no_limit_and_nothing_within_says_what_to_relax(tmp_path: Path) -> None:
    unkept = [each | {"ttft": None} for each in users(150, 500)]
    folder = swept(tmp_path, bf16=users(100, 350), fp8=unkept)
    found = ranked(folder, recipes=["bf16", "fp8"], **LIMITS)
    assert found.choice == "bf16"
    assert "its ttft is not known" in {row.recipe: row.why for row in found.rows}["fp8"]
    none = ranked(folder, recipes=["bf16", "fp8"], tpot="1ms")
    assert none.choice is None
    assert any("--tpot: at least 5 ms (bf16, 1 in flight, p90) instead of 1 ms." in line for line in none.relax)
    assert "under load" in none.sentence


def test_a_limit_that_just_holds_is_not_called_sure(tmp_path: Path) -> None:
    """4 ms of 4.05: the p90 of the next measurement is as likely beyond."""

    def ends(at: float) -> list[dict[str, Any]]:
        return [load(1, 150, 0.05, 0.001), load(16, 1800, 0.05, at)]

    def sure(name: str, at: float) -> float:
        folder = swept(tmp_path / name, bf16=[load(1, 100, 0.05, 0.001), load(16, 1000, 0.05, 0.0041)], fp8=ends(at))
        found = ranked(folder, recipes=["bf16", "fp8"], tpot="4.05ms")
        assert found.choice == "fp8"
        assert found.stability is not None
        return found.stability

    assert sure("clear", 0.002) > 0.9
    assert 0.4 < sure("near", 0.004) < 0.9


def test_the_command_and_the_notebook_show_it(tmp_path: Path) -> None:
    folder = swept(tmp_path, bf16=users(100, 350), fp8=users(150, 500), int4_awq=users(160, 450))
    words = ["recommend", "--model", "3b", "--gpu", "h100", "--ledger", str(folder), "--unproven", "--max-drop", "5"]
    done = CliRunner().invoke(cli, [*words, "--by", "load"])
    assert done.exit_code == 0, done.output
    assert "Ranked by: in flight, 512 in, 128 out." in done.output
    assert "    ranked: 4 users, 4 a GPU, $0.838 a user and hour: 500 tokens/s" in done.output
    wrong = CliRunner().invoke(cli, [*words, "--by", "user"])
    assert wrong.exit_code == 2
    shown = ql.recommend("3b", gpu="h100", folders=[folder], unproven=True, by="load", max_drop=5)
    assert "$ / user and hour" in shown._repr_html_()
    assert explain(shown.record)[0].endswith("(in flight, 512 in, 128 out).")
