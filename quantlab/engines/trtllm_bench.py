"""NVIDIA's own measuring tools for TensorRT-LLM: what to type, what to feed them, and what their report says.

`trtllm-bench throughput` keeps `batch` requests in flight and is the number that other people publish; `latency` sends
one after the other; `trtllm-serve` is the server that a load generator (AIPerf, GuideLLM) measures from outside.

A report can be fast for a wrong reason, so it is believed only after it was asked: is the quantization that was really
loaded the one we meant (a checkpoint without hf_quant_config.json is timed in 16 bit, and looks like a slow FP8), did
the lengths come out, was the concurrency reached. Keys were read in a version near 1.2.1: what is not needed may be
missing, what is needed and missing is Broken with its name.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantlab import disk
from quantlab.engines.trtllm_arguments import Flow, Limits, algorithm, cache_dtype
from quantlab.errors import Broken
from quantlab.records import Checkpoint, EngineConfig

REACHED = 0.9
"""Share of the asked concurrency that the average must reach: a run has a beginning and an end."""
PERCENTILES = ("p50", "p90", "p95", "p99")


@dataclass(frozen=True, slots=True)
class Load:
    """One cell of a grid, as a tool is asked for it."""

    isl: int
    osl: int
    batch: int
    """Requests in flight."""
    requests: int
    """In all; several times `batch`, so that beginning and end weigh little."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a tool opens."""

    name: str
    """As it stands in the report."""
    folder: Path
    """Unified checkpoint as TensorRT-LLM reads it: an artifact's path."""
    flow: Flow
    engine: Path | None = None
    """Folder of the TensorRT engine; flow "engine" only."""


@dataclass(frozen=True, slots=True)
class Report:
    """A report of trtllm-bench in plain numbers. Times in seconds, rates in tokens a second."""

    version: str
    backend: str
    quantization: str | None
    kv_cache: str
    requests: int
    concurrency: float
    """Average number of requests in flight."""
    input_tokens: float
    """Average of a request."""
    output_tokens: float
    seconds: float
    tokens_per_second: float
    """Output tokens of all sequences."""
    total_tokens_per_second: float | None = None
    """Input tokens counted, too."""
    tokens_per_second_per_gpu: float | None = None
    request_seconds: Mapping[str, float] | None = None
    """"p50" ... "p99", where the report has them."""
    ttft_seconds: Mapping[str, float] | None = None
    """Streaming only."""
    tpot_seconds: Mapping[str, float] | None = None
    """Streaming only."""


def write_dataset(path: Path, load: Load, vocabulary: Sequence[int], seed: int) -> None:
    """The file that --dataset wants: JSON lines of task_id, input_ids, output_tokens.

    Args:
        vocabulary: ordinary token ids to draw from. Every prompt is another one, so that no cache helps.
    """
    disk.write(path, "".join(f"{line}\n" for line in _lines(load, vocabulary, seed)).encode())


def _lines(load: Load, vocabulary: Sequence[int], seed: int) -> Iterator[str]:
    draw = random.Random(f"{seed}/{load.isl}/{load.osl}/{load.batch}")
    for number in range(load.requests):
        tokens = draw.choices(vocabulary, k=load.isl)
        yield json.dumps({"task_id": number, "input_ids": tokens, "output_tokens": load.osl})


