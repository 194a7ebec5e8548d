"""A chrome trace of decode steps -> where the time of a step goes. Standard library only.

    python benchmarks/gpu/decode_trace.py TRACE.json.gz       classes and kernels of one trace, microseconds a step

A step is cut at the output head, the longest matrix product of a step and the only one that is there once: from the
start of one to the start of the next. Each instant belongs to the event that began first, so classes and gaps sum to
the length of the step whatever runs on other streams; what ran beside something else is said as `overlapped`.

Linear layers are told apart by their order after attention (o, gate and up, down, then the next layer's q, k, v), which
needs one kernel a linear layer; `calls` a step, equal to the number of layers, says whether that held. A gap is the
CPU's as long as the next kernel was not launched yet, the GPU's own from there.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MARK = "quantlab step"
"""The annotation around each call of the engine's step."""
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
HEAD, ORDER = "GEMM lm_head", ("GEMM o_proj", "GEMM gate_up_proj", "GEMM down_proj", "GEMM qkv_proj")
OTHER_GEMM, ATTENTION, OTHER = "GEMM, place not known", "attention", "other"
NAMED = (
    (
        "rope and KV-cache write",
        r"reshape_and_cache|concat_and_cache|rotary|rope(?!r)|triton_\w*fused(?!\w*rsqrt)\w*_cat_",
    ),
    ("norm and quantize, fused", r"triton_\w*(norm(?!al)|rsqrt)\w*clamp|triton_\w*clamp\w*(norm(?!al)|rsqrt)"),
    ("activation and quantize, fused", r"triton_\w*silu\w*clamp|triton_\w*clamp\w*silu"),
    ("quantize activations", r"triton_\w*clamp"),
    ("norm", r"triton_\w*(norm(?!al)|rsqrt)"),
    ("activation", r"triton_\w*silu"),
    (ATTENTION, r"flash|fmha|attention|attn|paged|prepare_varlen|cascade"),
    (
        "GEMM",
        r"gemm|gemv|nvjet|cutlass|machete|marlin|splitk|scaled_mm|xmma|wgmma|wvsplit|aten::(linear|mm|addmm|matmul)\b",
    ),
    ("norm and quantize, fused", r"norm(?!al)\w*quant"),
    ("activation and quantize, fused", r"(silu|act_and_mul)\w*quant"),
    ("quantize activations", r"quant|float8|fp8"),
    ("norm", r"norm(?!al)|rsqrt"),
    ("activation", r"silu|swiglu|gelu|act_and_mul|sigmoid"),
    ("sampling and logits", r"argmax|softmax|topk|sampl|multinomial|sort"),
)
"""Class -> names, in this order: FlashAttention 3 is a cutlass::device_kernel, a fused norm has both words, and
Inductor names a fused kernel after its neighbours too (triton_red_fused_fused_add_rms_norm_machete_mm_0 is a norm)."""
ROPE, AFTER, BEFORE = "rope and KV-cache write", "sampling and logits", "inputs of the step"
WORKSPACE = "workspace of products, set to zero"
REDUCES = re.compile(r"splitk\w*reduce|reduce\w*splitk|reduce_kernel", re.I)
PLANS = re.compile(r"prepare|schedul|metadata", re.I)
"""Kernels of attention that run once a step, before the first layer."""
GAPS = ("gap between steps, not launched yet", "gap in a step, not launched yet", "gap between steps, launched",
        "gap in a step, launched")  # fmt: skip


@dataclass(slots=True)
class Event:
    """Something the GPU did. Microseconds of the trace's clock."""

    name: str
    start: float
    end: float
    launched: float | None = None
    """When the CPU began to launch it; None where the trace does not say."""
    step: int | None = None
    """The CPU's step in which it was launched."""
    copies: bool = False
    kind: str = ""

    @property
    def took(self) -> float:
        return self.end - self.start


@dataclass(slots=True)
class Steps:
    """Means over the steps of a trace, microseconds a step."""

    steps: int
    total_us: float
    classes: dict[str, dict[str, float]]
    """Class or gap -> {"us", "calls", "longest_us"}; sums to `total_us`."""
    overlapped_us: float
    kernels: list[dict[str, Any]] = field(default_factory=list)
    """Every name with its class, calls and microseconds a step."""

    @property
    def busy_us(self) -> float:
        return sum(each["us"] for name, each in self.classes.items() if name not in GAPS)


def read(file: Path) -> list[dict[str, Any]]:
    """The events of a .json or .json.gz."""
    raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    found: list[dict[str, Any]] = json.loads(raw)["traceEvents"]
    return [each for each in found if each.get("ph") == "X"]


def on_gpu(trace: Iterable[dict[str, Any]]) -> list[Event]:
    """Kernels, copies and fills in order of their start, with the moment of their launch."""
    trace = list(trace)
    marks = sorted(each["ts"] for each in trace if each["name"] == MARK and each.get("cat") == "user_annotation")
    launches = {
        each["args"]["correlation"]: each["ts"]
        for each in trace
        if each.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in each.get("args", {})
    }
    found = []
    for each in trace:
        if each.get("cat") in ON_GPU:
            launched = launches.get(each.get("args", {}).get("correlation"))
            step = None if launched is None or not marks else bisect_right(marks, launched)
            copies = each["cat"] != "kernel"
            found.append(Event(each["name"], each["ts"], each["ts"] + each["dur"], launched, step, copies))
    return sorted(found, key=lambda event: (event.start, event.end))


