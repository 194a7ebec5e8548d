"""Engine "trtllm" end to end against the stand-in package, whose surface and traps are those of tests/contracts.

This is not a proof that TensorRT-LLM computes: it is a proof that nothing is said to it that it does not know, that
what comes back is read right, and that its silent errors are noticed.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from quantlab.engines import GenerateRequest, ScoreRequest, engine
from quantlab.engines.trtllm import GPUS, TrtllmEngine
from quantlab.engines.trtllm_session import groups, longest_of
from quantlab.errors import BadInput, Broken, QuantlabError, Refused
from quantlab.records import Artifact, Checkpoint, EngineConfig, Gpu, Host
from tests import trtllm_standin as standin

LINES = [("1.2.1", "engine"), ("1.2.1", "pytorch"), ("1.3.0", "pytorch")]
CONFIG = EngineConfig(max_length=128, token_budget=256)


def host(capability: str = "9.0", name: str = "NVIDIA H100 80GB HBM3") -> Host:
    gpu = Gpu(name=name, memory_bytes=80 * 10**9, compute_capability=capability)
    return Host(system="test", python="3.12", cpu="test", cores=2, memory_bytes=2**33, gpus=(gpu,))


def described(folder: Path, format_: str = "bf16", **more: Any) -> Checkpoint:
    words = {"digest": "0", "recipe": format_, "format": format_, "architecture": "LlamaForCausalLM"}
    return Checkpoint(path=str(folder), **(words | more))


def built(checkpoint: Checkpoint, into: Path, config: EngineConfig = CONFIG) -> Artifact:
    made = TrtllmEngine()
    assert made.supports(checkpoint, host()) is None
    return made.build(checkpoint, into, config, host())


def with_flow(flow: str, **more: Any) -> EngineConfig:
    return msgspec.structs.replace(CONFIG, flow=flow, **more)


@pytest.fixture
def sdk(tmp_path: Path) -> Iterator[None]:
    with standin.installed(standin.contract(), "1.2.1", tmp_path / "site"):
        yield


@pytest.mark.parametrize("flow", ["engine", "pytorch"])
def test_numbers_are_those_of_the_model(sdk: None, tmp_path: Path, flow: str) -> None:
    """Also of prompts that share a beginning, and of one that needs chunks: 300 tokens in steps of 256."""
    config = with_flow(flow, max_length=512)
    made = built(described(standin.checkpoint(tmp_path / "source", "bf16")), tmp_path / "made", config)
    rng = np.random.default_rng(3)
    long = tuple(int(token) for token in rng.integers(2, 512, 300))
    asked = [ScoreRequest(long[:n], long[n : n + m], full=m % 2 == 0) for n, m in ((280, 20), (20, 4), (20, 1), (1, 9))]
    with engine("trtllm").open(made, config) as session:
        for request, score in zip(asked, session.logprobs(asked), strict=True):
            n, m = len(request.context), len(request.continuation)
            rows = standin.logprobs_of((*request.context, *request.continuation))[n - 1 : n - 1 + m]
            np.testing.assert_allclose(score.logprobs, rows[np.arange(m), list(request.continuation)], atol=1e-5)
            assert score.greedy == bool((rows.argmax(-1) == list(request.continuation)).all())
            if score.distribution is not None:
                np.testing.assert_allclose(score.distribution, rows, atol=1e-5)
        done = session.generate([GenerateRequest(long[:10], 3, ignore_eos=True)])[0]
        assert done.tokens[0] == standin.logits_of(long[:10])[-1].argmax()


def test_an_engine_is_built_once_a_size_and_a_killed_build_leaves_nothing(sdk: None, tmp_path: Path) -> None:
    config = with_flow("engine")
    standin.BUILDS.clear()
    made = built(described(standin.checkpoint(tmp_path / "source", "fp8"), "fp8"), tmp_path / "made", config)
    assert len(standin.BUILDS) == 1
    for _ in range(2):
        with engine("trtllm").open(made, config):
            pass
    assert len(standin.BUILDS) == 1
    for other in ({"max_batch": 4}, {"max_length": 64}, {"token_budget": 512}, {"tensor_parallel": 2}):
        with engine("trtllm").open(made, with_flow("engine", **other)):
            pass
    assert len(standin.BUILDS) == 5
    folders = sorted(each.name for each in Path(made.path).glob("engine-*"))
    assert len(folders) == 5
    saved = json.loads((Path(made.path) / folders[0] / "config.json").read_text())
    assert saved["build_config"]["gather_context_logits"] is True
    assert not list(Path(made.path).glob(".*.tmp"))


def test_a_build_that_dies_is_no_engine(sdk: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, checkpoint = with_flow("engine"), described(standin.checkpoint(tmp_path / "source", "bf16"))

    def dies(self: Any, engine_dir: str) -> None:
        Path(engine_dir).mkdir()
        (Path(engine_dir) / "config.json").write_text("{}")
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["tensorrt_llm._tensorrt_engine"].LLM, "save", dies)
        with pytest.raises(RuntimeError, match="memory"):
            built(checkpoint, tmp_path / "made", config)
    assert list((tmp_path / "made").glob("engine-*")) == []
    made = built(checkpoint, tmp_path / "made", config)
    with engine("trtllm").open(made, config) as session:
        assert session.generate([GenerateRequest((5,), 1)])


def test_two_that_build_the_same_engine_at_once_both_get_it(sdk: None, tmp_path: Path) -> None:
    config, checkpoint = with_flow("engine"), described(standin.checkpoint(tmp_path / "source", "bf16"))
    done: list[int] = []

    def work() -> None:
        made = built(checkpoint, tmp_path / "made", config)
        with engine("trtllm").open(made, config) as session:
            done.append(len(session.generate([GenerateRequest((5, 6), 2, ignore_eos=True)])[0].tokens))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [2, 2, 2, 2]
    assert len(list((tmp_path / "made").glob("engine-*"))) == 1
    assert not list((tmp_path / "made").glob(".*.tmp"))


def test_end_of_sequence_ends_unless_it_shall_not(sdk: None, tmp_path: Path) -> None:
    """Tokens 1 and 3 end a sequence; a prompt is looked for after which the model says one of them soon."""
    config = with_flow("pytorch")
    made = built(described(standin.checkpoint(tmp_path / "source", "bf16")), tmp_path / "made", config)
    with engine("trtllm").open(made, config) as session:
        prompts = [(first, second) for first in range(4, 40) for second in range(4, 10)]
        free = session.generate([GenerateRequest(prompt, 16, ignore_eos=True) for prompt in prompts])
        ended = session.generate([GenerateRequest(prompt, 16) for prompt in prompts])
    found = set()
    for whole, cut in zip(free, ended, strict=True):
        ends = [place for place, token in enumerate(whole.tokens) if token in (1, 3)]
        expected = whole.tokens[: ends[0]] if ends else whole.tokens
        assert cut.tokens == expected
        assert cut.finish == ("stop" if ends else "length")
        found |= {whole.tokens[place] for place in ends[:1]}
    assert found == {1, 3}, "both ends were met"


@pytest.mark.parametrize(
    ("field", "answer"),
    [("context_logits", None), ("context_logits", "short"), ("context_logits", "narrow"), ("outputs", "two")],
)
def test_a_wrong_answer_is_noticed(
    sdk: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, answer: str | None
) -> None:
    config = with_flow("pytorch")
    made = built(described(standin.checkpoint(tmp_path / "source", "bf16")), tmp_path / "made", config)
    real = standin._one

    def spoiled(*given: Any) -> Any:
        output = real(*given)
        value = getattr(output, field)
        changed = {
            None: lambda: None,
            "short": lambda: value[1:],
            "narrow": lambda: value[:, :500],
            "two": lambda: value * 2,
        }
        setattr(output, field, changed[answer]() if value is not None else None)
        return output

    monkeypatch.setattr(standin, "_one", spoiled)
    with engine("trtllm").open(made, config) as session:
        ask = session.generate if field == "outputs" else session.logprobs
        requests: Any = [GenerateRequest((5, 6), 2)] if field == "outputs" else [ScoreRequest((5, 6, 7), (8, 9))]
        with pytest.raises(Broken):
            ask(requests)


def test_the_stand_in_has_the_traps_that_the_engine_avoids(sdk: None, tmp_path: Path) -> None:
    """Block reuse, padded columns, unknown fields: otherwise passing would prove little."""
    import tensorrt_llm  # type: ignore[import-not-found]
    from tensorrt_llm.llmapi import KvCacheConfig  # type: ignore[import-not-found]

    model = standin.checkpoint(tmp_path / "source", "bf16")
    words = {"model": model, "tokenizer": model, "max_seq_len": 64, "max_num_tokens": 64}
    with pytest.raises(ValueError, match="build_config"):
        tensorrt_llm.LLM(**words, build_config=1)
    with pytest.raises(ValueError, match="block_reuse"):
        KvCacheConfig(block_reuse=False)
    with pytest.raises(ValueError, match="int4"):
        KvCacheConfig(dtype="int4")
    llm = tensorrt_llm.LLM(**words, kv_cache_config=KvCacheConfig())
    ask = tensorrt_llm.SamplingParams(max_tokens=1, return_context_logits=True)
    prompts = [{"prompt_token_ids": list(range(2, 22))}] * 2
    first, second = llm.generate(prompts, sampling_params=[ask, ask])
    assert first.context_logits.shape == (20, standin.VOCABULARY + standin.PADDING)
    assert second.context_logits.shape[0] < 20


def exercise(folder: Path, version: str, flow: str) -> None:
    """Everything that the engine says to the SDK, and reads from it, once."""
    config = with_flow(flow, max_batch=4)
    source = standin.checkpoint(folder / "source", "fp8", kv="FP8")
    made = built(described(source, "fp8", kv_cache="fp8"), folder / "made", config)
    with engine("trtllm").open(made, config) as session:
        assert session.logprobs([ScoreRequest((5, 6), (7, 8))])
        assert session.generate([GenerateRequest((5, 6), 2)])
        assert session.generate([GenerateRequest((5, 6), 2, ignore_eos=True)])


READ = (
    *[("request_output", field) for field in ("outputs", "context_logits")],
    *[("completion_output", field) for field in ("token_ids", "finish_reason")],
    *[("llm_methods", name) for name in ("generate", "shutdown")],
    *[("generate_params", name) for name in ("sampling_params", "use_tqdm")],
    ("prompt_forms", "prompt_token_ids"),
)


@pytest.mark.parametrize(("version", "flow"), LINES)
def test_renaming_anything_that_is_read_or_called_stops_the_worker(tmp_path: Path, version: str, flow: str) -> None:
    parts = (*READ, *([("engine_llm_methods", "save")] if flow == "engine" else []))
    for number, (part, name) in enumerate([("", ""), *parts]):
        surface = copy.deepcopy(standin.contract())
        if part:
            surface[part] = [f"{each}_renamed" if each == name else each for each in surface[part]]
        place = tmp_path / str(number)
        with standin.installed(surface, version, place / "site"):
            if not part:
                exercise(place, version, flow)
                continue
            with pytest.raises((Broken, AttributeError, ValueError, TypeError)):
                exercise(place, version, flow)


def test_supports_says_no_in_a_sentence_with_a_cure(tmp_path: Path) -> None:
    made = TrtllmEngine()
    checkpoint = described(tmp_path, "fp8")
    assert "environments/trtllm.txt" in str(made.supports(checkpoint, host()))
    assert made.version() == "tensorrt-llm not installed"
    with standin.installed(standin.contract(), "1.1.0", tmp_path / "old"):
        assert "1.2.1" in str(made.supports(checkpoint, host()))
    with standin.installed(standin.contract(), "1.2.1", tmp_path / "site"):
        assert made.supports(checkpoint, host()) is None
        assert "NVIDIA GPU" in str(made.supports(checkpoint, msgspec.structs.replace(host(), gpus=())))
        assert "8.9" in str(made.supports(checkpoint, host("8.6", "NVIDIA RTX A6000")))
        assert "int4_awq" in str(made.supports(described(tmp_path, "int4_awq"), host("12.0", "NVIDIA RTX 5090")))
        assert "table" in str(made.supports(checkpoint, host("8.7", "Orin")))
        assert "unknown" in str(made.supports(checkpoint, host("")))
        assert "pre_quant_scale" in str(made.supports(described(tmp_path, "int4"), host()))
        assert made.supports(described(tmp_path, "int4", simulated=True), host()) is None
        assert "T5" in str(made.supports(described(tmp_path, architecture="T5ForConditionalGeneration"), host()))
        assert made.numerics(checkpoint, host()) == "native"
        assert made.numerics(described(tmp_path, simulated=True), host()) == "simulated"


def test_the_table_of_gpus_is_the_contracts() -> None:
    rows = standin.contract()["hardware"]
    names = {"fp8": "FP8", "int4_awq": "W4A16_AWQ", "int4_awq_g64": "W4A16_AWQ",
             "fp8 cache": "FP8_KV", "w4a8_awq": "W4A8_AWQ", "nvfp4": "NVFP4",
             "fp8_rowwise": "FP8_PER_CHANNEL_PER_TOKEN"}  # fmt: skip
    rows = {"sm80": rows["sm80/86"], "sm86": rows["sm80/86"], "sm89": rows["sm89"], "sm90": rows["sm90"]} | {
        "sm100": rows["sm100/103"],
        "sm103": rows["sm100/103"],
        "sm120": rows["sm120"],
    }
    for capability, words in GPUS.items():
        row = rows.pop(f"sm{capability.replace('.', '')}")
        assert {word for word, column in names.items() if row.get(column)} == set(words) - {"bf16"}
    assert rows == {}


@pytest.mark.parametrize(
    ("version", "architecture", "flow", "words"),
    [
        ("1.3.0", "LlamaForCausalLM", "engine", "builds no engines"),
        ("1.2.1", "MllamaForConditionalGeneration", "engine", "docs/engines.md"),
    ],
)
def test_a_flow_that_does_not_exist_is_refused(
    tmp_path: Path, version: str, architecture: str, flow: str, words: str
) -> None:
    checkpoint = described(standin.checkpoint(tmp_path / "source", "bf16"), architecture=architecture)
    with standin.installed(standin.contract(), version, tmp_path / "site"):
        with pytest.raises(Refused, match=words):
            built(checkpoint, tmp_path / "made", with_flow(flow))
        assert built(checkpoint, tmp_path / "made").engine_version.endswith("pytorch flow")


def test_what_cannot_be_divided_is_refused_with_the_figures(sdk: None, tmp_path: Path) -> None:
    """4 query heads, 2 key/value heads, groups of 128 over inputs of 256 and 512, 2 layers."""
    fp8 = described(standin.checkpoint(tmp_path / "fp8", "fp8"), "fp8")
    awq = described(standin.checkpoint(tmp_path / "awq", "int4_awq"), "int4_awq")
    assert built(fp8, tmp_path / "a", with_flow("auto", tensor_parallel=4, pipeline_parallel=2))
    assert built(awq, tmp_path / "b", with_flow("auto", tensor_parallel=2))
    for checkpoint, parallel, words in (
        (fp8, {"tensor_parallel": 3}, "query heads 4 by 3"),
        (fp8, {"pipeline_parallel": 3}, "2 layers by 3"),
        (awq, {"tensor_parallel": 4}, "input of o_proj 256 by 512"),
    ):
        with pytest.raises(Refused, match=words):
            built(checkpoint, tmp_path / "c", with_flow("auto", **parallel))


def test_a_checkpoint_that_the_loader_would_misread_is_broken_before_anything_starts(sdk: None, tmp_path: Path) -> None:
    source = standin.checkpoint(tmp_path / "source", "fp8")
    (source / "hf_quant_config.json").unlink()
    with pytest.raises(Broken, match="taken for 16 bit"):
        built(described(source, "fp8"), tmp_path / "made")


def test_a_group_size_that_nvidia_does_not_test_is_noted_in_the_artifact(sdk: None, tmp_path: Path) -> None:
    for group, notes in ((128, 0), (64, 1)):
        source = standin.checkpoint(tmp_path / f"source{group}", "int4_awq", group=group)
        made = built(described(source, "int4_awq"), tmp_path / f"made{group}")
        assert len(made.notes) == notes
        assert all("group size 64" in note for note in made.notes)


def test_devices_and_artifacts_of_others_are_refused(sdk: None, tmp_path: Path) -> None:
    made = built(described(standin.checkpoint(tmp_path / "source", "bf16")), tmp_path / "made", with_flow("pytorch"))
    for config in (with_flow("pytorch", device="cpu"), with_flow("pytorch", device="cuda:1"), with_flow("engine")):
        with pytest.raises(Refused), engine("trtllm").open(made, config):
            pass
    for config in (with_flow("pytorch", max_length=1), with_flow("pytorch", max_batch=0)):
        with pytest.raises(BadInput), engine("trtllm").open(made, config):
            pass


def test_nothing_but_the_door_imports_the_sdk(tmp_path: Path) -> None:
    assert "tensorrt_llm" not in sys.modules
    with pytest.raises(QuantlabError, match="not installed"):
        TrtllmEngine().build(described(standin.checkpoint(tmp_path, "bf16")), tmp_path / "made", CONFIG, host())


def test_a_prompt_that_another_begins_with_is_not_asked_again() -> None:
    asked = [(1, 2), (1, 2, 3), (), (1,), (2,), (1, 2, 4, 5), (1, 2, 4), (1, 2)]
    found = longest_of(asked)
    for prompt, longer in zip(asked, found, strict=True):
        assert longer[: len(prompt)] == prompt
        assert longer in asked
    assert set(found) - {()} == {(1, 2, 3), (1, 2, 4, 5), (2,)}
    rng = np.random.default_rng(0)
    many = [tuple(int(t) for t in rng.integers(0, 3, rng.integers(1, 6))) for _ in range(300)]
    for prompt, longer in zip(many, longest_of(many), strict=True):
        assert longer[: len(prompt)] == prompt
        assert not any(other != longer and other[: len(longer)] == longer for other in many)


def test_groups_hold_what_they_may_and_lose_nothing() -> None:
    prompts = [(1,) * n for n in (3, 3, 5, 20, 1, 9)]
    made = list(groups(prompts, 10))
    assert list(itertools.chain(*made)) == prompts
    assert [len(group) for group in made] == [2, 1, 1, 2]
    assert list(groups([], 10)) == []
