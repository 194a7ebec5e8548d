"""The same questions with the wrong picture, or with none: what a model scores that does not look.

easy-VQA can be answered to 67 % from the question alone; a score of 70 % there would say that the picture is ignored.
Controls are scored on 16-bit weights only: they say what the suite is worth, not what a precision is.

A run that may stop early asks them with its first slice, about the same items: a few hundred random questions tell a
suite that can be guessed from one that cannot, and more would cost what stopping early saves. Shuffled pictures are
exchanged among all pictures of the task, so an item's control is the same as in a full run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec

from quantlab.measure import Bench
from quantlab.measure.adapter import SessionLM
from quantlab.measure.items import Item
from quantlab.measure.part import Chosen
from quantlab.measure.tasks import LoadedTask, load
from quantlab.records import TaskScore

WORDS = {"own": "own images", "shuffled": "shuffled images", "none": "no images"}
Scored = tuple[TaskScore, list[Item]]


def controlled(
    bench: Bench,
    lm: SessionLM,
    tasks_folder: Path | None,
    score: Callable[[SessionLM, LoadedTask, Chosen | None], Scored],
    slice_: Mapping[str, Chosen] | None = None,
) -> tuple[TaskScore, ...]:
    """Scores of the suite's controls, called "task, shuffled images" or "task, no images"; none on quantized weights.

    Args:
        slice_: documents by task, of a slice of the suite. Only the first slice has controls, about its own items.
    """
    suite, found = bench.suite, []
    if bench.spec.artifact.checkpoint.format != "bf16" or (bench.spec.part or (0, 0))[0] > 0:
        return ()
    for number, ask in enumerate(suite.controls):
        alone, place = msgspec.structs.replace(suite, tasks=(ask,)), bench.folder / f"control-{number}"
        for loaded in load(alone, bench.beside_suite(""), tasks_folder, place, bench.folder / "pictures"):
            name = f"{loaded.name}, {WORDS[ask.images]}"
            mine = None if slice_ is None else Chosen([n for n in slice_.get(loaded.name, ()) if n < loaded.items])
            if mine is None or mine:
                lm.report(name, partial(_tell, bench, name))
                record, _ = score(lm, loaded, mine)
                found.append(msgspec.structs.replace(record, task=name))
    return tuple(found)


def _tell(bench: Bench, name: str, done: int, total: int) -> None:
    bench.reporter.progress("accuracy", done, total, name)