def on_cpu(trace: Iterable[dict[str, Any]]) -> list[Event]:
    """For a rehearsal without a GPU: products, and operators that called no other one, as if kernels."""
    trace = list(trace)
    marks = sorted(each["ts"] for each in trace if each["name"] == MARK)
    ops = [each for each in trace if each.get("cat") == "cpu_op"]
    found: list[Event] = []
    for each in sorted(ops, key=lambda one: (one["ts"], -one["dur"])):
        start, end = each["ts"], each["ts"] + each["dur"]
        if found and found[-1].end >= end and by_name(found[-1].name) == "GEMM":
            continue  # a part of the product
        while found and found[-1].end >= end:
            found.pop()  # it called this one
        found.append(Event(each["name"], start, end, start, bisect_right(marks, start)))
    return found


def by_name(name: str) -> str:
    """The first class whose words are in the name; "other" where none is."""
    return next((kind for kind, words in NAMED if re.search(words, name, re.I)), OTHER)


def classify(events: Sequence[Event]) -> list[int]:
    """Write each event's class into it; the places of the output heads, at which steps begin."""
    for event in events:
        event.kind = OTHER if event.copies else by_name(event.name)
    products = [place for place, event in enumerate(events) if event.kind == "GEMM" and not REDUCES.search(event.name)]
    if not products:
        raise ValueError(f"no matrix product among {len(events)} events: {sorted({e.name for e in events})[:20]}")
    longest: dict[int | None, int] = {}
    for place in products:  # one of each CPU step; all that are long enough where launches are not known
        kept = longest.setdefault(events[place].step, place)
        if events[place].took > events[kept].took:
            longest[events[place].step] = place
    known = sorted(longest.values()) if None not in longest else products
    least = sorted(events[place].took for place in longest.values())[len(longest) // 2] / 2
    heads = [place for place in known if events[place].took > least]
    _places(events, set(heads))
    return heads


def _places(events: Sequence[Event], heads: set[int]) -> None:
    """Classes that need the place in the step: which layer a product is of, and what generic kernels are for."""
    last, after, step = OTHER_GEMM, False, None  # after: behind the head and before the next step
    since: int | None = None  # products since the last attention
    for place, event in enumerate(events):
        if place in heads:
            event.kind, since, after, step = HEAD, len(ORDER) - 1, True, event.step
        elif event.kind == "GEMM" and REDUCES.search(event.name):
            event.kind = last
        elif event.kind == "GEMM":
            event.kind = ORDER[since] if since is not None and since < len(ORDER) else OTHER_GEMM
            since, after, step = None if since is None else since + 1, False, None
        elif event.kind == ATTENTION and not PLANS.search(event.name):
            since = 0
        elif event.kind == OTHER and after:
            event.kind = AFTER if event.step == step else BEFORE
        elif event.kind == OTHER and event.copies:
            event.kind = WORKSPACE if since is not None else BEFORE
        elif event.kind == OTHER and since == len(ORDER) and event.name.startswith("triton_"):
            event.kind = ROPE  # between q, k, v and attention; Inductor gave it no telling name
        last = event.kind if event.kind.startswith("GEMM") else last


def steps(events: Sequence[Event]) -> Steps:
    """Means over whole steps, from the first head's start to the last's.

    Raises:
        ValueError: fewer than two heads, or no matrix product.
    """
    heads = classify(events)
    if len(heads) < 2:
        raise ValueError(f"{len(heads)} output heads among {len(events)} events, and a step lies between two.")
    count, ends = len(heads) - 1, events[heads[-1]].start
    shares: dict[str, list[float]] = defaultdict(list)
    names: dict[tuple[str, str], list[float]] = defaultdict(list)
    covered, overlapped, before = events[heads[0]].start, 0.0, events[heads[0]]
    for event in events[heads[0] : heads[-1]]:
        for kind, took in gaps(before, event, covered):
            shares[kind].append(took)
        end = min(event.end, ends)
        own = max(end - max(event.start, covered), 0.0)
        overlapped += max(end - event.start, 0.0) - own
        shares[event.kind].append(own)
        names[event.kind, event.name].append(own)
        covered, before = max(covered, end), event
    for kind, took in gaps(before, events[heads[-1]], covered):
        shares[kind].append(took)
    return Steps(
        steps=count,
        total_us=(ends - events[heads[0]].start) / count,
        classes={kind: mean(took, count) for kind, took in sorted(shares.items(), key=lambda one: -sum(one[1]))},
        overlapped_us=overlapped / count,
        kernels=[
            {"name": name, "class": kind, **mean(took, count)}
            for (kind, name), took in sorted(names.items(), key=lambda one: -sum(one[1]))
        ],
    )


def gaps(before: Event, event: Event, covered: float) -> Iterable[tuple[str, float]]:
    """What the GPU waited from `covered` to the start of `event`: until its launch, and from there."""
    waited = event.start - covered
    if waited <= 0:
        return
    late = 0.0 if event.launched is None else min(max(event.launched - covered, 0.0), waited)
    between = before.step != event.step
    if late > 0:
        yield GAPS[0 if between else 1], late
    if waited > late:
        yield GAPS[2 if between else 3], waited - late


def mean(took: Sequence[float], count: int) -> dict[str, float]:
    return {"us": sum(took) / count, "calls": len(took) / count, "longest_us": max(took)}


if __name__ == "__main__":
    told = steps(on_gpu(read(Path(sys.argv[1]))))
    for kind, each in told.classes.items():
        print(f"{each['us']:10.2f} us {each['calls']:7.2f} calls  {kind}")
    print(f"{told.total_us:10.2f} us a step of {told.steps}, {told.overlapped_us:.2f} us beside others")
    for kernel in told.kernels:
        print(f"{kernel['us']:10.2f} us {kernel['calls']:7.2f} calls  {kernel['class']}: {kernel['name'][:160]}")
