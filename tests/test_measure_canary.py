"""The canary on models that live, are lost, are stuck, or compute NaN."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoTokenizer

from quantlab.engines import Completion, GenerateRequest, Score, ScoreRequest, engine
from quantlab.engines.torch_session import TorchSession
from quantlab.errors import BadInput
from quantlab.measure import Bench
from quantlab.measure.canary import canary, distinct_trigrams
from quantlab.records import Canary, EngineConfig, encode
from quantlab.worker import Reporter
from tests import measure_bench


def look(bench: Bench) -> Canary:
    record, files = canary(bench)
    assert isinstance(record, Canary)
    assert files == {}
    msgspec.json.decode(encode(record), type=Canary)
    return record


def test_random_weights_fail_with_the_figures(tmp_path: Path) -> None:
    record = look(measure_bench.bench(tmp_path))
    assert not record.passed
    assert "0 of 2 prompts pass" in record.reason
    assert "limit 5.0" in record.reason, "0.8 of log(512)"


def test_nan_weights_fail_and_the_record_can_still_be_written(tmp_path: Path) -> None:
    session = measure_bench.PlainSession(measure_bench.tiny_folder())
    with torch.no_grad():
        session.model.model.layers[0].mlp.down_proj.weight[3, 5] = float("nan")
    record = look(measure_bench.bench(tmp_path, session))
    assert not record.passed
    assert "not finite" in record.reason
    assert [prompt.nll for prompt in record.prompts] == [None, None]


class Parrot(measure_bench.PlainSession):
    """Likes every prompt and then repeats `cycle`."""

    cycle = (7,)

    def logprobs(self, requests: list[ScoreRequest]) -> list[Score]:  # type: ignore[override]
        return [Score(torch.full((len(one.continuation),), -2.0).numpy(), greedy=False) for one in requests]

    def generate(self, requests: list[GenerateRequest]) -> list[Completion]:  # type: ignore[override]
        return [Completion((self.cycle * 32)[:32], "length", 0.1, 0.2) for _ in requests]


@pytest.mark.parametrize(("cycle", "passed"), [((7,), False), ((7, 8, 9), False), ((7, 8, 9, 10, 11, 12), True)])
def test_a_short_cycle_is_a_collapse_and_a_repeated_clause_is_not(
    tmp_path: Path, cycle: tuple[int, ...], passed: bool
) -> None:
    session = Parrot(measure_bench.tiny_folder())
    session.cycle = cycle
    record = look(measure_bench.bench(tmp_path, session))
    assert record.passed is passed
    assert ("repeats itself" in record.prompts[0].reason) is not passed


def test_a_model_that_stops_at_once_is_not_stuck() -> None:
    assert distinct_trigrams((5, 6)) == 1.0
    assert distinct_trigrams((5, 5, 5, 5)) == 0.5


def test_a_prompt_of_one_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="1 tokens"):
        look(measure_bench.bench(tmp_path, canary=("",)))


@pytest.mark.model
def test_the_real_model_passes_and_rounded_to_two_bits_fails(tmp_path: Path) -> None:
    folder = measure_bench.smollm2_folder()
    spec = measure_bench.job(tmp_path, path=folder, config=EngineConfig(device="cpu"))
    with engine("torch").open(spec.artifact, spec.config) as session:
        assert isinstance(session, TorchSession)
        bench = Bench(spec, session, AutoTokenizer.from_pretrained(folder), Reporter())
        assert look(bench).passed
        with torch.no_grad():
            for name, weight in session.model.named_parameters():
                if weight.dim() == 2 and "embed" not in name and "lm_head" not in name:
                    groups = weight.float().view(-1, 64)
                    scale = groups.abs().amax(1, keepdim=True)
                    weight.copy_(((groups / scale).round() * scale).view_as(weight))
        record = look(bench)
    assert not record.passed
    assert all(prompt.nll is not None and prompt.nll > 8.64 for prompt in record.prompts)
