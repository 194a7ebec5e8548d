"""One cell of a grid through trtllm-bench: dataset and options written, the program run, its report read and doubted.

Batch 1 goes through `latency`, which sets TensorRT-LLM up for one request at a time; larger batches through
`throughput`, which keeps that many requests in flight. Both stream, so both tell the time to the first token. The
program loads the very folder that scores are taken from (the TensorRT engine in the engine flow), in a process of its
own, after the session is closed: two models do not fit on one GPU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from quantlab import disk
from quantlab.engines import Timed
from quantlab.engines.serving import LOCAL, Server
from quantlab.engines.trtllm_arguments import Flow
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
from quantlab.engines.trtllm_sdk import engine_folder, room_of
from quantlab.records import Artifact, EngineConfig

PROGRAM = "trtllm-bench"
WAVES = 8
"""Requests a sequence in flight: beginning and end of the run, where fewer are in flight, then weigh little."""
LEAST = 10
"""Requests of a cell at least, for a median."""


def program() -> str | None:
    """Beside this Python, where pip puts it; or on the PATH."""
    return _beside(PROGRAM)


def _beside(name: str) -> str | None:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)


def source(batch: int) -> str:
    """What times a cell of this batch."""
    if batch == 1:
        return f"{PROGRAM} latency, one request after the other"
    return f"{PROGRAM} throughput, in-flight batching"


def run(
    artifact: Artifact,
    config: EngineConfig,
    flow: Flow,
    cell: tuple[int, int, int],
    vocabulary: Sequence[int],
    folder: Path,
    seed: int,
) -> Timed | str:
    """As `Bencher.bench`. Raises: Broken: the report is not of what was meant."""
    isl, osl, batch = cell
    load = Load(isl=isl, osl=osl, batch=batch, requests=max(LEAST, WAVES * batch))
    room = room_of(artifact, config)
    if isl + osl > room.sequence:
        return f"{isl} + {osl} tokens do not fit into {room.sequence}"
    engine = engine_folder(artifact, config, room) if flow == "engine" else None
    model = Model(artifact.checkpoint.recipe, Path(artifact.path), flow, engine)
    files: dict[Literal["dataset", "options", "report"], Path] = {
        "dataset": folder / "dataset.jsonl",
        "options": folder / "options.yaml",
        "report": folder / "report.json",
    }
    write_dataset(files["dataset"], load, vocabulary, seed)
    disk.write(files["options"], json.dumps(options(flow, artifact.checkpoint)).encode())
    command = (latency_command if batch == 1 else throughput_command)(model, load, config, room, files)
    return _timed(command, load, artifact, flow, files["report"])


def server(artifact: Artifact, config: EngineConfig, flow: Flow, port: int, folder: Path) -> Server:
    """`trtllm-serve` on what the scores are taken from. 1.2 has no flag for the model's name: it is the folder's."""
    room = room_of(artifact, config)
    engine = engine_folder(artifact, config, room) if flow == "engine" else None
    model = Model(artifact.checkpoint.recipe, Path(artifact.path), flow, engine)
    file = folder / "serve.yaml"
    disk.write(file, json.dumps(options(flow, artifact.checkpoint)).encode())
    words = serve_command(model, config, room, file, host=LOCAL, port=port)
    return Server((_beside(words[0]) or words[0], *words[1:]), {}, (engine or model.folder).name)


def _timed(command: list[str], load: Load, artifact: Artifact, flow: Flow, report: Path) -> Timed | str:
    report.unlink(missing_ok=True)
    print(f"$ {' '.join(command)}", flush=True)
    # In our own process group: who ends the child ends this. Its words go to the log.
    done = subprocess.run([program() or PROGRAM, *command[1:]], check=False)
    if done.returncode != 0 or not report.is_file():
        return f"{PROGRAM} ended with exit code {done.returncode} and {'a' if report.is_file() else 'no'} report"
    read = read_report(report.read_bytes(), artifact.checkpoint, flow)
    return doubts(read, load) or Timed(
        read.tokens_per_second,
        _median(read.ttft_seconds),
        _median(read.tpot_seconds),
        ttft=_three(read.ttft_seconds),
        tpot=_three(read.tpot_seconds),
        latency=_three(read.request_seconds),
        requests=read.requests,
    )


def _median(found: Mapping[str, float] | None) -> float | None:
    return found.get("p50") if found else None


def _three(found: Mapping[str, float] | None) -> tuple[float, float, float] | None:
    """The percentiles of a record, where the report has all of them."""
    if found is None or not {"p50", "p90", "p99"} <= found.keys():
        return None
    return found["p50"], found["p90"], found["p99"]
