"""One record of every stage, as the ledger's tests keep and read them."""

from __future__ import annotations

from typing import Any

from quantlab.records import (
    SCHEMA,
    Accuracy,
    Artifact,
    Calibrated,
    Canary,
    Cell,
    Check,
    Checkpoint,
    Entry,
    Fidelity,
    Host,
    Model,
    Number,
    Policy,
    Reference,
    Run,
    TaskScore,
    Throughput,
    Verification,
)
from quantlab.records.repair import GroupCost, Sensitivity

HOST = Host(system="Linux 6.1 x86_64", python="3.12.1", cpu="a CPU", cores=2, memory_bytes=1 << 34)


def number(value: float, unit: str = "share") -> Number:
    return Number(value=value, unit=unit, n=10, standard_error=0.01)


def cell(batch: int, speed: float, **words: Any) -> Cell:
    return Cell(isl=8, osl=8, batch=batch, tokens_per_second=number(speed), ttft_seconds=number(1 / speed), **words)


CHECKPOINT = Checkpoint(path="checkpoints/a", digest="d", recipe="fp8", format="fp8", architecture="Llama", bytes=5)
RECORDS: dict[str, Any] = {
    "calibrate": Calibrated(checkpoint=CHECKPOINT, samples=128),
    "build": Artifact(engine="vllm", path="checkpoints/b", checkpoint=CHECKPOINT, engine_version="vllm 0.24.0"),
    "mix": Calibrated(checkpoint=CHECKPOINT),
    "search": Sensitivity(
        groups=(GroupCost(layers=("a.q_proj",), weights=4, bits={"fp8": 32}, kl={"fp8": 0.1}, errors={"fp8": 0.01}),),
        positions=9,
        text_digest="t",
    ),
    "verify": Verification(
        checks=(
            Check(name="size", passed=True, finding="0.5"),
            Check(name="amax", passed=False, finding="none"),
        )
    ),
    "canary": Canary(passed=True, reason="größer ✓", prompts=()),
    "reference": Reference(
        path="files/a/reference.npz", text_digest="t", positions=9, top_k=5, tail=0.1, perplexity=14.5
    ),
    "fidelity": Fidelity(
        text_digest="t",
        positions=9,
        kl=number(0.03, "nats"),
        kl_percentiles={"50": 0.01, "99": 0.4},
        top1=number(0.93),
        perplexity=number(15.0, "ratio"),
        perplexity_ratio=number(1.03, "ratio"),
    ),
    "accuracy": Accuracy(
        suite="quick",
        items="files/a/items.parquet",
        tasks=(
            TaskScore(task="facts", metric="acc", n=300, score=number(0.5)),
            TaskScore(task="cloze", metric="acc", n=100, score=number(0.7)),
        ),
    ),
    "throughput": Throughput(
        grid="small",
        numerics="emulated",
        device="cpu",
        cells=(cell(1, 10.0), cell(4, 30.0), cell(8, 99.0, valid=False, reason="swapped")),
    ),
}


def entry(stage: str = "canary", identity: str = "a", **words: Any) -> Entry:
    words = {"model": "smollm2-135m", "recipe": "fp8", "status": "done", "result": RECORDS[stage]} | words
    return Entry(
        schema=SCHEMA,
        stage=stage,  # type: ignore[arg-type]
        identity=identity,
        spec={},
        host=HOST,
        started="2025-01-01T00:00:00+00:00",
        seconds=1.5,
        **words,
    )


def a_run(summary: str) -> Run:
    return Run(
        schema=SCHEMA,
        model=Model(word="1b", source="hub", location="meta/1b"),
        engine="torch",
        suite_name="",
        suite=None,
        grid_name="",
        grid=None,
        policy_name="default",
        policy=Policy(summary=""),
        candidates=(),
        host=HOST,
        created="2025-01-01T00:00:00+00:00",
        command="quantlab run",
        summary=summary,
    )
