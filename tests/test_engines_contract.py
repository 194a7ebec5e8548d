"""One contract for every engine. An engine is added by a line in ENGINES_HERE: its name and the folder it opens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from quantlab.engines import Ability, GenerateRequest, ScoreRequest, Session, engine, ortgenai, vllm
from quantlab.engines.flowing import InFlight
from quantlab.errors import BadInput
from quantlab.records import Artifact, Checkpoint, EngineConfig, Host

HOST = Host(system="test", python="3.11", cpu="test", cores=2, memory_bytes=2**33)
EXACT = EngineConfig(device="cpu", activations="keep")
ENGINES_HERE = [
    ("fake", "bf16", "tiny_model"),
    ("torch", "bf16", "tiny_model"),
    ("torch", "fp8", "tiny_fp8"),
    ("torch", "int4_awq", "tiny_int4_awq"),
    ("ortgenai", "bf16", "tiny_model"),
    ("ortgenai", "fp8", "tiny_fp8"),
    ("ortgenai", "int4_awq", "tiny_int4_awq"),
    ("vllm", "bf16", "tiny_model"),
]
HERE = {"ortgenai": lambda: ortgenai.installed(), "vllm": lambda: vllm.installed() if vllm.on_cpu() else None}
"""Engine with an environment of its own -> whether this is one. CI leaves these out; the skip says how to run them."""
TOLERANCE = {"fake": 0.0, "torch": 1e-4, "trtllm": 1e-5, "ortgenai": 1e-4, "vllm": 1e-4}
"""Largest change of a log-probability with the batch. FP8 turns the last bit of a sum into a whole step of its codes,
so it is held to the mean instead (see `same`)."""
RNG = np.random.default_rng(5)
PROMPT = tuple(int(token) for token in RNG.integers(2, 512, 40))


def artifact(name: str, format_: str, folder: Path) -> Artifact:
    checkpoint = Checkpoint(
        path=str(folder), digest="0", recipe=format_, format=format_, architecture="LlamaForCausalLM"
    )
    made = engine(name)
    assert made.supports(checkpoint, HOST) is None
    return made.build(checkpoint, folder.with_name(f"{folder.name}-{name}"), EXACT, HOST)


@pytest.fixture(params=ENGINES_HERE, ids=lambda case: f"{case[0]}-{case[1]}", scope="module")
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, Session]]:
    name, format_, fixture = request.param
    if name in HERE and HERE[name]() is None:
        pytest.skip(f"engine {name} (CPU build) is not in this Python: `make test-{name}` runs this in its own")
    made = artifact(name, format_, request.getfixturevalue(fixture))
    config = msgspec.structs.replace(EXACT, dtype="float32", max_length=128, token_budget=256)
    with engine(name).open(made, config) as session:
        yield name, format_, session


def requests(seed: int = 0, contexts: int = 6, choices: int = 4) -> list[ScoreRequest]:
    """Questions with a shared beginning, several choices each, of all lengths."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(contexts):
        question = tuple(int(t) for t in rng.integers(2, 512, rng.integers(1, 30)))
        for _ in range(choices):
            answer = tuple(int(t) for t in rng.integers(2, 512, rng.integers(1, 6)))
            found.append(ScoreRequest((*PROMPT[:12], *question), answer))
    return found


def same(name: str, format_: str, a: np.ndarray, b: np.ndarray) -> bool:
    if format_ == "fp8":
        return bool(np.abs(a - b).mean() < 0.1)
    return bool(np.abs(a - b).max() <= TOLERANCE[name])


def test_describes_itself(opened: tuple[str, str, Session]) -> None:
    name, _, session = opened
    made = engine(name)
    assert made.name == name
    assert made.version()
    assert Ability.LOGPROBS in made.abilities
    assert session.device
    assert session.max_length == 128


def test_empty_calls_have_empty_answers(opened: tuple[str, str, Session]) -> None:
    _, _, session = opened
    assert session.logprobs([]) == []
    assert session.generate([]) == []


def test_shapes_types_and_signs(opened: tuple[str, str, Session]) -> None:
    _, _, session = opened
    for request, score in zip(requests(), session.logprobs(requests()), strict=True):
        assert score.logprobs.shape == (len(request.continuation),)
        assert score.logprobs.dtype == np.float32
        assert bool((score.logprobs <= 0).all())
        assert score.distribution is None
        assert isinstance(score.greedy, bool)


def test_answers_come_in_the_order_of_requests(opened: tuple[str, str, Session]) -> None:
    name, format_, session = opened
    asked = requests(1)
    order = np.random.default_rng(2).permutation(len(asked))
    straight, shuffled = session.logprobs(asked), session.logprobs([asked[i] for i in order])
    for place, i in enumerate(order):
        assert same(name, format_, shuffled[place].logprobs, straight[i].logprobs)


def test_a_request_does_not_depend_on_its_batch(opened: tuple[str, str, Session]) -> None:
    name, format_, session = opened
    asked = requests(3)
    together = session.logprobs(asked)
    alone = [session.logprobs([request])[0] for request in asked]
    a, b = (np.concatenate([score.logprobs for score in scores]) for scores in (together, alone))
    assert same(name, format_, a, b)


def test_duplicates_get_the_same_answer(opened: tuple[str, str, Session]) -> None:
    _, _, session = opened
    one = requests(4)[0]
    first, second, other = session.logprobs([one, one, requests(5)[1]])
    assert np.array_equal(first.logprobs, second.logprobs)
    assert not np.array_equal(first.logprobs[:1], other.logprobs[:1])


