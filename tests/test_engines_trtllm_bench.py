"""trtllm-bench and trtllm-serve: the words on the command line, the dataset, and what a report is believed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

from quantlab.engines.trtllm_arguments import Flow, Limits
from quantlab.engines.trtllm_bench import (
    Load,
    Model,
    doubts,
    latency_command,
    options,
    read_report,
    serve_command,
    throughput_command,
    write_dataset,
)
from quantlab.errors import Broken
from quantlab.records import Checkpoint, EngineConfig
from tests.trtllm_standin import contract

FP8 = Checkpoint(path="x", digest="0", recipe="fp8", format="fp8", architecture="LlamaForCausalLM", kv_cache="fp8")
AWQ = Checkpoint(path="x", digest="0", recipe="a", format="int4_awq", architecture="LlamaForCausalLM")
BF16 = Checkpoint(path="x", digest="0", recipe="b", format="bf16", architecture="LlamaForCausalLM")
LOAD = Load(isl=100, osl=20, batch=4, requests=40)
ROOM = Limits(batch=8, sequence=4096, step=8192)
FILES: dict[Literal["dataset", "options", "report"], Path] = {
    "dataset": Path("d.jsonl"),
    "options": Path("o.yaml"),
    "report": Path("r.json"),
}
TORCH, ENGINE = Model("llama", Path("ckpt"), "pytorch"), Model("llama", Path("ckpt"), "engine", Path("ckpt/engine-0"))
CONFIG = EngineConfig(tensor_parallel=2)


def commands() -> list[tuple[str, list[str]]]:
    """Part of the contract and command."""
    made = []
    for model in (TORCH, ENGINE):
        for load in (LOAD, Load(isl=9000, osl=2, batch=16, requests=64)):
            made.append(("throughput", throughput_command(model, load, CONFIG, ROOM, FILES)))
            made.append(("latency", latency_command(model, load, CONFIG, ROOM, FILES)))
        for room in (ROOM, Limits(batch=1, sequence=131072, step=8192)):
            made.append(("serve", serve_command(model, CONFIG, room, Path("o.yaml"))))
    return made


def flags(words: list[str]) -> list[str]:
    return [word for word in words if word.startswith("--")]


def known(surface: dict[str, Any], part: str) -> set[str]:
    rows = surface["serve_flags"] if part == "serve" else surface["bench_flags"][part]
    return {word for row in rows for word in row.split("/")}


def violations(surface: dict[str, Any]) -> set[str]:
    found = set()
    for part, command in commands():
        before, after = (command[: command.index(part)], command[command.index(part) :])
        found |= {f"{part} {flag}" for flag in flags(after) if flag not in known(surface, part)}
        found |= {f"global {flag}" for flag in flags(before) if flag not in known(surface, "global")}
    return found


def test_every_flag_is_known() -> None:
    assert violations(contract()) == set()
    for part, command in commands():
        for flag in ("--backend", "--scheduler_policy"):
            if flag in command and f"{part} {flag}" in contract()["choices"]:
                assert command[command.index(flag) + 1] in contract()["choices"][f"{part} {flag}"]


def test_a_renamed_flag_is_noticed() -> None:
    seen = {(part, flag) for part, command in commands() for flag in flags(command[command.index(part) :])}
    seen |= {("global", "--model"), ("global", "--model_path")}
    assert len(seen) > 35
    for part, flag in sorted(seen):
        surface = copy.deepcopy(contract())
        rows = surface["serve_flags"] if part == "serve" else surface["bench_flags"][part]
        place = next(at for at, row in enumerate(rows) if flag in row.split("/"))
        rows[place] = "/".join(f"{word}_renamed" if word == flag else word for word in rows[place].split("/"))
        assert violations(surface) == {f"{part} {flag}"}


def test_values_follow_the_cell() -> None:
    words = throughput_command(TORCH, Load(isl=9000, osl=2, batch=16, requests=64), CONFIG, ROOM, FILES)
    given = dict(pairwise(words))
    assert given["--concurrency"] == "16"
    assert given["--max_batch_size"] == "16"
    assert given["--max_seq_len"] == "9002"
    assert given["--max_input_len"] == "9000"
    assert given["--tp"] == "2"
    assert "--enable_chunked_context" in words
    words = throughput_command(ENGINE, LOAD, CONFIG, ROOM, FILES)
    given = dict(pairwise(words))
    assert (given["--engine_dir"], given["--backend"]) == ("ckpt/engine-0", "tensorrt")
    assert "--disable_chunked_context" in words
    assert serve_command(TORCH, CONFIG, ROOM, Path("o"))[-1] != "--enable_chunked_prefill"


@pytest.mark.parametrize("command", [throughput_command, latency_command])
def test_an_engine_is_not_told_its_longest_sequence(command: Callable[..., list[str]]) -> None:
    """trtllm-bench asserts that max_seq_len is None on the backend "tensorrt" (bench/benchmark/*.py)."""
    assert "--max_seq_len" not in command(ENGINE, LOAD, CONFIG, ROOM, FILES)
    assert "--max_seq_len" in command(TORCH, LOAD, CONFIG, ROOM, FILES)


def test_the_server_listens_on_this_machine_alone() -> None:
    words = serve_command(TORCH, CONFIG, ROOM, Path("o.yaml"))
    assert words[words.index("--host") + 1] == "127.0.0.1"


def test_options_switch_block_reuse_off_and_name_the_cache() -> None:
    flows: tuple[Flow, Flow] = ("engine", "pytorch")
    for flow in flows:
        assert options(flow, FP8)["kv_cache_config"]["enable_block_reuse"] is False
    assert options("pytorch", FP8)["kv_cache_config"]["dtype"] == "fp8"
    assert "dtype" not in options("engine", FP8)["kv_cache_config"]


def test_the_dataset_has_the_fields_lengths_and_tokens_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_dataset(tmp_path / name, LOAD, range(10, 500), seed=3)
    write_dataset(tmp_path / "c", LOAD, range(10, 500), seed=4)
    lines = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert len(lines) == LOAD.requests
    assert [line["task_id"] for line in lines] == list(range(LOAD.requests))
    for line in lines:
        assert set(line) <= set(contract()["dataset_fields"])
        assert len(line["input_ids"]) == LOAD.isl
        assert line["output_tokens"] == LOAD.osl
        assert all(10 <= token < 500 for token in line["input_ids"])
    assert len({tuple(line["input_ids"]) for line in lines}) == LOAD.requests
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def report() -> dict[str, Any]:
    """As one of 1.2.1 would look: 40 requests of 100 + 20 tokens in 2 s."""
    times = dict.fromkeys(contract()["percentiles"], 50.0)
    return {
        "engine": {
            "model": "llama",
            "version": "1.2.1",
            "backend": "Pytorch",
            "dtype": "bfloat16",
            "kv_cache_dtype": "FP8",
            "quantization": "FP8",
        },
        "machine": None,
        "world_info": {"tp_size": 2},
        "request_info": {
            "num_requests": 40,
            "avg_num_concurrent_requests": 3.9,
            "avg_input_length": 100.0,
            "avg_output_length": 20.0,
        },
        "performance": {
            "total_latency_ms": 2000.0,
            "system_output_throughput_tok_s": 400.0,
            "system_total_throughput_tok_s": 2400.0,
            "output_throughput_per_gpu_tok_s": 200.0,
            "request_latency_percentiles_ms": times,
        },
        "streaming_metrics": {"ttft_percentiles": times | {"p99": 75.0}, "tpot_percentiles": times},
        "dataset": {"num_requests": 40},
    }


def test_the_hand_made_report_has_the_contracts_keys() -> None:
    for section, keys in report().items():
        assert section in contract()["report"]
        assert set(keys or ()) <= set(contract()["report"][section])


def test_a_report_becomes_plain_numbers() -> None:
    read = read_report(json.dumps(report()), FP8, "pytorch")
    assert (read.seconds, read.tokens_per_second, read.tokens_per_second_per_gpu) == (2.0, 400.0, 200.0)
    assert read.ttft_seconds == {"p50": 0.05, "p90": 0.05, "p95": 0.05, "p99": 0.075}
    assert (read.quantization, read.version, read.concurrency) == ("FP8", "1.2.1", 3.9)
    assert doubts(read, LOAD) == ""


NEEDED = {
    "engine": ("backend", "quantization", "kv_cache_dtype"),
    "request_info": ("num_requests", "avg_num_concurrent_requests", "avg_input_length", "avg_output_length"),
    "performance": ("total_latency_ms", "system_output_throughput_tok_s"),
}
OPTIONAL = {
    "performance": {
        "system_total_throughput_tok_s": "total_tokens_per_second",
        "output_throughput_per_gpu_tok_s": "tokens_per_second_per_gpu",
        "request_latency_percentiles_ms": "request_seconds",
    },
    "streaming_metrics": {"ttft_percentiles": "ttft_seconds", "tpot_percentiles": "tpot_seconds"},
}


@pytest.mark.parametrize(("part", "key"), [(part, key) for part, keys in NEEDED.items() for key in keys])
@pytest.mark.parametrize("how", ["missing", "renamed", "text", "null"])
def test_a_needed_key_that_is_missing_or_renamed_is_broken(part: str, key: str, how: str) -> None:
    found = report()
    value = found[part].pop(key)
    if how == "renamed":
        found[part][f"{key}_renamed"] = value
    elif how != "missing":
        found[part][key] = None if how == "null" else "plenty" if part != "engine" else ["FP8"]
    with pytest.raises(Broken):
        read_report(json.dumps(found), FP8, "pytorch")


@pytest.mark.parametrize("part", NEEDED)
def test_a_section_that_is_missing_is_named(part: str) -> None:
    found = report()
    found.pop(part)
    with pytest.raises(Broken, match=part):
        read_report(json.dumps(found), FP8, "pytorch")


@pytest.mark.parametrize(("part", "key"), [(part, key) for part, keys in OPTIONAL.items() for key in keys])
def test_what_is_not_needed_may_be_missing(part: str, key: str) -> None:
    found = report()
    found[part].pop(key)
    found[part]["a_new_key"] = 1
    read = read_report(json.dumps(found), FP8, "pytorch")
    assert getattr(read, OPTIONAL[part][key]) is None
    found.pop("streaming_metrics")
    assert read_report(json.dumps(found), FP8, "pytorch").ttft_seconds is None


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"engine": 3}'])
def test_rubbish_is_broken(text: str) -> None:
    with pytest.raises(Broken):
        read_report(text, FP8, "pytorch")


@pytest.mark.parametrize(
    ("checkpoint", "flow", "said"),
    [
        (FP8, "pytorch", {"quantization": None}),
        (FP8, "pytorch", {"quantization": "NO_QUANT"}),
        (FP8, "pytorch", {"quantization": "W4A16_AWQ"}),
        (AWQ, "pytorch", {}),
        (BF16, "pytorch", {}),
        (FP8, "pytorch", {"backend": "TRT"}),
        (FP8, "engine", {}),
        (FP8, "pytorch", {"kv_cache_dtype": "bfloat16"}),
    ],
)
def test_another_precision_or_backend_than_was_meant_is_broken(
    checkpoint: Checkpoint, flow: Flow, said: dict[str, Any]
) -> None:
    found = report()
    found["engine"] |= said
    with pytest.raises(Broken, match="meant"):
        read_report(json.dumps(found), checkpoint, flow)


@pytest.mark.parametrize(
    ("checkpoint", "word"),
    [(FP8, "QuantAlgo.FP8"), (AWQ, "W4A16_AWQ"), (BF16, None), (BF16, "None"), (BF16, "NO_QUANT")],
)
def test_spellings_of_the_right_precision(checkpoint: Checkpoint, word: str | None) -> None:
    found = report()
    found["engine"]["quantization"] = word
    assert read_report(json.dumps(found), checkpoint, "pytorch")


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "39 requests": lambda r: r["request_info"].update(num_requests=39),
    "in and": lambda r: r["request_info"].update(avg_output_length=12.5),
    "in flight": lambda r: r["request_info"].update(avg_num_concurrent_requests=2.0),
    "not positive": lambda r: r["performance"].update(total_latency_ms=0),
    "time give": lambda r: r["performance"].update(system_output_throughput_tok_s=800.0),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_a_cell_that_is_not_what_was_asked_is_doubted_with_the_reason(reason: str) -> None:
    found = report()
    CHANGES[reason](found)
    assert reason in doubts(read_report(json.dumps(found), FP8, "pytorch"), LOAD)
