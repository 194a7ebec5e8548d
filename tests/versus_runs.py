"""Pairs of runs and their items for the tests of run against run."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from quantlab.judge import Items
from quantlab.records import Accuracy, Candidate, Cell, Number, Run, TaskScore, Throughput
from tests.report_parts import throughput
from tests.report_runs import gpu

N = 600


def changed(record: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(record, **fields)


def items(wrong: int, prompt: str = "Q {}", tokens: int = 5, n: int = N) -> Items:
    """`n` items of which the first `wrong` are answered wrong."""
    names = [str(place) for place in range(n)]
    texts = [prompt.format(name) for name in names]
    correct = np.array([0.0 if place < wrong else 1.0 for place in range(n)])
    return Items(
        ids=names,
        digests=[f"{text} {tokens}" for text in texts],
        correct=correct,
        answers=["A" if each else "B" for each in correct],
        clusters=names,
        tokens=[tokens] * n,
        bos=[1] * n,
        prompts=texts,
        questions=names,
    )


def scored(candidate: Candidate, wrong: int, n: int = N) -> Candidate:
    """With one task, `wrong` of `n` items answered wrong."""
    score = Number(value=1 - wrong / n, unit="share", n=n, standard_error=0.01)
    task = TaskScore(task="facts", metric="acc", n=n, score=score, prompts_digest="p")
    accuracy = Accuracy(suite="quick", items=f"files/{candidate.recipe_name}{wrong}/items.parquet", tasks=(task,))
    return changed(candidate, accuracy=accuracy)


def run(wrong: int = 30, speed: float = 170.0, numerics: Any = "native", device: str = "NVIDIA H100") -> Run:
    """One recipe beside the baseline, scored and timed."""
    base = gpu()
    timed: Throughput = throughput(numerics, speed, device)
    fp8 = changed(scored(base.candidates[1], wrong), throughput=timed, calibrated=None, fidelity=None)
    return changed(base, candidates=(fp8,), created=f"2026-11-24T18:00:{wrong % 60:02d}Z")


def sweep() -> Run:
    """Three recipes on a GPU over batches 1, 4 and 64: fp8 overtakes int4_awq, and one of its cells is invalid."""
    speeds = {"bf16": (286, 1153, 13472), "fp8": (300, None, 17000), "int4_awq": (367, 1444, 14081)}
    timed = [changed(each, throughput=_cells(each, speeds[each.recipe_name])) for each in gpu().candidates[:3]]
    return changed(gpu(), candidates=tuple(timed))


def _cells(candidate: Candidate, speeds: tuple[float | None, ...]) -> Throughput:
    assert candidate.throughput is not None
    cells = []
    for batch, speed in zip((1, 4, 64), speeds, strict=True):
        if speed is None:
            cells.append(Cell(isl=128, osl=256, batch=batch, valid=False, reason="two sequences fell apart"))
            continue
        rate = Number(value=speed, unit="tokens/s", n=4, low=0.99 * speed, high=1.01 * speed)
        cells.append(Cell(isl=128, osl=256, batch=batch, tokens_per_second=rate))
    return changed(candidate.throughput, cells=tuple(cells))
