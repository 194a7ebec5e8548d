"""Does a checkpoint open in vLLM's own server as quantlab starts it, and does it answer what quantlab scored?

    python benchmarks/gpu/served.py CHECKPOINT [--concurrency 1 --concurrency 16]

The case in question is an FP8 export with a tied output head, which ends vLLM 0.24 while it loads; quantlab lays a mend
on the server's path (quantlab/engines/vllm_ties.py). The server is started by what `served: true` uses, asked for the
greedy tokens of one prompt, and loaded by vLLM's own `bench serve`. Then quantlab's session, with the same arguments,
says what it answers, and how likely it holds the server's tokens. Server and client are on a leash: they end when this
ends, however it ends. Printed: one JSON object with what happened, errors too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from decode_profile import described

from quantlab import host, leash
from quantlab.engines import GenerateRequest, ScoreRequest, engine
from quantlab.engines.serving import Server, Serving
from quantlab.measure.server import NotServed, require_healthy, serving
from quantlab.records import Artifact, EngineConfig

PROMPT = tuple(3 + (7 * place) % 250 for place in range(64))
TOKENS, READY_SECONDS, LOAD_SECONDS = 32, 420.0, 120.0
MARK = "QUANTLAB_SERVED"
"""A variable by which what the server started is known again."""
CLIENT = (
    "from vllm.benchmarks.serve import add_cli_args, main\n"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
    "parser = FlexibleArgumentParser()\nadd_cli_args(parser)\nmain(parser.parse_args())"
)
"""`vllm bench serve` without the program vllm, which wants to know the version of the package "vllm" first."""
KEPT = (
    "completed",
    "failed",
    "duration",
    "total_input_tokens",
    "total_output_tokens",
    "output_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "median_tpot_ms",
    "p99_tpot_ms",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--concurrency", type=int, action="append")
    parser.add_argument("--max-length", type=int, default=8190)
    parser.add_argument("--log", type=Path, help="what server and client say")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = words.log or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        record = served(words, folder.absolute())
    print(json.dumps(record, indent=1))
    sys.exit("error" in record or any("error" in load for load in record["loads"]))


def served(words: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Server, then session; two of them do not fit on one GPU."""
    os.environ[MARK] = str(folder)
    config = EngineConfig(max_length=words.max_length)
    vllm = engine("vllm")
    artifact = vllm.build(described(words.checkpoint), folder / "built", config, host.describe())
    assert isinstance(vllm, Serving)
    record: dict[str, Any] = {"checkpoint": words.checkpoint.name, "format": artifact.checkpoint.format}
    record |= {"engine": artifact.engine_version, "tied_head_mended": False}
    make = partial(started, vllm, artifact, config, folder, record)
    began = time.monotonic()
    try:
        with serving(make, folder / "server.txt", READY_SECONDS) as (url, model):
            record["ready_seconds"] = round(time.monotonic() - began, 1)
            theirs, likely = asked(url, model)
            loads = words.concurrency or (1, 16)
            record["loads"] = [loaded(url, model, words.checkpoint, number, folder) for number in loads]
            require_healthy(url, folder / "server.txt")
            began = time.monotonic()
    except (NotServed, OSError) as error:
        return record | {"error": f"{type(error).__name__}: {error}", "server_said": errors(folder / "server.txt")}
    record["stopped_seconds"] = round(time.monotonic() - began, 1)
    record["left_behind"] = alive(folder)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # the session gives the GPU back by ending
        ours, scored = pool.submit(session, artifact, config, theirs).result()
    return record | compared(ours, theirs, likely, scored)


def errors(log: Path) -> list[str]:
    """The first lines of a log that name an error: vLLM's last one only says that there is one above."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return [line[-300:] for line in lines if "Error" in line][:6]


def started(
    vllm: Serving, artifact: Artifact, config: EngineConfig, folder: Path, record: dict[str, Any], port: int
) -> Server:
    """The server of a session's artifact, and a note of how it is started."""
    found = vllm.server(artifact, config, name="quantlab-served", port=port, folder=folder)
    record["command"] = ["python", *found.command[1:]]
    record["tied_head_mended"] = "PYTHONPATH" in found.environment
    return found


def session(artifact: Artifact, config: EngineConfig, theirs: tuple[int, ...]) -> tuple[tuple[int, ...], list[float]]:
    """Greedy tokens of quantlab's own session, and its log-probabilities of the server's."""
    os.dup2(2, 1)  # vLLM's log has no place in our JSON
    with engine("vllm").open(artifact, config) as opened:
        request = GenerateRequest(prompt=PROMPT, max_tokens=TOKENS, ignore_eos=True)
        scores = opened.logprobs([ScoreRequest(PROMPT, theirs)])
        return opened.generate([request])[0].tokens, scores[0].logprobs.tolist()


def asked(url: str, model: str) -> tuple[tuple[int, ...], list[float]]:
    """One /v1/completions: greedy tokens of the server and their log-probabilities."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "logprobs": 1}
    body |= {"ignore_eos": True, "return_token_ids": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=LOAD_SECONDS) as answer:
        choice = json.loads(answer.read())["choices"][0]
    return tuple(choice["token_ids"]), [float(each) for each in choice["logprobs"]["token_logprobs"]]


def compared(
    ours: tuple[int, ...], theirs: tuple[int, ...], likely: list[float], scored: list[float]
) -> dict[str, Any]:
    """Session and server: the same tokens, and by how much their log-probabilities of the server's tokens differ.

    The session scores all tokens in one pass and the server makes one after another: other kernels, so other rounding.
    """
    same = next((place for place, pair in enumerate(zip(ours, theirs, strict=True)) if len(set(pair)) > 1), len(theirs))
    furthest = max(abs(left - right) for left, right in zip(likely, scored, strict=True))
    return {"tokens": TOKENS, "tokens_equal": ours == theirs, "first_difference": same} | {
        "logprobs_differ_at_most": round(furthest, 5),
        "mean_logprob": round(sum(likely) / len(likely), 4),
    }


def loaded(url: str, model: str, tokenizer: Path, number: int, folder: Path) -> dict[str, Any]:
    """vLLM's own client with `number` requests in flight, four rounds of them."""
    out, log = f"load-{number}.json", folder / f"load-{number}.txt"
    command = [
        *(sys.executable, "-c", CLIENT, "--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions"),
        *("--model", model, "--tokenizer", str(tokenizer.absolute()), "--dataset-name", "random", "--ignore-eos"),
        *("--random-input-len", "128", "--random-output-len", "128", "--num-prompts", str(4 * number)),
        *("--max-concurrency", str(number), "--temperature", "0", "--disable-tqdm"),
        *("--save-result", "--result-dir", str(folder), "--result-filename", out),
    ]
    with log.open("wb") as file:
        process = leash.start(command, dict(os.environ), file)
        try:
            code = process.wait(timeout=LOAD_SECONDS)
        except subprocess.TimeoutExpired:
            return {"concurrency": number, "error": f"not done in {LOAD_SECONDS:.0f} s"}
        finally:
            leash.stop(process)
    if code:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        return {"concurrency": number, "error": f"exit code {code}: {''.join(last)[-300:]}"}
    found = json.loads((folder / out).read_text())
    return {"concurrency": number} | {key: found[key] for key in KEPT if key in found}


def alive(folder: Path) -> list[str]:
    """Commands of processes that server or client left behind: none, when they ended as they should."""
    left = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={folder}".encode() in file.read_bytes().split(b"\0"):
                left.append((file.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200])
        except OSError:  # ended in between, or somebody else's
            continue
    return left


if __name__ == "__main__":
    main()
