"""The fake engine: damage in order, and a model that finds an answer standing in its context."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantlab.engines import GenerateRequest, ScoreRequest, Session, engine
from quantlab.errors import BadInput
from quantlab.records import EngineConfig
from tests.test_engines_contract import HOST, PROMPT, artifact


def session(folder: Path, format_: str = "bf16") -> Session:
    return engine("fake").open(artifact("fake", format_, folder), EngineConfig()).__enter__()


def distribution(folder: Path, format_: str) -> np.ndarray:
    asked = [ScoreRequest(PROMPT[:n], PROMPT[n : n + 3], full=True) for n in range(1, 37)]
    scores = session(folder, format_).logprobs(asked)
    return np.concatenate([score.distribution for score in scores if score.distribution is not None]).astype(float)


def test_damage_grows_with_the_format(tmp_path: Path) -> None:
    baseline = distribution(tmp_path, "bf16")
    kl = [
        float((np.exp(baseline) * (baseline - distribution(tmp_path, format_))).sum(-1).mean())
        for format_ in ("bf16", "fp8", "int4_awq", "int4", "int3")
    ]
    assert kl[0] == 0
    assert 0.02 < kl[1] < 0.1
    assert kl[1] < kl[2] < kl[3] == kl[4]


def test_finds_an_answer_that_stands_in_the_context(tmp_path: Path) -> None:
    """ "a b ... a" -> "b", so that a suite with such items has right answers and damage costs some of them."""
    rng, right = np.random.default_rng(0), {"bf16": 0, "int4": 0}
    for format_ in right:
        model = session(tmp_path, format_)
        for _ in range(60):
            a, b, c, *rest = (int(token) for token in rng.permutation(np.arange(2, 512))[:12])
            choices = [ScoreRequest((a, b, *rest, a), (answer,)) for answer in (b, c)]
            first, second = model.logprobs(choices)
            right[format_] += bool(first.logprobs[0] > second.logprobs[0])
    assert right["bf16"] >= 55
    assert right["int4"] >= 40


def test_greedy_text_does_not_run_in_circles(tmp_path: Path) -> None:
    tokens = session(tmp_path).generate([GenerateRequest(PROMPT[:5], 60, ignore_eos=True)])[0].tokens
    triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    assert len(set(triples)) > 0.5 * len(triples)


def test_is_deterministic_and_says_that_it_is_no_measurement(tmp_path: Path) -> None:
    assert np.array_equal(distribution(tmp_path, "fp8"), distribution(tmp_path, "fp8"))
    assert artifact("fake", "fp8", tmp_path).numerics == "simulated"
    assert engine("fake").numerics(artifact("fake", "fp8", tmp_path).checkpoint, HOST) == "simulated"


def test_stop_strings_need_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="tokenizer"):
        session(tmp_path).generate([GenerateRequest(PROMPT, 4, stop=("x",))])
