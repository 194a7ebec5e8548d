"""Where the time of a decode step goes, kernel by kernel: vLLM through quantlab's own session, under torch's profiler.

    python benchmarks/gpu/decode_profile.py OUT.json CHECKPOINT ... [--batch 1 --isl 128 --osl 64]    traces in OUT/

A checkpoint is a 16-bit folder, an export of `quantlab calibrate`, or what somebody else made; INT4 of ModelOpt is
written in vLLM's layout first. Each is opened in a process of its own. The same steps are timed without the profiler
first, since that slows the gaps between kernels: the difference is said. Only steady steps count: neither the prefill
nor the first four with the profiler on. The engine runs in this process (a session sees to that), so torch's profiler
around its steps sees everything, kernels inside CUDA graphs too; vLLM's own ProfilerConfig would add stacks and a table
to each step and keep its file names to itself. Where no kernel of a graph was traced, it is tried again with the
profiler started once before the graphs are captured. `--rehearse`: on a CPU, with operators in the place of kernels.

This file is not called profile.py: Python's cProfile, which torch imports, would take it for the standard library's.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import decode_trace
from decode_trace import GAPS, MARK, Steps

from quantlab import catalog, finished, host, weights
from quantlab.engines import GenerateRequest, engine
from quantlab.engines.flowing import Flow, InFlight
from quantlab.formats.foreign import layout_of
from quantlab.measure.memory import bytes_per_step
from quantlab.records import Checkpoint, EngineConfig, MeasureJob, Weights

LEAD, DROPPED, REPEATS = 8, 4, 3
"""Steps before any is counted (prefill, warm-up), first ones under the profiler, and timings without it."""
CHILD_SECONDS = 480
KINDS = {
    "GEMM qkv_proj": r"self_attn\.[qkv]_proj\.",
    "GEMM o_proj": r"self_attn\.o_proj\.",
    "GEMM gate_up_proj": r"mlp\.(gate|up)_proj\.",
    "GEMM down_proj": r"mlp\.down_proj\.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--isl", type=int, default=128)
    parser.add_argument("--osl", type=int, default=64)
    parser.add_argument("--rehearse", action="store_true", help="operators of a CPU instead of kernels")
    parser.add_argument("--prime", action="store_true", help="start the profiler once before the model is opened")
    parser.add_argument("--trace", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.osl < LEAD + DROPPED + 4:
        parser.error(f"--osl must be {LEAD + DROPPED + 4} or more: {LEAD + DROPPED} steps are not counted")
    if words.trace:
        found = profiled(words.checkpoints[0], words)
        words.out.write_text(json.dumps(found))
        return
    records = []
    for folder in words.checkpoints:
        record = in_child(folder, words, prime=words.prime)
        if record.get("graphs_unseen") and not words.prime:
            record = in_child(folder, words, prime=True) | {"primed": "without, no kernel of a graph was traced"}
        records.append(record)
        words.out.write_text(json.dumps(records, indent=1))
        print(table(record), flush=True)
    sys.exit(any("error" in record for record in records))


def in_child(folder: Path, words: argparse.Namespace, *, prime: bool) -> dict[str, Any]:
    """The same command on one checkpoint: each gets the whole GPU, and gives it back by ending."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "record.json"
        flags = [f"--{name}={getattr(words, name)}" for name in ("batch", "isl", "osl")]
        flags += [f"--{name}" for name, on in (("prime", prime), ("rehearse", words.rehearse)) if on]
        trace = words.out.absolute().with_suffix("") / f"{folder.name}.json.gz"  # kept: it can be read again
        trace.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, str(out), str(folder), f"--trace={trace}", *flags]
        try:
            code = subprocess.run(command, stdout=sys.stderr, check=False, timeout=CHILD_SECONDS).returncode
        except subprocess.TimeoutExpired:
            return {"checkpoint": str(folder), "error": f"the child was not done in {CHILD_SECONDS} s, and was killed"}
        if code or not out.exists():
            return {"checkpoint": str(folder), "error": f"the child ended with exit code {code}: see the log"}
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def profiled(folder: Path, words: argparse.Namespace) -> dict[str, Any]:
    """One checkpoint: timed, then traced."""
    if words.prime:
        with profiler(rehearse=words.rehearse):
            pass
    with tempfile.TemporaryDirectory() as scratch:
        vllm, config = engine("vllm"), EngineConfig(max_length=8190)
        made = described(folder)
        artifact = vllm.build(made, Path(scratch) / "built", config, host.describe())
        context = words.isl + (LEAD + DROPPED + words.osl) / 2
        with vllm.open(artifact, config) as session:
            assert isinstance(session, InFlight)
            plain = [walked(session.flow(), words, None) for _ in range(REPEATS)]
            walked(session.flow(), words, Path(scratch) / "warm.json")
            wall = walked(session.flow(), words, words.trace)
            device = session.device
        steps = summed(words.trace, rehearse=words.rehearse)
        job = MeasureJob(engine="vllm", artifact=artifact, config=config, stages=(), folder=scratch)
        read = bytes_per_step(job, context, words.batch)
        head = {"checkpoint": folder.name, "format": made.format, "kv_cache": made.kv_cache, "device": device}
        head |= {"engine": artifact.engine_version, "batch": words.batch, "isl": words.isl, "osl": words.osl}
        return head | reported(steps, plain, wall, read, Path(artifact.path), device.partition(",")[0])


