#!/usr/bin/env python3
"""A stand-in for trtllm-bench: it knows the contract's flags and nothing else, and stops where the real one stops.

Its report has the contract's keys. $BENCH_SAYS, a JSON object of "section.key" -> value, changes what it says.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

SURFACE = json.loads((Path(__file__).resolve().parent / "contracts" / "trtllm_1_2_1.json").read_text())
SWITCHES = ("--streaming", "--enable_chunked_context", "--disable_chunked_context")


def parsed(words: list[str], known: list[str]) -> dict[str, str]:
    names, found = {name for row in known for name in row.split("/")}, {}
    while words:
        name = words.pop(0)
        if name not in names:
            sys.exit(f"Error: No such option: {name}")
        found[name] = "yes" if name in SWITCHES else words.pop(0)
    return found


def main(words: list[str]) -> None:
    at = next(place for place, word in enumerate(words) if word in ("throughput", "latency"))
    part, flags = words[at], SURFACE["bench_flags"]
    top, given = parsed(words[:at], flags["global"]), parsed(words[at + 1 :], flags[part])
    tensorrt = given["--backend"] == "tensorrt"
    assert given["--backend"] in SURFACE["choices"]["throughput --backend"]
    assert not (tensorrt and "--max_seq_len" in given), "max_seq_len is not a runtime parameter for C++ backend"
    assert (Path(given["--engine_dir"]) / "rank0.engine").is_file() if tensorrt else Path(top["--model_path"]).is_dir()
    json.loads(Path(given["--config"]).read_text())
    asked = [json.loads(line) for line in Path(given["--dataset"]).read_text().splitlines()]
    assert all(set(line) <= set(SURFACE["dataset_fields"]) for line in asked)
    with Path(os.environ["BENCH_LOG"]).open("a") as log:
        print(json.dumps([part, given, asked[0]["input_ids"]]), file=log)
    Path(given["--report_json"]).write_text(json.dumps(report(part, given, asked, tensorrt)))


def report(part: str, given: dict[str, str], asked: list[dict[str, list[int]]], tensorrt: bool) -> dict[str, object]:
    """Each sequence makes 50 tokens a second."""
    osl, busy = int(asked[0]["output_tokens"]), int(given["--concurrency"])  # type: ignore[call-overload]
    rate = 50.0 * busy
    times = dict.fromkeys(SURFACE["percentiles"], 20.0)
    made: dict[str, dict[str, object]] = {
        "engine": {"version": "1.2.1", "backend": "TRT" if tensorrt else "Pytorch", "quantization": "FP8",
                   "kv_cache_dtype": "auto"},
        "request_info": {"num_requests": len(asked), "avg_num_concurrent_requests": float(busy),
                         "avg_input_length": float(len(asked[0]["input_ids"])), "avg_output_length": float(osl)},
        "performance": {"total_latency_ms": 1000 * len(asked) * osl / rate, "system_output_throughput_tok_s": rate},
    }  # fmt: skip
    if part == "latency" or "--streaming" in given:
        made["streaming_metrics"] = {"ttft_percentiles": times, "tpot_percentiles": times}
    for place, value in json.loads(os.environ.get("BENCH_SAYS", "{}")).items():
        section, _, key = place.partition(".")
        made[section][key] = value
    if "BENCH_DIES" in os.environ:
        sys.exit("CUDA out of memory")
    return made  # type: ignore[return-value]


if __name__ == "__main__":
    main(sys.argv[1:])
