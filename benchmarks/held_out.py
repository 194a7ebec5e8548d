"""Cells predicted without what is predicted: the arithmetic behind benchmarks/prediction.py.

`held` leaves every measurement of a point out. `errors` is stricter, for the bands: whole models and GPUs are left out
where a fit is carried to others, and each tier is asked whether it would be the best or not. A cell is judged by bands
that were corrected without its model and GPU, so that no interval was fitted on what it is tested on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantlab import catalog
from quantlab.kernels import TESTED, KernelTables, KernelTime, Question
from quantlab.predict import Cell, Kernels, Point, Prediction, Wanted, attempts, predict
from quantlab.predict.bands import Band, Bands, corrected, shipped
from quantlab.serving import kv_bytes

ROOT = Path(__file__).resolve().parent.parent
ANSWERS = ROOT / "benchmarks" / "results" / "kernels.json"
"""What the tables said, so that the benchmark runs without them: question -> answer."""
PLAIN: Bands = {name: Band(1.0, 1.0, 1.0, 1.0, "") for name in shipped()}
"""No band: what the model itself says."""


@dataclass(frozen=True)
class Line:
    """One row of a table."""

    source: str
    group: str
    recipe: str
    isl: int
    osl: int
    batch: int
    value: float
    tier: str
    predicted: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        return self.low <= self.value <= self.high

    @property
    def error(self) -> float:
        """Predicted over observed, as a logarithm."""
        return math.log(self.predicted / self.value)


def unique(cells: Sequence[Cell]) -> Iterator[Cell]:
    """Each point once."""
    seen = set()
    for cell in cells:
        if key(cell) not in seen:
            seen.add(key(cell))
            yield cell


def key(cell: Cell) -> tuple[object, ...]:
    return cell.engine, cell.format, cell.group, cell.point


def value(cell: Cell, cells: Sequence[Cell]) -> float:
    """Tokens a second at this point: the mean of its measurements, as `predict` takes it."""
    same = [each for each in cells if key(each) == key(cell)]
    return math.exp(sum(math.log(each.tokens_per_second) for each in same) / len(same))


def asked(cell: Cell, kernels: Kernels | None = None) -> Wanted:
    return Wanted(cell.point, cell.work, cell.engine, cell.format, cell.group, kernels)


def held(cell: Cell, cells: Sequence[Cell], bands: Bands, kernels: Kernels | None) -> Line | str:
    """The cell predicted without any measurement of its point."""
    found = predict(asked(cell, kernels), [each for each in cells if key(each) != key(cell)], bands)
    if isinstance(found, str):
        return f"{cell.group} {cell.format} {cell.point}: {found}"
    return line(cell.source, cell.group, cell.format, cell.point, value(cell, cells), found)


def without(group: str, errors: Sequence[tuple[str, str, float]]) -> Bands:
    """The bands as they would be had this model on this GPU never been seen."""
    return corrected(shipped(), [each for each in errors if each[1] != group])


def errors(cells: Sequence[Cell], tables: Answers) -> list[tuple[str, str, float]]:
    """(band, model and GPU, logarithm of observed over predicted) of every cell in every tier that has a band."""
    found = []
    for cell in unique(cells):
        wanted, truth = asked(cell, tables.of(cell)), value(cell, cells)
        elsewhere = [each for each in cells if each.group != cell.group]
        for said in (*attempts(wanted, elsewhere, PLAIN).values(), *blind(cell, cells)):
            if isinstance(said, Prediction) and said.band:
                found.append((said.band, cell.group, math.log(truth / said.tokens_per_second)))
    return found


def blind(cell: Cell, cells: Sequence[Cell]) -> Iterator[Prediction | str]:
    """The cell from its two neighbours alone, as if nothing else of its model and GPU were known."""
    same = [each for each in cells if (each.engine, each.format) == (cell.engine, cell.format)]
    line = [
        each for each in same if each.group == cell.group and replace(each.point, batch=cell.point.batch) == cell.point
    ]
    below = [each.point.batch for each in line if each.point.batch < cell.point.batch]
    above = [each.point.batch for each in line if each.point.batch > cell.point.batch]
    if below and above:
        ends = {max(below), min(above)}
        known = [each for each in line if each.point.batch in ends]
        yield attempts(asked(cell), [*known, *(each for each in same if each.group != cell.group)], PLAIN)[
            "interpolated"
        ]


def line(source: str, group: str, recipe: str, point: Point, truth: float, found: Prediction) -> Line:
    speeds = found.tier, found.tokens_per_second, found.low, found.high
    return Line(source, group, recipe, point.isl, point.osl, point.batch, truth, *speeds)


class Answers:
    """The tables of kernels, asked where they are installed, else as they were last time."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.known: dict[str, dict[str, list[float]] | str] = {}
        if ANSWERS.is_file():
            self.known = json.loads(ANSWERS.read_text())["answers"]
        tables = KernelTables()
        new = [each for each in dict.fromkeys(map(question, cells)) if each and name(each) not in self.known]
        if new and tables.here:
            for each, answer in zip(new, tables.ask([each for each in new if each]), strict=True):
                self.known[name(each)] = answer if isinstance(answer, str) else packed(answer)

    def of(self, cell: Cell) -> Kernels | None:
        """What they say of a cell."""
        each = question(cell)
        answer = self.known.get(name(each)) if each else None
        if not isinstance(answer, dict) or str(cell.point.batch) not in answer:
            return None
        first, step, _ = answer[str(cell.point.batch)]
        return Kernels(first, step, f"aiconfigurator-core {TESTED}")

    def write(self) -> None:
        record = {
            "package": f"aiconfigurator-core {TESTED}",
            "values": "seconds to the first token, of a step, share timed",
        }
        ANSWERS.write_text(json.dumps({**record, "answers": self.known}, indent=1) + "\n")


def packed(answer: dict[int, KernelTime]) -> dict[str, list[float]]:
    return {
        str(batch): [round(each.first_seconds, 7), round(each.step_seconds, 8), round(each.measured_share, 3)]
        for batch, each in answer.items()
    }


def question(cell: Cell) -> Question | None:
    """What the tables would be asked for this cell alone; None where they cannot know it."""
    model, _, rest = cell.group.partition(" on ")
    tp, _, gpu = rest.partition(" x ")
    found = catalog.published().model(model) or catalog.model(model)
    form = catalog.recipe(cell.format).record.format
    assert found.shape is not None
    cache = "fp8" if cell.work.cache_bytes < kv_bytes(found.shape, 2, int(tp)) else "none"
    made = Question(
        found.shape, gpu, cell.engine, form, cache, int(tp), cell.point.isl, cell.point.osl, (cell.point.batch,)
    )
    return None if made.refusal or cell.point.images else made


def name(each: Question | None) -> str:
    assert each is not None
    shape = each.shape
    dims = f"{shape.layers}x{shape.hidden}x{shape.intermediate}"
    widths = f"{each.format} cache {each.kv_cache} tp {each.tp}"
    return f"{dims} {each.gpu} {each.engine} {widths} {each.isl}/{each.osl} {each.batches[0]}"
