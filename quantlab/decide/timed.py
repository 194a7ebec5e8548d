"""What tables of measured kernels say where no cell was measured: asked once, for all recipes together."""

from __future__ import annotations

from collections.abc import Sequence

from quantlab.decide.asked import Asked
from quantlab.decide.evidence import Evidence, group_of
from quantlab.kernels import PACKAGE, TESTED, KernelTime, Question
from quantlab.predict import Kernels
from quantlab.records import Recipe

Times = dict[tuple[str, int], Kernels]


def kernel_times(asked: Asked, evidence: Evidence, engine: str, lengths: tuple[int, int]) -> Times:
    """(recipe, batch) -> kernels. Why a recipe has none goes to `evidence.unasked`.

    Raises:
        BadInput: there is a Python to ask, and it cannot answer.
    """
    tables = evidence.kernels
    todo = [each for each in asked.recipes if not _measured(asked, evidence, each[0], engine, lengths)]
    if tables is None or not tables.here or asked.images or not todo or asked.model.shape is None:
        return {}
    questions = [_question(asked, recipe, engine, lengths) for _, recipe in todo]
    found: Times = {}
    for (name, recipe), answer in zip(todo, tables.ask(questions), strict=True):
        if isinstance(answer, str):
            evidence.unasked[name] = answer
            continue
        for batch, each in answer.items():
            found[name, batch] = Kernels(each.first_seconds, each.step_seconds, _source(recipe, each))
    return found


def _question(asked: Asked, recipe: Recipe, engine: str, lengths: tuple[int, int]) -> Question:
    assert asked.model.shape is not None
    batches = tuple(asked.batches)
    where = asked.gpu.word, engine, recipe.format, recipe.kv_cache, asked.tp
    return Question(asked.model.shape, *where, *lengths, batches)


def _measured(asked: Asked, evidence: Evidence, recipe: str, engine: str, lengths: tuple[int, int]) -> bool:
    """Is every asked batch measured already?"""
    here = group_of(asked.model.word, asked.gpu.word, asked.tp)
    known: Sequence[int] = [
        cell.point.batch
        for cell in evidence.cells
        if (cell.group, cell.format, cell.engine, cell.point.isl, cell.point.osl) == (here, recipe, engine, *lengths)
    ]
    return set(asked.batches) <= set(known)


def _source(recipe: Recipe, time: KernelTime) -> str:
    said = "kernels of static FP8" if recipe.format == "fp8" else f"kernels of {recipe.format}"
    return f"{said} from {PACKAGE.replace('_', '-')} {TESTED}, {time.measured_share:.0%} of a step timed, no host"
