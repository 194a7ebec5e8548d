"""quantlab's throughput beside the engine's own bench, on the same checkpoint, cell and machine.

    python benchmarks/gpu/engine_bench.py CHECKPOINT --batch 1 --batch 64 [--isl 128 --osl 128]

The engine's own bench is `vllm bench latency`: the same static batch, timed from call to last token. Both sides get the
same context, token budget and memory, no prefix cache (vLLM's default would time repeated prompts it does not compute),
one process, and as many warm-up and counted runs. Printed: seconds a batch of each side, their spread and the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import checkpoint, opened

from quantlab.engines import engine
from quantlab.records import Artifact, EngineConfig, Grid

WARMUP, REPEATS = 3, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--format", default="bf16", choices=["bf16", "fp8"])
    parser.add_argument("--batch", type=int, action="append", required=True)
    parser.add_argument("--isl", type=int, default=128)
    parser.add_argument("--osl", type=int, default=128)
    words = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for batch in words.batch:
        theirs = bench(words.checkpoint, words.isl, words.osl, batch)
        print(json.dumps({"batch": batch, "side": "vllm bench latency", "seconds": theirs}), flush=True)
        if os.fork() == 0:  # each side gets the whole GPU, and gives it back by ending
            ours(words.checkpoint, words.format, words.isl, words.osl, batch, statistics.mean(theirs))
            sys.stdout.flush()
            os._exit(0)
        os.wait()


def bench(folder: Path, isl: int, osl: int, batch: int) -> list[float]:
    """Seconds of each counted batch of vLLM's own bench."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "latency.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "latency"),
                *("--model", str(folder), "--load-format", "safetensors", "--output-json", str(report)),
                *("--input-len", str(isl), "--output-len", str(osl), "--batch-size", str(batch)),
                *("--num-iters-warmup", str(WARMUP), "--num-iters", str(REPEATS)),
                *("--max-num-batched-tokens", "2048", "--no-enable-prefix-caching"),
                *("--max-model-len", "8192", "--gpu-memory-utilization", "0.85"),
            ],
            check=True,
            stdout=sys.stderr,
        )
        found: list[float] = json.loads(report.read_text())["latencies"]
        return found


def ours(folder: Path, format_: str, isl: int, osl: int, batch: int, theirs: float) -> None:
    """The same cell through quantlab's engine and throughput stage."""
    vllm = engine("vllm")
    made = checkpoint(folder, format_, "bench")
    artifact = Artifact(engine="vllm", path=str(folder), checkpoint=made, engine_version=vllm.version())
    grid = Grid(summary="", isl=(isl,), osl=(osl,), batch=(batch,), warmup=WARMUP, repeats=REPEATS)
    with opened(artifact, EngineConfig(max_length=8190)) as timed:
        _, record = timed(grid)
    cell = record.cells[0]
    assert cell.tokens_per_second is not None
    seconds = batch * osl / cell.tokens_per_second.value
    found = {"seconds": seconds, "variation": cell.variation, "of_theirs": round(seconds / theirs, 4)}
    print(json.dumps({"batch": batch, "side": "quantlab", **found}), flush=True)


if __name__ == "__main__":
    main()