def described(folder: Path) -> Checkpoint:
    """A folder in quantlab's words, from its config and headers."""
    weights.check_folder(folder)
    here = Weights(
        path=str(folder),
        digest=f"profile {folder.name}",
        architecture=weights.architecture(folder),
        bytes=weights.weight_bytes(folder),
    )
    if layout_of(folder) is not None:
        return finished.checkpoint(finished.recognise(folder, folder.name), here, folder.name, 0)
    return Checkpoint(
        path=here.path,
        digest=here.digest,
        recipe="bf16",
        format="bf16",
        architecture=here.architecture,
        bytes=here.bytes,
    )


def walked(flow: Flow, words: argparse.Namespace, trace: Path | None) -> float:
    """Microseconds a step of one batch; what a profiler around its steady steps saw goes into `trace`."""
    for key in range(words.batch):
        prompt = tuple(3 + (7 * place + 11 * key) % 250 for place in range(words.isl))
        flow.enter(key, GenerateRequest(prompt=prompt, max_tokens=words.osl, ignore_eos=True), streamed=False)
    steady = words.osl - LEAD - DROPPED - 2  # the last ones may have nothing left to launch
    for _ in range(LEAD):
        flow.step()
    if trace is None:
        took = [marked(flow) for _ in range(DROPPED + steady)][DROPPED:]
    else:
        with profiler(rehearse=words.rehearse) as running:
            took = [marked(flow) for _ in range(DROPPED + steady)][DROPPED:]
            synchronize()
        running.export_chrome_trace(str(trace))
    left = words.batch
    while left:
        left -= len(flow.step())
    return statistics.mean(took) * 1e6


def marked(flow: Flow) -> float:
    """Seconds of one call of the engine's step, with our mark around it."""
    from torch.profiler import record_function

    began = time.perf_counter()
    with record_function(MARK):
        flow.step()
    return time.perf_counter() - began


def synchronize() -> None:
    """Let the GPU end what was launched, so that the trace has it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def profiler(*, rehearse: bool) -> Any:
    """torch's, without stacks and shapes: they cost time in each operator."""
    from torch.profiler import ProfilerActivity, profile

    return profile(activities=[ProfilerActivity.CPU] if rehearse else [ProfilerActivity.CPU, ProfilerActivity.CUDA])


def summed(trace: Path, *, rehearse: bool) -> Steps:
    """The trace's steps without the first ones."""
    events = decode_trace.read(trace)
    marks = sorted(each["ts"] for each in events if each["name"] == MARK)
    after = marks[DROPPED] if len(marks) > DROPPED else 0.0
    kept = [each for each in events if each["ts"] >= after or each.get("cat") not in (*decode_trace.ON_GPU, "cpu_op")]
    return decode_trace.steps((decode_trace.on_cpu if rehearse else decode_trace.on_gpu)(kept))


