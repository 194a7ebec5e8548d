"""Cells from a clock we know, and every way a cell can fail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantlab.engines import Completion, GenerateRequest
from quantlab.errors import BadInput
from quantlab.measure.memory import bytes_per_step
from quantlab.measure.roofline import prefill_seconds
from quantlab.measure.throughput import throughput
from quantlab.pipeline.station import Station
from quantlab.records import EngineConfig, Gpu, Grid, Host, Throughput
from tests.measure_bench import PlainSession, bench, job, tiny_folder, with_spec

PEAKS = {"bf16": (1978e12, 1978e12), "int4_awq": (1978e12, 1978e12), "fp8": (3956e12, 1978e12), "nvfp4": None}
"""Format -> operations a second of two H100: INT4 multiplies in 16 bit, and there is no FP4."""


class Clockwork(PlainSession):
    """Takes half a second for the first token of a batch and a tenth for each further one."""

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        self._begin(requests)
        return [self._tick(request) for request in requests]

    def _tick(self, request: GenerateRequest) -> Completion:
        out = tuple(range(5, 5 + request.max_tokens))
        slow = 1.0 if self.calls == 1 else 0.0
        return Completion(out, "length", 0.5 + slow, 0.5 + slow + 0.1 * (len(out) - 1))


def measure(folder: Path, session: Any, numerics: str = "native", **fields: Any) -> Throughput:
    """Without a suite no real prompts are continued beside the grid; `canary` brings one."""
    at = bench(folder, session, **fields)
    if "canary" not in fields:
        at = with_spec(at, suite=None)
    artifact = msgspec.structs.replace(at.spec.artifact, numerics=numerics)
    record, files = throughput(with_spec(at, artifact=artifact))
    assert isinstance(record, Throughput)
    assert files == {}
    return record


def test_prefill_and_decode_are_told_apart_and_the_warmup_does_not_count(tmp_path: Path) -> None:
    session = Clockwork(tiny_folder())
    record = measure(tmp_path, session, grid=Grid(summary="", isl=(8,), osl=(5,), batch=(1, 2), repeats=3))
    one, two = record.cells
    assert (one.valid, one.batch, two.batch) == (True, 1, 2)
    assert one.ttft_seconds is not None
    assert (one.ttft_seconds.value, one.ttft_seconds.high, one.ttft_seconds.n) == (0.5, 0.5, 3)
    assert one.ttft_seconds.confidence is None
    figures = {
        name: getattr(two, name).value
        for name in ("tpot_seconds", "prefill_tokens_per_second", "decode_tokens_per_second", "tokens_per_second")
    }
    assert figures == pytest.approx(
        {
            "tpot_seconds": 0.1,
            "prefill_tokens_per_second": 32.0,
            "decode_tokens_per_second": 20.0,
            "tokens_per_second": 2 * 5 / 0.9,
        }
    )
    assert two.bandwidth_share is None, "the bandwidth of this device is not known"
    assert session.calls == 2 * 4
    assert record.peak_bytes > 10_000_000
    assert record.device == "cpu: plain"


def test_every_sequence_gets_its_own_ordinary_tokens_and_the_seed_repeats_them(tmp_path: Path) -> None:
    grid = Grid(summary="", isl=(16,), osl=(2,), batch=(3,))
    first, second, other = (Clockwork(tiny_folder()) for _ in range(3))
    measure(tmp_path, first, grid=grid)
    measure(tmp_path, second, grid=grid)
    measure(tmp_path, other, grid=grid, seed=1)
    prompts = [request.prompt for request in first.asked]
    assert prompts == [request.prompt for request in second.asked]
    assert prompts != [request.prompt for request in other.asked]
    assert len(set(prompts)) == len(prompts) == 12
    assert all(token > 1 for prompt in prompts for token in prompt), "no BOS, no EOS"
    assert all(request.ignore_eos for request in first.asked)


def test_one_output_token_has_a_ttft_and_no_tpot(tmp_path: Path) -> None:
    (cell,) = measure(tmp_path, Clockwork(tiny_folder()), grid=Grid(summary="", isl=(8,), osl=(1,), batch=(1,))).cells
    assert cell.valid
    assert cell.ttft_seconds is not None
    assert cell.tpot_seconds is None
    assert cell.decode_tokens_per_second is None


def test_emulated_cells_say_so_and_are_not_held_against_the_bandwidth(tmp_path: Path) -> None:
    record = measure(tmp_path, Clockwork(tiny_folder()), "emulated", bandwidth=1e9)
    assert record.numerics == "emulated"
    for cell in record.cells:
        assert cell.ttft_seconds is not None
        assert cell.ttft_seconds.provenance == "emulated"
        assert cell.bandwidth_share is None
    native = measure(tmp_path, Clockwork(tiny_folder()), bandwidth=1e9)
    assert all(cell.bandwidth_share is not None and cell.bandwidth_share.value > 0 for cell in native.cells)


def test_simulated_checkpoints_are_not_timed(tmp_path: Path) -> None:
    session = Clockwork(tiny_folder())
    record = measure(tmp_path, session, "simulated")
    assert [cell.valid for cell in record.cells] == [False, False]
    assert "simulated" in record.cells[0].reason
    assert session.calls == 0


class Failing(Clockwork):
    """Fails in one way for batches of two."""

    way = ""

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        done = super().generate(requests)
        if len(requests) == 1:
            return done
        if self.way == "short":
            return [Completion(one.tokens[:-1], "stop", one.first_token_seconds, one.seconds) for one in done]
        if self.way == "memory":
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if self.way == "clock":
            return [Completion(one.tokens, "length", one.seconds, one.seconds) for one in done]
        raise RuntimeError("an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("way", "reason"),
    [("short", "sequences of [3]"), ("memory", "out of memory at batch 2"), ("clock", "clock is wrong")],
)
def test_a_cell_that_fails_keeps_its_place_and_the_others_are_measured(tmp_path: Path, way: str, reason: str) -> None:
    session = Failing(tiny_folder())
    session.way = way
    good, bad, last = measure(tmp_path, session, grid=Grid(summary="", isl=(8,), osl=(4,), batch=(1, 2, 1))).cells
    assert (good.valid, bad.valid, last.valid) == (True, False, True)
    assert reason in bad.reason
    assert bad.ttft_seconds is None


def test_an_error_that_is_not_about_memory_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure(tmp_path, Failing(tiny_folder()))


def test_a_cell_that_does_not_fit_and_a_job_without_grid(tmp_path: Path) -> None:
    session = Clockwork(tiny_folder(), max_length=10)
    (cell, _) = measure(tmp_path, session).cells
    assert "8 + 4 tokens do not fit into 10" in cell.reason
    with pytest.raises(BadInput, match="grid"):
        measure(tmp_path, session, grid=None)


def test_bytes_of_a_decode_step(tmp_path: Path) -> None:
    """By hand: 2 layers of 2 KV heads of 16 are 128 numbers a token; an untied embedding of 512 x 64 is not read."""
    spec = job(tmp_path)
    checkpoint = msgspec.structs.replace(spec.artifact.checkpoint, bytes=1_000_000)
    spec = msgspec.structs.replace(spec, artifact=msgspec.structs.replace(spec.artifact, checkpoint=checkpoint))
    at = {dtype: msgspec.structs.replace(spec, config=EngineConfig(dtype=dtype)) for dtype in ("float32", "bfloat16")}
    assert bytes_per_step(at["bfloat16"], 10, 3) == 1_000_000 - 512 * 64 * 2 + 128 * 2 * 30
    assert bytes_per_step(at["float32"], 10, 3) == 2_000_000 - 512 * 64 * 4 + 128 * 4 * 30
    config = json.loads((tiny_folder() / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {**config, "tie_word_embeddings": True}}))
    small = msgspec.structs.replace(checkpoint, path=str(tmp_path), format="fp8", kv_cache="fp8")
    spec = msgspec.structs.replace(at["float32"], artifact=msgspec.structs.replace(spec.artifact, checkpoint=small))
    assert bytes_per_step(spec, 10, 3) == 1_000_000 + 128 * 30
    (tmp_path / "config.json").unlink()
    assert bytes_per_step(spec, 10, 3) is None


def test_a_batch_that_does_not_fit_is_halved_and_both_stay_in_the_record(tmp_path: Path) -> None:
    class Small(Clockwork):
        def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
            if len(requests) > 3:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return super().generate(requests)

    grid = Grid(summary="", isl=(8,), osl=(5,), batch=(1, 8), repeats=2)
    cells = measure(tmp_path, Small(tiny_folder()), grid=grid).cells
    assert [(cell.batch, cell.valid) for cell in cells] == [(1, True), (8, False), (4, False), (2, True)]
    assert [cell.reason for cell in cells[1:3]] == ["out of memory at batch 8", "out of memory at batch 4"]
    grid = msgspec.structs.replace(grid, batch=(4, 8))
    cells = measure(tmp_path, Small(tiny_folder()), grid=grid).cells
    assert [cell.batch for cell in cells] == [4, 2, 8], "what the grid has anyway is not measured twice"


def test_the_least_time_of_a_prefill_by_hand(tmp_path: Path) -> None:
    """2 layers of 64: q and o 64 x 64, k and v 64 x 32, three of 64 x 128; four heads of 16; a head of 512 words."""
    spec = msgspec.structs.replace(job(tmp_path), compute=(1e9, 1e8))
    linear = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    slow = 2 * 2 * 10**2 * 64 + 2 * 64 * 512
    assert prefill_seconds(spec, 10, 3) == pytest.approx(3 * (2 * linear * 10 / 1e9 + slow / 1e8))
    assert prefill_seconds(msgspec.structs.replace(spec, compute=None), 10, 3) is None
    (cell, _) = measure(tmp_path, Clockwork(tiny_folder()), compute=(1e9, 1e8)).cells
    least = prefill_seconds(spec, 8, 1)
    assert cell.compute_share is not None
    assert least is not None
    assert cell.compute_share.value == pytest.approx(least / 0.5)
    assert measure(tmp_path, Clockwork(tiny_folder())).cells[0].compute_share is None, "not guessed"
    emulated = measure(tmp_path, Clockwork(tiny_folder()), "emulated", compute=(1e9, 1e8))
    assert emulated.cells[0].compute_share is None


def test_the_peak_is_that_of_the_products(tmp_path: Path) -> None:
    h100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30, compute_capability="9.0")
    host = Host(system="test", python="3.11", cpu="test", cores=2, memory_bytes=2**33, gpus=(h100,))
    station, config, made = Station("fake", host), EngineConfig(tensor_parallel=2), job(tmp_path).artifact.checkpoint
    peaks = {form: station.compute(config, msgspec.structs.replace(made, format=form)) for form in PEAKS}
    assert peaks == PEAKS
    assert station.compute(EngineConfig(device="cpu"), made) is None
    strange = msgspec.structs.replace(host, gpus=(msgspec.structs.replace(h100, name="Some GPU"),))
    assert Station("fake", strange).compute(config, made) is None
