"""Everything that engine "trtllm" can say to TensorRT-LLM is in the contract, and a renamed field is noticed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from quantlab.engines import GenerateRequest
from quantlab.engines.trtllm_arguments import (
    ALGORITHMS,
    Choice,
    Limits,
    Make,
    build_arguments,
    generating_arguments,
    limits,
    open_engine_arguments,
    open_pytorch_arguments,
    parse_version,
    scoring_arguments,
    sized,
)
from quantlab.engines.trtllm_bench import options
from quantlab.errors import BadInput, Refused
from quantlab.formats import lint
from quantlab.records import Checkpoint, EngineConfig, Grid
from tests import trtllm_standin as standin

ROOT = Path(__file__).resolve().parent.parent
FP8 = Checkpoint(path="x", digest="0", recipe="fp8", format="fp8", architecture="LlamaForCausalLM", kv_cache="fp8")
BF16 = Checkpoint(path="x", digest="0", recipe="bf16", format="bf16", architecture="LlamaForCausalLM")
GRID = Grid(summary="", isl=(100, 2000), osl=(10, 4000), batch=(1, 8))
OPTION_CLASSES = {
    "kv_cache_config": "KvCacheConfig",
    "cuda_graph_config": "CudaGraphConfig",
    "extended_runtime_perf_knob_config": "ExtendedRuntimePerfKnobConfig",
}
"""Field of the LLM -> class of its value, for the options file, where a class is a plain object."""


def said() -> list[tuple[str, dict[str, Any]]]:
    """Class and keywords of every call that can be made."""
    calls: list[tuple[str, dict[str, Any]]] = []
    for checkpoint, batch, length in product((FP8, BF16), (None, 8), (None, 4096)):
        config = EngineConfig(max_batch=batch, max_length=length, tensor_parallel=2, pipeline_parallel=2)
        room = limits(config, 131072)
        calls.append(("_tensorrt_engine.LLM", build_arguments("folder", config, room)))
        calls.append(("_tensorrt_engine.LLM", open_engine_arguments("engine", "folder", config, room)))
        calls.append(("LLM", open_pytorch_arguments("folder", checkpoint, config, room)))
        calls.append(("LLM", _typed(options("pytorch", checkpoint))))
        calls.append(("_tensorrt_engine.LLM", _typed(options("engine", checkpoint))))
    for ends in ((), (1,), (1, 2, 3)):
        calls.append(("SamplingParams", scoring_arguments(ends)))
        for stop, ignore in product(((), ("a", "b")), (True, False)):
            request = GenerateRequest((1, 2), 5, stop=stop, ignore_eos=ignore)
            calls.append(("SamplingParams", generating_arguments(request, ends)))
    return calls


def _typed(words: dict[str, Any]) -> dict[str, Any]:
    return {name: Make(OPTION_CLASSES[name], value) for name, value in words.items()}


def pairs(name: str, keywords: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Class, field and value of a call and of all that is made inside it."""
    for field, value in keywords.items():
        yield name, field, value
        if isinstance(value, Make):
            yield from pairs(value.name, value.keywords)


def violations(surface: dict[str, Any]) -> set[str]:
    """What we say that this surface does not know."""
    found = set()
    for call, keywords in said():
        for name, field, value in pairs(call, keywords):
            if field not in surface["fields"].get(name, ()):
                found.add(f"{name}.{field}")
            if isinstance(value, Make) and value.name not in surface["llmapi"]:
                found.add(value.name)
            if isinstance(value, Choice) and value.member not in surface["choices"].get(value.name, ()):
                found.add(f"{value.name}.{value.member}")
            if value not in surface["choices"].get(f"{name}.{field}", [value]):
                found.add(f"{name}.{field}={value}")
            if call.startswith("_tensorrt") and name == "KvCacheConfig" and field in surface["pytorch_only_kv_fields"]:
                found.add(f"{name}.{field} in the engine flow")
    return found


def used() -> list[tuple[str, str]]:
    return sorted({(name, field) for call, keywords in said() for name, field, _ in pairs(call, keywords)})


def renamed(words: list[str], word: str) -> list[str]:
    assert word in words
    return [f"{each}_renamed" if each == word else each for each in words]


def test_all_that_is_said_is_known() -> None:
    assert violations(standin.contract()) == set()


@pytest.mark.parametrize(("name", "field"), used(), ids=lambda word: str(word))
def test_a_renamed_field_is_noticed(name: str, field: str, tmp_path: Path) -> None:
    """By the check above, and by the stand-in in which the worker runs."""
    surface = copy.deepcopy(standin.contract())
    surface["fields"][name] = renamed(surface["fields"][name], field)
    assert violations(surface) == {f"{name}.{field}"}
    with standin.installed(surface, "1.2.1", tmp_path), pytest.raises(ValueError, match=f"{name} has no field {field}"):
        make_all()


