"""Do results depend on how the work was cut? The real model, a few items; other budgets, orders, workers, and a kill.

What is promised: the same budget gives the same bits, however often a run was killed and whoever computed the blocks.
Another budget packs other rows together, and sums of floats in another order end in other last bits: log-likelihoods
agree within TOLERANCE in float32, and every decision is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from quantlab.engines import Session, engine
from quantlab.measure.adapter import SessionLM
from quantlab.measure.journal import Journal
from quantlab.measure.tasks import load
from quantlab.records import Suite, SuiteTask
from tests import measure_bench as bench

pytestmark = pytest.mark.model
TOLERANCE = 2e-4
"""Nats, of a whole continuation. Budgets of 24 and 8192 tokens differed by 1.3e-5 at most where this was written."""
SMALL, USUAL = 24, 8192


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    spec = bench.job(tmp_path_factory.mktemp("cut"), path=bench.smollm2_folder())
    with engine("torch").open(spec.artifact, spec.config) as opened:
        yield opened


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """lm-eval's requests of five real questions."""
    scratch = tmp_path_factory.mktemp("items")
    asks = (SuiteTask(task="ql_facts", limit=4), SuiteTask(task="ql_cloze", limit=1))
    found: list[Any] = []
    for one in load(Suite(summary="", tasks=asks), scratch, bench.ROOT / "evals" / "tasks", scratch):
        one.task.build_all_requests(limit=one.ask.limit)
        found += one.task.instances
    assert len(found) == 20
    return found


class Limited:
    """A session with another budget; `dies_after`: a kill at that call."""

    def __init__(self, session: Any, budget: int, dies_after: int | None = None) -> None:
        self.session, self.budget, self.left = session, budget, dies_after
        self.max_length, self.device = session.max_length, session.device
        self.calls = 0

    def logprobs(self, requests: Any) -> Any:
        if self.left is not None and self.calls >= self.left:
            raise KeyboardInterrupt
        self.calls += 1
        self.session.scorer.token_budget = self.budget
        return self.session.logprobs(requests)


def scored(items: list[Any], limited: Limited, journal: Path) -> list[tuple[float, bool]]:
    tokenizer = AutoTokenizer.from_pretrained(bench.smollm2_folder())
    with Journal(journal, "cut") as kept:
        lm = SessionLM(limited, tokenizer, kept, limited.budget)  # type: ignore[arg-type]
        return lm.loglikelihood(items)


def choices(answers: list[tuple[float, bool]]) -> list[int]:
    """Of each item of four."""
    return [max(range(4), key=lambda n: answers[first + n][0]) for first in range(0, len(answers), 4)]


@pytest.fixture(scope="module")
def usual(items: list[Any], session: Session, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, bool]]:
    return scored(items, Limited(session, USUAL), tmp_path_factory.mktemp("usual") / "j")


def test_another_budget_gives_the_same_decisions_and_likelihoods_within_the_tolerance(
    items: list[Any], session: Session, usual: list[tuple[float, bool]], tmp_path: Path
) -> None:
    limited = Limited(session, SMALL)
    found = scored(items, limited, tmp_path / "j")
    assert limited.calls > 1, "the small budget must cut somewhere else"
    assert max(abs(a - b) for (a, _), (b, _) in zip(found, usual, strict=True)) < TOLERANCE
    assert [greedy for _, greedy in found] == [greedy for _, greedy in usual]
    assert choices(found) == choices(usual)


def test_the_order_of_the_items_changes_no_bit(
    items: list[Any], session: Session, usual: list[tuple[float, bool]], tmp_path: Path
) -> None:
    backwards = scored(items[::-1], Limited(session, USUAL), tmp_path / "j")
    assert backwards[::-1] == usual


def test_a_kill_after_the_first_block_changes_no_bit(items: list[Any], session: Session, tmp_path: Path) -> None:
    items = items[:12]
    whole = scored(items, Limited(session, SMALL), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        scored(items, Limited(session, SMALL, dies_after=1), tmp_path / "cut")
    rest = Limited(session, SMALL)
    assert scored(items, rest, tmp_path / "cut") == whole
    assert rest.calls > 0


def test_two_workers_on_one_journal_change_no_bit(items: list[Any], session: Session, tmp_path: Path) -> None:
    """Twice at once in one folder: work may be done twice, answers stay those of one worker."""
    items = items[:12]
    alone = scored(items, Limited(session, SMALL), tmp_path / "alone")
    found: list[list[tuple[float, bool]]] = []
    journal = tmp_path / "shared"
    workers = [
        threading.Thread(target=lambda: found.append(scored(items, Limited(session, SMALL), journal))) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [alone, alone]