def test_sum_agrees_with_the_full_distribution(opened: tuple[str, str, Session]) -> None:
    name, _, session = opened
    if Ability.FULL_LOGITS not in engine(name).abilities:
        pytest.skip(f"engine {name} says that it hands out no distributions")
    asked = [ScoreRequest(r.context, r.continuation, full=i % 2 == 0) for i, r in enumerate(requests(6))]
    for request, score in zip(asked, session.logprobs(asked), strict=True):
        if not request.full:
            assert score.distribution is None
            continue
        assert score.distribution is not None
        assert score.distribution.shape == (len(request.continuation), 512)
        assert score.distribution.dtype == np.float32
        np.testing.assert_allclose(np.exp(score.distribution.astype(float)).sum(-1), 1, atol=1e-4)
        picked = score.distribution[np.arange(len(request.continuation)), list(request.continuation)]
        np.testing.assert_allclose(picked, score.logprobs, atol=1e-5)
        assert score.greedy == bool((score.distribution.argmax(-1) == list(request.continuation)).all())


def test_an_empty_continuation_is_certain(opened: tuple[str, str, Session]) -> None:
    _, _, session = opened
    score = session.logprobs([ScoreRequest(PROMPT, ())])[0]
    assert score.logprobs.shape == (0,)
    assert score.greedy


def test_too_long_empty_and_foreign_requests_are_refused(opened: tuple[str, str, Session]) -> None:
    _, _, session = opened
    longest = PROMPT * 3
    assert len(session.logprobs([ScoreRequest(longest, PROMPT[:8])])[0].logprobs) == 8
    with pytest.raises(BadInput, match="129"):
        session.logprobs([ScoreRequest(longest, PROMPT[:9])])
    with pytest.raises(BadInput, match="129"):
        session.generate([GenerateRequest(longest, 9)])
    for bad in (ScoreRequest((), (5,)), ScoreRequest((5,), (512,)), ScoreRequest((-1,), (5,))):
        with pytest.raises(BadInput):
            session.logprobs([bad])
    with pytest.raises(BadInput):
        session.generate([GenerateRequest((), 4)])
    with pytest.raises(BadInput):
        session.generate([GenerateRequest(PROMPT, 0)])


def test_generation_is_what_scoring_calls_greedy(opened: tuple[str, str, Session]) -> None:
    _, format_, session = opened
    made = session.generate([GenerateRequest(PROMPT, 6, ignore_eos=True)])[0]
    score = session.logprobs([ScoreRequest(PROMPT, made.tokens)])[0]
    assert score.greedy or format_ == "fp8"
    assert not session.logprobs([ScoreRequest(PROMPT, (*made.tokens[:-1], (made.tokens[-1] + 1) % 512))])[0].greedy


def test_unequal_prompts_generate_as_they_would_alone(opened: tuple[str, str, Session]) -> None:
    _, format_, session = opened
    asked = [GenerateRequest(PROMPT[:n], 5, ignore_eos=True) for n in (40, 3, 17)]
    together = session.generate(asked)
    alone = [session.generate([request])[0] for request in asked]
    same_tokens = [a.tokens == b.tokens for a, b in zip(together, alone, strict=True)]
    assert all(same_tokens) or (format_ == "fp8" and any(same_tokens))


def test_ignore_eos_gives_exactly_the_count(opened: tuple[str, str, Session]) -> None:
    _, _, session = opened
    asked = [GenerateRequest(PROMPT, n, ignore_eos=True) for n in (32, 7)]
    for request, done in zip(asked, session.generate(asked), strict=True):
        assert len(done.tokens) == request.max_tokens
        assert done.finish == "length"
        assert 0 < done.first_token_seconds <= done.seconds


def test_stop_strings_end_a_completion(opened: tuple[str, str, Session], tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    _, _, session = opened
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    whole = session.generate([GenerateRequest(PROMPT, 12, ignore_eos=True)])[0].tokens
    stop = tokenizer.decode(whole[4:6])
    done, unstopped = session.generate(
        [GenerateRequest(PROMPT, 12, stop=(stop,), ignore_eos=True), GenerateRequest(PROMPT, 12, ignore_eos=True)]
    )
    assert done.finish == "stop"
    assert done.tokens == whole[: len(done.tokens)]
    assert stop in tokenizer.decode(done.tokens)
    assert stop not in tokenizer.decode(done.tokens[:-1])
    assert unstopped.tokens == whole
    assert done.seconds <= unstopped.seconds


def test_requests_in_flight_get_the_tokens_they_would_get_alone(opened: tuple[str, str, Session]) -> None:
    """One joins while others are decoding, one leaves before them; all are exact, and their times are in order."""
    name, format_, session = opened
    if Ability.IN_FLIGHT not in engine(name).abilities:
        assert not isinstance(session, InFlight)
        pytest.skip(f"engine {name} says that it serves static batches only")
    assert isinstance(session, InFlight)
    asked = [GenerateRequest(PROMPT[:n], m, ignore_eos=True) for n, m in ((30, 8), (3, 2), (17, 5))]
    alone = [session.generate([request])[0].tokens for request in asked]
    flow, done = session.flow(), []
    for key, request in enumerate(asked):
        flow.enter(key, request, streamed=key == 2)
        done += flow.step()
    for _ in range(20):
        done += flow.step() if len(done) < 3 else []
    assert sorted(one.key for one in done) == [0, 1, 2]
    assert done[0].key == 1, "the shortest leaves first"
    for one in done:
        assert one.tokens == alone[one.key] or format_ == "fp8"
        assert one.scheduled <= one.first <= one.last
        assert len(one.arrivals) == (5 if one.key == 2 else len(one.arrivals))
    flow.enter(3, asked[0], streamed=False)
    flow.leave()
    assert session.generate([asked[1]])[0].tokens == alone[1], "what was left behind is not answered"