def make_all() -> None:
    for call, keywords in said():
        make(call, keywords)


def make(name: str, keywords: dict[str, Any]) -> None:
    """What is inside is made for real; the model itself would want files, so its own names are only compared."""
    from quantlab.engines.trtllm_sdk import made

    made(keywords)
    if name == "SamplingParams":
        made(Make(name, keywords))
        return
    import tensorrt_llm
    from tensorrt_llm import _tensorrt_engine

    known = (tensorrt_llm if name == "LLM" else _tensorrt_engine).LLM.surface["fields"][name]
    for field in keywords:
        if field not in known:
            raise ValueError(f"{name} has no field {field}")


@pytest.mark.parametrize("word", ["BuildConfig", "KvCacheConfig", "CudaGraphConfig", "SchedulerConfig"])
def test_a_renamed_class_is_noticed(word: str) -> None:
    surface = copy.deepcopy(standin.contract())
    surface["llmapi"] = renamed(surface["llmapi"], word)
    assert word in violations(surface)


@pytest.mark.parametrize(
    ("part", "word"), [("CapacitySchedulerPolicy", "GUARANTEED_NO_EVICT"), ("KvCacheConfig.dtype", "fp8")]
)
def test_a_renamed_choice_is_noticed(part: str, word: str) -> None:
    surface = copy.deepcopy(standin.contract())
    surface["choices"][part] = renamed(surface["choices"][part], word)
    assert len(violations(surface)) == 1


def test_algorithms_and_quantization_words_are_known() -> None:
    surface = standin.contract()
    assert set(ALGORITHMS.values()) | set(lint.ALGORITHMS) <= set(surface["quant_algos"])
    assert {cache for cache in lint.CACHES if cache} <= set(surface["kv_cache_quant_algos"])
    assert set(surface["hf_quant_config"]) == {"quant_algo", "kv_cache_quant_algo", "group_size", "exclude_modules"}


def test_block_reuse_is_always_off_and_scoring_asks_for_logits() -> None:
    for call, keywords in said():
        if call != "SamplingParams":
            assert keywords["kv_cache_config"].keywords["enable_block_reuse"] is False
    assert scoring_arguments((1,))["return_context_logits"] is True
    built = build_arguments("folder", EngineConfig(), limits(EngineConfig(), 4096))["build_config"].keywords
    assert built["gather_context_logits"] is True
    assert (built["max_input_len"], built["max_seq_len"], built["max_num_tokens"]) == (4095, 4096, 8192)


def test_chunks_are_asked_for_exactly_where_a_prompt_may_not_fit() -> None:
    for length, step, chunked in ((8193, 8192, False), (8194, 8192, True), (131072, 8192, True), (100, 8192, False)):
        room = limits(EngineConfig(max_length=length, token_budget=step), 131072)
        assert room.chunked is chunked
        arguments = open_pytorch_arguments("folder", BF16, EngineConfig(), room)
        assert arguments["enable_chunked_prefill"] is chunked


def test_the_cache_is_fp8_only_where_the_checkpoint_says_so() -> None:
    room = Limits(batch=1, sequence=128, step=128)
    dtypes = [
        open_pytorch_arguments("folder", each, EngineConfig(), room)["kv_cache_config"].keywords["dtype"]
        for each in (FP8, BF16)
    ]
    assert dtypes == ["fp8", "auto"]


def test_a_grid_sets_batch_and_length() -> None:
    made = sized(EngineConfig(max_length=100), GRID)
    assert (made.max_batch, made.max_length) == (8, 6000)
    assert sized(EngineConfig(), GRID).max_length is None, "the model's own is never less"
    assert sized(EngineConfig(max_batch=2), GRID).max_batch == 2, "a person's word stands"


def test_lengths_are_the_models_at_most() -> None:
    assert limits(EngineConfig(max_length=9999), 4096).sequence == 4096
    assert limits(EngineConfig(), 131072) == Limits(batch=2048, sequence=131072, step=8192)
    for bad in (EngineConfig(max_length=1), EngineConfig(max_batch=0), EngineConfig(token_budget=0)):
        with pytest.raises(BadInput):
            limits(bad, 4096)


def test_versions() -> None:
    assert parse_version("1.2.1") == (1, 2)
    assert parse_version("1.3.0rc11") == (1, 3)
    assert parse_version("10.0") == (10, 0)
    with pytest.raises(Refused):
        parse_version("main")


def test_the_environment_file_pins_what_the_contract_says() -> None:
    lines = (ROOT / "environments" / "trtllm.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    surface = standin.contract()
    assert pins["tensorrt-llm"] == surface["version"]
    assert {name: pins[name] for name in ("torch", "transformers", "datasets")} == {
        name: surface["pins"][name] for name in ("torch", "transformers", "datasets")
    }
