"""The concurrency sweep on an engine whose scheduler and clock we know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantlab.engines import GenerateRequest
from quantlab.engines.flowing import Finished
from quantlab.measure import loop as loops
from quantlab.measure.throughput import throughput
from quantlab.records import Grid, Throughput
from quantlab.score.knee import Point, knee
from tests.measure_bench import PlainSession, bench, tiny_folder, with_spec

STEP = 0.01
"""Seconds of a step for one sequence; each further one adds `slope` of it."""


class Server(PlainSession):
    """A scheduler with `places`; a step for n sequences takes STEP x (1 + slope x (n - 1)). No real time passes."""

    def __init__(self, places: int = 64, slope: float = 0.0) -> None:
        super().__init__(tiny_folder())
        self.places, self.slope, self.now = places, slope, 100.0
        self.held: dict[int, list[Any]] = {}
        self.most, self.way = 0, ""
        self.lengths: list[int] = []

    def flow(self) -> Server:
        return self

    def enter(self, key: int, request: GenerateRequest, *, streamed: bool) -> None:
        assert len(request.prompt) == 8
        self.lengths.append(request.max_tokens)
        self.held[key] = [request, 0.0, [], streamed]

    def step(self) -> list[Finished]:
        if self.way == "memory" and len(self.held) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        running = list(self.held.items())[: self.places]
        self.most = max(self.most, len(running))
        began, self.now = self.now, self.now + STEP * (1 + self.slope * (len(running) - 1))
        ended = []
        for key, one in running:
            one[1] = one[1] or began
            one[2].append(self.now)
            if len(one[2]) == one[0].max_tokens:
                del self.held[key]
                count = len(one[2]) - (self.way == "short")
                arrivals = tuple(one[2]) if one[3] else ()
                ended.append(Finished(key, (5,) * count, one[1], one[2][0], one[2][-1], arrivals))
        return ended

    def leave(self) -> None:
        self.held.clear()


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Measure a sweep with the loop's clock set to the server's."""

    def run(session: Any, numerics: str = "native", **grid: Any) -> Throughput:
        clock = type("Clock", (), {"monotonic": staticmethod(lambda: getattr(session, "now", 0.0))})
        monkeypatch.setattr(loops, "time", clock)
        given = {"summary": "", "isl": (8,), "osl": (5,), "concurrency": (1, 4), "warmup": 0, **grid}
        at = with_spec(bench(tmp_path, session, grid=Grid(**given)), suite=None)
        record, _ = throughput(at)
        assert isinstance(record, Throughput)
        return record

    return run


def test_a_load_that_the_engine_holds_is_computed_at_once_and_scales(measure: Any) -> None:
    server = Server()
    record = measure(server)
    one, four = record.load
    assert record.cells == ()
    assert (one.valid, four.valid, four.mode, four.saturated) == (True, True, "offline", False)
    assert one.tokens_per_second.value == pytest.approx(100), "a token a step of 10 ms"
    assert four.tokens_per_second.value == pytest.approx(400)
    assert (four.computed, four.waiting) == (pytest.approx(4), pytest.approx(0))
    assert four.requests == 3 * 16
    assert (four.ttft.p50, four.itl.p50, four.tpot.p99) == (pytest.approx(0.01),) * 3
    assert four.latency.p50 == pytest.approx(0.05)
    assert four.requests_per_second.value == pytest.approx(80)
    assert record.knees[0].concurrency is None
    assert "beyond the sweep" in record.knees[0].text
    assert server.most == 4


def test_the_first_wave_has_all_lengths_so_that_sequences_do_not_end_together(measure: Any) -> None:
    server = Server()
    measure(server, concurrency=(5,))
    assert server.lengths[:5] == [1, 2, 3, 4, 5]
    assert set(server.lengths[5:]) == {5}
    assert not server.held, "the load is taken away at the end"


def test_requests_that_wait_are_counted_and_the_knee_is_where_they_begin(measure: Any) -> None:
    record = measure(Server(places=4), concurrency=(1, 2, 4, 8, 16))
    assert [cell.valid for cell in record.load] == [True] * 5
    assert [cell.saturated for cell in record.load] == [False, False, False, True, True]
    full = record.load[3]
    assert (full.computed, full.waiting) == (pytest.approx(4, rel=0.05), pytest.approx(4, rel=0.05))
    assert full.ttft.p50 > 0.05, "waiting is part of the time to the first token"
    found = record.knees[0]
    assert (found.concurrency, found.saturated) == (4, 8)
    assert "from 4 to 8 requests in flight it brings 0%" in found.text


def test_a_step_that_grows_with_the_load_has_its_knee_before_the_queue(measure: Any) -> None:
    found = measure(Server(slope=0.4), concurrency=(1, 2, 4, 8)).knees[0]
    assert (found.concurrency, found.saturated) == (4, None)


@pytest.mark.parametrize(
    ("way", "reason"),
    [("short", "asked for 1 tokens, got 0"), ("memory", "out of memory with 4 requests in flight")],
)
def test_a_load_that_fails_keeps_its_place_with_the_reason(measure: Any, way: str, reason: str) -> None:
    server = Server()
    server.way = way
    record = measure(server)
    assert record.load[-1].reason == reason
    assert not record.load[-1].valid
    assert record.knees == ()


def test_an_engine_without_in_flight_batching_says_so(measure: Any) -> None:
    record = measure(PlainSession(tiny_folder()))
    assert {cell.reason for cell in record.load} == {
        "engine torch serves static batches only: no request joins a running one"
    }


def test_under_heavy_load_only_some_requests_are_streamed() -> None:
    server, streamed = Server(), []
    enter = server.enter

    def watched(key: int, request: GenerateRequest, *, streamed: bool, seen: list[bool] = streamed) -> None:
        seen.append(streamed)
        enter(key, request, streamed=streamed)

    server.enter = watched  # type: ignore[method-assign]
    loop = loops.Loop(server, lambda tokens: GenerateRequest((5,) * 8, tokens), 64, 2)
    loop.warm(0)
    assert 0 < sum(streamed[:64]) <= loops.STREAMED


def test_the_knee_scales_steps_that_are_no_doublings() -> None:
    """From 1 to 4 are two doublings: 1.5 times the rate is a gain of 22 % each, 1.4 times one of 18 %."""
    assert knee([Point(1, 100, 1), Point(4, 150, 2)]).concurrency is None
    assert knee([Point(4, 140, 2), Point(1, 100, 1)]).concurrency == 1
    assert knee([Point(1, 100, 1), Point(2, 90, 2.2)]).text.endswith(
        "brings -10%, and a request takes 2.20 times as long"
    )
    assert "fewer than two" in knee([Point(1, 100, 1)]).text
