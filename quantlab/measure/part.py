"""A slice of a suite in its random order of arrival: which documents it holds, and that their prompts are the suite's.

lm-eval can score chosen documents (`samples`), with three traps that would change numbers in silence:

* Few-shot examples are drawn one document after the other from one generator, so the same question would get other
  shots in a slice than in the full run. Where that is so, the prompts of all documents are rendered, as the full run
  does, and those of the slice are kept: rendering costs little, scoring is what a slice saves.
* An empty choice means "all" to lm-eval. A task without items in the slice is left out.
* It asks `document in samples` of every document; in a list that takes as long as the suite is long, each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from quantlab.measure.tasks import LoadedTask
from quantlab.score.draw import Draw


class Chosen(list[int]):
    """Document numbers, ascending, that know at once whether a number is among them."""

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__(sorted(numbers))
        self._among = frozenset(self)

    def __contains__(self, number: object) -> bool:
        return number in self._among


def draw_of(tasks: Sequence[LoadedTask], seed: int) -> Draw:
    """The random order of a suite's items."""
    grouped = any(one.ask.task != one.name for one in tasks)
    words = tuple(one.ask.task for one in tasks) if grouped else ()
    return Draw(tuple((one.name, one.items) for one in tasks), seed, words)


@contextmanager
def prompts_as_in_full(loaded: LoadedTask, chosen: Chosen | None) -> Iterator[None]:
    """Inside, lm-eval gives each chosen document the prompt that it has when the whole task is run."""
    if chosen is None or not _draws_shots(loaded.task):
        yield
        return
    task = loaded.task
    build: Callable[..., None] = task.build_all_requests

    def of_all(**words: Any) -> None:
        build(**{**words, "samples": None, "limit": loaded.ask.limit})
        places = {number: place for place, number in enumerate(chosen)}
        task._instances = [each for each in task._instances if each.doc_id in places]
        for each in task._instances:
            each.doc_id = places[each.doc_id]

    task.build_all_requests = of_all
    try:
        yield
    finally:
        del task.build_all_requests


def _draws_shots(task: Any) -> bool:
    """Shots that depend on which documents came before; "first_n" takes the same for all."""
    from lm_eval.api.samplers import FirstNSampler

    return bool(task.get_config("num_fewshot")) and not isinstance(getattr(task, "sampler", None), FirstNSampler)
