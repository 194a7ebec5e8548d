"""The same questions with the wrong picture, or with none: what a model scores that does not look.

easy-VQA can be answered to 67 % from the question alone; a score of 70 % there would say that the picture is ignored.
Controls are scored on 16-bit weights only: they say what the suite is worth, not what a precision is.
A run that may stop early has none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from quantlab.measure import Bench
from quantlab.measure.adapter import SessionLM
from quantlab.measure.items import Item
from quantlab.measure.tasks import LoadedTask, load
from quantlab.records import TaskScore

WORDS = {"own": "own images", "shuffled": "shuffled images", "none": "no images"}
Scored = tuple[TaskScore, list[Item]]


def controlled(
    bench: Bench, lm: SessionLM, tasks_folder: Path | None, score: Callable[[SessionLM, LoadedTask], Scored]
) -> tuple[TaskScore, ...]:
    """Scores of the suite's controls, called "task, shuffled images" or "task, no images"; none on quantized
    weights."""
    suite, found = bench.suite, []
    if bench.spec.artifact.checkpoint.format != "bf16" or bench.spec.part is not None:
        return ()
    for number, ask in enumerate(suite.controls):
        alone = msgspec.structs.replace(suite, tasks=(ask,))
        for loaded in load(alone, bench.beside_suite(""), tasks_folder, bench.folder / f"control-{number}"):
            name = f"{loaded.name}, {WORDS[ask.images]}"
            lm.report(name, partial(_tell, bench, name))
            record, _ = score(lm, loaded)
            found.append(msgspec.structs.replace(record, task=name))
    return tuple(found)


def _tell(bench: Bench, name: str, done: int, total: int) -> None:
    bench.reporter.progress("accuracy", done, total, name)
