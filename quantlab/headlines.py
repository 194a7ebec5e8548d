"""The few numbers of each stage that belong into one row of a table: the columns of `ledger.frame()`.

A name means one thing in all stages: `perplexity` of a reference is the baseline's, of a fidelity entry the
candidate's. Where a grid has many cells, the row shows the best valid one. Units: points and shares as in the
records, seconds, bytes, tokens per second. The full record is `ledger.result(entry)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from quantlab.records import (
    Accuracy,
    Artifact,
    Calibrated,
    Canary,
    Cell,
    Entry,
    Fidelity,
    Number,
    Reference,
    Throughput,
    Verification,
)
from quantlab.records.repair import Sensitivity
from quantlab.shares import mean_score

COLUMNS = ("model", "recipe", "stage", "status", "started", "seconds", "identity", "failure")
"""Columns of every row; a stage adds its own."""


def row(entry: Entry, result: Any) -> dict[str, Any]:
    """One row.

    Args:
        entry: of any stage and status.
        result: its typed record, None when it failed.
    """
    failure = f"{entry.failure.kind}: {entry.failure.problem}" if entry.failure else None
    common = (
        entry.model,
        entry.recipe,
        entry.stage,
        entry.status,
        entry.started,
        entry.seconds,
        entry.identity,
        failure,
    )
    return dict(zip(COLUMNS, common, strict=True)) | (_numbers(result) if result is not None else {})


def _numbers(result: Any) -> dict[str, Any]:
    match result:
        case Calibrated():
            return _calibrated(result)
        case Verification():
            failed = [check.name for check in result.checks if not check.passed]
            return {"passed": result.passed, "failed_checks": ", ".join(failed)}
        case Artifact():
            return {"engine": result.engine, "engine_version": result.engine_version, "numerics": result.numerics}
        case Sensitivity():
            return {"positions": result.positions, "groups": len(result.groups)}
        case Canary():
            return {"passed": result.passed}
        case Reference():
            return {"perplexity": result.perplexity, "positions": result.positions}
        case Fidelity():
            return _fidelity(result)
        case Accuracy():
            return _accuracy(result)
        case Throughput():
            return _throughput(result)
    raise TypeError(f"no headline for {type(result).__name__}")


def _calibrated(result: Calibrated) -> dict[str, Any]:
    checkpoint = result.checkpoint
    return {
        "format": checkpoint.format,
        "group_size": checkpoint.group_size,
        "bits_per_weight": checkpoint.bits_per_weight,
        "checkpoint_bytes": checkpoint.bytes,
        "source_bytes": checkpoint.source_bytes,
        "samples": result.samples,
        "calibrate_seconds": result.calibrate_seconds,
        "cpu_seconds": result.cpu_seconds,
        "peak_bytes": result.peak_bytes,
        "device": result.device,
    }


def _fidelity(result: Fidelity) -> dict[str, Any]:
    return {
        "kl": result.kl.value,
        "kl_standard_error": result.kl.standard_error,
        "kl_p99": result.kl_percentiles.get("99"),
        "top1": result.top1.value,
        "perplexity": result.perplexity.value,
        "perplexity_ratio": result.perplexity_ratio.value,
        "positions": result.positions,
    }


def _accuracy(result: Accuracy) -> dict[str, Any]:
    """`score` is the mean over tasks as the judge takes it; "score.<task>" one's. `part`: of an early run's slice, its
    items in the random order."""
    scores = {f"score.{task.task}": task.score.value for task in result.tasks}
    mean = mean_score(result.tasks)
    part = "" if result.part is None else f"{result.part[0]}-{result.part[1]}"
    return {"suite": result.suite, "part": part, "score": mean, "items": sum(task.n for task in result.tasks), **scores}


def _throughput(result: Throughput) -> dict[str, Any]:
    valid = [cell for cell in result.cells if cell.valid]
    return {
        "grid": result.grid,
        "numerics": result.numerics,
        "device": result.device,
        "tokens_per_second": _best(valid, "tokens_per_second", max),
        "prefill_tokens_per_second": _best(valid, "prefill_tokens_per_second", max),
        "decode_tokens_per_second": _best(valid, "decode_tokens_per_second", max),
        "ttft_seconds": _best(valid, "ttft_seconds", min),
        "tpot_seconds": _best(valid, "tpot_seconds", min),
        "peak_bytes": result.peak_bytes,
    }


def _best(cells: list[Cell], name: str, choose: Callable[[Iterable[float]], float]) -> float | None:
    numbers: list[Number] = [number for cell in cells if (number := getattr(cell, name)) is not None]
    return choose(number.value for number in numbers) if numbers else None