def options(flow: Flow, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the command line has no flag for; goes into the --config file, which is YAML, and JSON is YAML."""
    cache: dict[str, Any] = {"enable_block_reuse": False}
    if flow == "engine":
        return {"kv_cache_config": cache, "extended_runtime_perf_knob_config": {"cuda_graph_mode": True}}
    return {
        "kv_cache_config": cache | {"dtype": cache_dtype(checkpoint)},
        "cuda_graph_config": {"enable_padding": True},
    }


def throughput_command(
    model: Model,
    load: Load,
    config: EngineConfig,
    room: Limits,
    files: Mapping[Literal["dataset", "options", "report"], Path],
) -> list[str]:
    """`trtllm-bench throughput` for one cell. Streaming, so that the report has the time to the first token."""
    return [
        *_bench(model, "throughput"),
        *("--dataset", str(files["dataset"]), "--config", str(files["options"])),
        *("--report_json", str(files["report"])),
        *("--num_requests", str(load.requests), "--concurrency", str(load.batch), "--warmup", str(load.batch)),
        *("--max_batch_size", str(max(room.batch, load.batch)), "--max_num_tokens", str(room.step)),
        *_longest(model, load, room),
        *("--tp", str(config.tensor_parallel), "--pp", str(config.pipeline_parallel)),
        *("--eos_id", "-1", "--scheduler_policy", "guaranteed_no_evict", "--streaming"),
        "--enable_chunked_context" if load.isl > room.step else "--disable_chunked_context",
    ]


def latency_command(
    model: Model,
    load: Load,
    config: EngineConfig,
    room: Limits,
    files: Mapping[Literal["dataset", "options", "report"], Path],
) -> list[str]:
    """`trtllm-bench latency`: one request after the other, always streaming."""
    return [
        *_bench(model, "latency"),
        *("--dataset", str(files["dataset"]), "--config", str(files["options"])),
        *("--report_json", str(files["report"])),
        *("--num_requests", str(load.requests), "--concurrency", "1", "--warmup", "2"),
        *_longest(model, load, room),
        *("--tp", str(config.tensor_parallel), "--pp", str(config.pipeline_parallel)),
    ]


def _longest(model: Model, load: Load, room: Limits) -> list[str]:
    """An engine has its own longest sequence, and trtllm-bench stops at once when it is told one ("max_seq_len is not a
    runtime parameter for C++ backend")."""
    if model.engine is not None:
        return []
    return ["--max_seq_len", str(max(room.sequence, load.isl + load.osl)), "--max_input_len", str(load.isl)]


def _bench(model: Model, what: str) -> list[str]:
    command = ["trtllm-bench", "--model", model.name, "--model_path", str(model.folder), what]
    if model.engine is not None:
        return [*command, "--engine_dir", str(model.engine), "--backend", "tensorrt"]
    return [*command, "--backend", "pytorch"]


def serve_command(
    model: Model, config: EngineConfig, room: Limits, options: Path, *, host: str = "127.0.0.1", port: int = 8000
) -> list[str]:
    """`trtllm-serve serve`: an OpenAI-compatible server on this machine alone, unless `host` says otherwise."""
    backend = "tensorrt" if model.engine is not None else "pytorch"
    return [
        *("trtllm-serve", "serve", str(model.engine or model.folder), "--tokenizer", str(model.folder)),
        *("--backend", backend, "--host", host, "--port", str(port), "--config", str(options)),
        *("--max_batch_size", str(room.batch), "--max_num_tokens", str(room.step), "--max_seq_len", str(room.sequence)),
        *("--tp_size", str(config.tensor_parallel), "--pp_size", str(config.pipeline_parallel)),
        *(["--enable_chunked_prefill"] if room.chunked else []),
    ]


def read_report(text: str | bytes, checkpoint: Checkpoint, flow: Flow) -> Report:
    """The report of a run on `checkpoint`.

    Raises:
        Broken: no JSON, a needed key is missing or no number, or something else was timed than was meant.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise _bad(f"is no JSON ({error})") from None
    engine, asked, speed = (_part(found, name) for name in ("engine", "request_info", "performance"))
    streamed = found.get("streaming_metrics") or {}
    report = Report(
        version=_text(engine, "version"),
        backend=_text(engine, "backend"),
        quantization=_algorithm(engine),
        kv_cache=_text(engine, "kv_cache_dtype"),
        requests=int(_number(asked, "num_requests")),
        concurrency=_number(asked, "avg_num_concurrent_requests"),
        input_tokens=_number(asked, "avg_input_length"),
        output_tokens=_number(asked, "avg_output_length"),
        seconds=_number(speed, "total_latency_ms") / 1000,
        tokens_per_second=_number(speed, "system_output_throughput_tok_s"),
        total_tokens_per_second=_maybe(speed, "system_total_throughput_tok_s"),
        tokens_per_second_per_gpu=_maybe(speed, "output_throughput_per_gpu_tok_s"),
        request_seconds=_percentiles(speed, "request_latency_percentiles_ms"),
        ttft_seconds=_percentiles(streamed, "ttft_percentiles"),
        tpot_seconds=_percentiles(streamed, "tpot_percentiles"),
    )
    _require_meant(report, checkpoint, flow)
    return report


def doubts(report: Report, load: Load) -> str:
    """Why the cell is not valid, or nothing."""
    if report.requests != load.requests:
        return f"{report.requests} requests of {load.requests} were answered"
    if round(report.input_tokens) != load.isl or round(report.output_tokens) != load.osl:
        return f"{report.input_tokens:g} in and {report.output_tokens:g} out where {load.isl} and {load.osl} were asked"
    if report.concurrency < REACHED * min(load.batch, load.requests):
        return f"{report.concurrency:.1f} requests in flight on average, {load.batch} were asked"
    if min(report.seconds, report.tokens_per_second) <= 0:
        return "a rate or a time is not positive"
    made = report.requests * report.output_tokens / report.seconds
    if abs(made / report.tokens_per_second - 1) > 0.05:
        return f"{report.tokens_per_second:.0f} tokens/s, but requests, lengths and time give {made:.0f}"
    return ""


def _require_meant(report: Report, checkpoint: Checkpoint, flow: Flow) -> None:
    meant, backend = algorithm(checkpoint), "TRT" if flow == "engine" else "PYTORCH"
    if report.quantization != meant:
        raise _bad(f"says {report.quantization or '16 bit'} was timed where {meant or '16 bit'} was meant")
    if report.backend.upper() not in (backend, "TENSORRT" if flow == "engine" else backend):
        raise _bad(f"says backend {report.backend or 'unknown'}, and the {flow} flow was meant")
    if checkpoint.kv_cache == "fp8" and "FP8" not in report.kv_cache.upper():
        raise _bad(f"says the KV cache is {report.kv_cache or 'unknown'} where FP8 was meant")


def _algorithm(engine: Mapping[str, Any]) -> str | None:
    """engine.quantization: "FP8", "QuantAlgo.FP8" or null."""
    if "quantization" not in engine:
        raise _bad("has no engine.quantization, so nobody knows what was timed")
    word = re.sub(r"^QuantAlgo\.", "", str(engine["quantization"])).upper()
    return None if word in ("NONE", "NO_QUANT", "") else word


def _part(found: Any, name: str) -> Mapping[str, Any]:
    part = found.get(name) if isinstance(found, dict) else None
    if not isinstance(part, dict):
        raise _bad(f"has no section {name}")
    return part


def _text(part: Mapping[str, Any], name: str) -> str:
    value = part.get(name)
    return value if isinstance(value, str) else ""


def _maybe(part: Mapping[str, Any], name: str) -> float | None:
    value = part.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _number(part: Mapping[str, Any], name: str) -> float:
    value = _maybe(part, name)
    if value is None:
        raise _bad(f"has no number {name}")
    return value


def _percentiles(part: Mapping[str, Any], name: str) -> dict[str, float] | None:
    """Milliseconds in the report, seconds here; those that are there."""
    block = part.get(name) if isinstance(part, dict) else None
    if not isinstance(block, dict):
        return None
    found = {each: _maybe(block, each) for each in PERCENTILES}
    return {each: value / 1000 for each, value in found.items() if value is not None} or None


def _bad(problem: str) -> Broken:
    return Broken(f"the report {problem}.", place="trtllm-bench", cure="Run it again with tensorrt-llm 1.2.1.")
