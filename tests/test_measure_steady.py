"""When is a timed batch to be believed?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantlab.engines import Completion, GenerateRequest, Score, ScoreRequest
from quantlab.measure.steady import Timed, counted, percentiles
from quantlab.records import Grid
from tests.measure_bench import PlainSession, tiny_folder
from tests.test_measure_throughput import Clockwork, measure


def of(total: float) -> Timed:
    return Timed((total / 2,), (total,))


def test_slow_first_runs_are_set_aside_and_replaced() -> None:
    totals: Iterator[float] = iter((9.0, 4.0, 1.0, 1.05, 0.98, 7.0))
    found = counted(lambda: of(next(totals)), repeats=3, tokens=1, gpus=1)
    assert [run.total for run in found.runs] == [1.0, 1.05, 0.98]
    assert found.discarded == 2
    assert found.variation == pytest.approx(0.0357, abs=1e-3)


def test_a_machine_that_never_settles_is_measured_as_it_is() -> None:
    totals: Iterator[float] = iter(10.0 / (place + 1) for place in range(20))
    found = counted(lambda: of(next(totals)), repeats=3, tokens=1, gpus=1)
    assert len(found.runs) == 3
    assert found.discarded == 3
    assert found.variation is not None
    assert found.variation > 0.1


def test_one_run_has_no_variation() -> None:
    found = counted(lambda: of(1.0), repeats=1, tokens=1, gpus=1)
    assert (len(found.runs), found.discarded, found.variation) == (1, 0, None)


@pytest.mark.parametrize(
    ("first", "last", "flying"),
    [
        ((0.1, 0.1, 0.1), (1.0, 1.0, 1.0), 3),
        ((0.1, 0.2, 0.9), (1.0, 1.0, 1.0), 3),
        ((0.1, 0.1, 1.1, 1.1), (1.0, 1.0, 2.0, 2.0), 2),
        ((0.1, 1.0), (1.0, 2.0), 1),
        ((0.5, 0.1), (0.6, 0.55), 2),
    ],
)
def test_sequences_in_flight_at_one_moment(first: Any, last: Any, flying: int) -> None:
    assert Timed(first, last).in_flight == flying


def test_percentiles_of_known_values() -> None:
    found = percentiles([float(value) for value in range(1, 102)])
    assert (found.p50, found.p90, found.p99) == pytest.approx((51.0, 91.0, 100.0))


class Waves(Clockwork):
    """Holds two sequences at once and serves the others afterwards, as a scheduler with max_num_seqs=2 does."""

    def generate(self, requests: list[GenerateRequest]) -> list[Completion]:  # type: ignore[override]
        done = super().generate(requests)
        late = [0.0 if place < 2 else done[0].seconds for place in range(len(done))]
        return [
            Completion(one.tokens, one.finish, one.first_token_seconds + wait, one.seconds + wait)
            for one, wait in zip(done, late, strict=True)
        ]


def test_a_batch_served_in_waves_is_no_batch(tmp_path: Path) -> None:
    grid = Grid(summary="", isl=(8,), osl=(4,), batch=(2, 3))
    two, three = measure(tmp_path, Waves(tiny_folder()), grid=grid).cells
    assert two.valid
    assert not three.valid
    assert three.reason == "only 2 of 3 sequences were in flight at once"


class Unsteady(Clockwork):
    """Every third run takes ten times as long."""

    def _tick(self, request: GenerateRequest) -> Completion:
        done = super()._tick(request)
        much = 10.0 if self.calls % 3 == 0 else 1.0
        return Completion(done.tokens, done.finish, done.first_token_seconds * much, done.seconds * much)


def test_a_cell_that_varies_too_much_is_invalid_and_the_grid_says_how_much_is_too_much(tmp_path: Path) -> None:
    shape: Any = {"summary": "", "isl": (8,), "osl": (4,), "batch": (1,), "repeats": 4}
    (bad,) = measure(tmp_path, Unsteady(tiny_folder()), grid=Grid(**shape)).cells
    assert not bad.valid
    assert "not steady" in bad.reason
    (good,) = measure(tmp_path, Unsteady(tiny_folder()), grid=Grid(**shape, max_variation=5.0)).cells
    assert good.valid
    assert good.variation is not None
    assert good.variation > 0.25


class Crowded(PlainSession):
    """Right alone; amid others it repeats one token, as a kernel with a wrong batch stride does."""

    nats = 2.0

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        return [Score(np.full(len(one.continuation), -self.nats, dtype=np.float32), True) for one in requests]

    def generate(self, requests: list[GenerateRequest]) -> list[Completion]:  # type: ignore[override]
        self._begin(requests)
        alone = len(requests) == 1
        return [
            Completion(
                tuple((5 + place if alone else 7) for place in range(request.max_tokens)),
                "length",
                0.5,
                0.5 + 0.1 * (request.max_tokens - 1),
            )
            for request in requests
        ]


def test_text_that_falls_apart_under_load_makes_the_batch_invalid(tmp_path: Path) -> None:
    one, two = measure(tmp_path, Crowded(tiny_folder()), canary=("The capital of France is",)).cells
    assert one.valid
    assert not two.valid
    assert "in a batch of 2, 2 sequences fall apart" in two.reason


def test_what_is_no_language_model_is_not_judged_under_load(tmp_path: Path) -> None:
    session = Crowded(tiny_folder())
    session.nats = 6.2
    assert measure(tmp_path, session, canary=("The capital of France is",)).cells[1].valid


def test_prompts_that_do_not_fit_are_not_continued(tmp_path: Path) -> None:
    session = Crowded(tiny_folder(), max_length=14)
    two = measure(tmp_path, session, canary=("The capital of France is",)).cells[1]
    assert two.valid
    assert all(request.max_tokens == 4 for request in session.asked)