def reported(
    steps: Steps, plain: list[float], wall: float, read: float | None, folder: Path, gpu: str
) -> dict[str, Any]:
    """The record: shares of a step, what the products reached of the data sheet's bandwidth, and whether it adds up."""
    sheet, layers = catalog.gpu(gpu), int(weights.config(folder)["num_hidden_layers"])
    bandwidth = sheet.bandwidth if sheet else None
    usual = statistics.median(plain)
    floor = read / bandwidth * 1e6 if read and bandwidth else None
    products = bytes_of(folder)
    gemm = {kind: reached(size, steps, kind, bandwidth) for kind, size in products.items() if kind in steps.classes}
    seen = sum(
        each["calls"] for kind, each in steps.classes.items() if kind.startswith("GEMM") and kind != "GEMM lm_head"
    )
    idle = {kind: each["us"] for kind, each in steps.classes.items() if kind in GAPS}
    taken = sum(each["us"] for kind, each in steps.classes.items() if kind.startswith("GEMM"))
    return {
        "us_a_token_unprofiled": [round(each, 1) for each in plain],
        "us_a_token_profiled": round(wall, 1),
        "profiler_costs": round(wall / usual - 1, 4),
        "steps": steps.steps,
        "step_us": round(steps.total_us, 2),
        "busy_us": round(steps.busy_us, 2),
        "idle_us": round(sum(idle.values()), 2),
        "overlapped_us": round(steps.overlapped_us, 2),
        "not_kernels_unprofiled_us": round(usual - steps.busy_us, 2),
        "bandwidth": bandwidth,
        "bytes_a_step": read,
        "floor_us": floor and round(floor, 1),
        "roofline_share_unprofiled": floor and round(floor / usual, 4),
        "roofline_share_without_gaps": floor and round(floor / steps.busy_us, 4),
        "gemm": gemm
        | {
            "all": {"bytes": sum(products.values()), "us": round(taken, 2)}
            | share(sum(products.values()), taken, bandwidth)
        },
        "classes": steps.classes,
        "layers": layers,
        "graphs_unseen": seen < layers,
        "one_product_a_layer": all(abs(products_of(steps, kind) - layers) < 0.5 for kind in KINDS),
        "sums_to_step": abs(sum(each["us"] for each in steps.classes.values()) - steps.total_us) < 0.01,
        "kernels": steps.kernels,
    }


def products_of(steps: Steps, kind: str) -> float:
    """Products of a kind in a step; what adds up a splitK's parts is none."""
    own = (each for each in steps.kernels if each["class"] == kind and not decode_trace.REDUCES.search(each["name"]))
    return sum(float(each["calls"]) for each in own)


def bytes_of(folder: Path) -> dict[str, int]:
    """Bytes of each kind of product's weights and scales; a tied head is the embedding."""
    tied = bool(weights.config(folder).get("tie_word_embeddings"))
    kinds = KINDS | {"GEMM lm_head": r"embed_tokens\.weight" if tied else r"lm_head\."}
    sizes = {name: one["data_offsets"][1] - one["data_offsets"][0] for name, one in weights.headers(folder).items()}
    return {kind: sum(size for name, size in sizes.items() if re.search(words, name)) for kind, words in kinds.items()}


def reached(size: int, steps: Steps, kind: str, bandwidth: float | None) -> dict[str, Any]:
    each = steps.classes[kind]
    return {"bytes": size, "us": round(each["us"], 2), "calls": each["calls"]} | share(size, each["us"], bandwidth)


def share(size: int, took: float, bandwidth: float | None) -> dict[str, Any]:
    """Bytes a second of weights, and that over the data sheet's."""
    if not took:
        return {}
    speed = size / took * 1e6
    return {"bytes_a_second": round(speed), "bandwidth_share": bandwidth and round(speed / bandwidth, 4)}


def table(record: dict[str, Any]) -> str:
    """For people: the classes by size, then what else must be known to believe them."""
    if "error" in record:
        return f"\n{record['checkpoint']}: {record['error']}\n"
    usual = statistics.median(record["us_a_token_unprofiled"])
    lines = [
        f"\n{record['checkpoint']}: {record['format']}, batch {record['batch']}, {record['isl']} in, "
        f"{record['device']}",
        f"{record['step_us']:,.1f} us a step in the trace, {usual:,.1f} us a token without the profiler "
        f"(it costs {record['profiler_costs']:+.1%}); least by bandwidth {record['floor_us'] or 'not known'} us: "
        f"{record['roofline_share_unprofiled'] or 'not known'} of the roofline, without gaps "
        f"{record['roofline_share_without_gaps'] or 'not known'}",
        "| class | us a step | share | calls | bandwidth share |\n|---|---|---|---|---|",
    ]
    for kind, each in record["classes"].items():
        of = record["gemm"].get(kind, {}).get("bandwidth_share")
        lines.append(
            f"| {kind} | {each['us']:,.1f} | {each['us'] / record['step_us']:.1%} | {each['calls']:.1f} | {of or ''} |"
        )
    lines.append(f"all products: {record['gemm']['all']}; beside others: {record['overlapped_us']} us")
    lines += [
        f"other: {each['name'][:150]} {each['us']:.1f} us" for each in record["kernels"] if each["class"] == "other"
    ]
    if not (record["one_product_a_layer"] and record["sums_to_step"]):
        lines.append(
            f"DOUBT: one product a layer {record['one_product_a_layer']}, sums to the step {record['sums_to_step']}, "
            f"kernels of graphs unseen {record['graphs_unseen']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
