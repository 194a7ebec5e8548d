"""Prediction against what was measured and published: the interval, the value, inside or not, and the held-out error.

    python benchmarks/prediction.py             tables on the screen
    python benchmarks/prediction.py --write     and benchmarks/results/prediction.json, and those of docs/prediction.md

A cell with a known batch is predicted from all others: every measurement of the same point is left out, so what is
predicted was not seen. Published maxima without a batch are predicted at the batch up to 1,024 that is best in the
model and fits into the memory with an FP8 cache, at the mean length of a sequence: in-flight batching replaces the
finished by new ones. Any folder of ledgers below benchmarks/results/gpu is used.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec

from quantlab import catalog
from quantlab.catalog.published import PublishedCell, PublishedTable
from quantlab.decide.evidence import gather, group_of, ledgers_in, work
from quantlab.predict import Cell, Point, Prediction, Wanted, predict
from quantlab.preflight import preflight
from quantlab.records import Recipe

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 1024
WIDTH = 1
"""Bytes of a number in the cache of published maxima: NVIDIA's FP8 checkpoints keep it in FP8."""


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    source: str
    group: str
    recipe: str
    isl: int
    osl: int
    batch: int | None
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


def main(write: bool) -> None:
    cells = gather(catalog.model("3b"), ledgers_in(ROOT / "benchmarks" / "results" / "gpu"), catalog.published()).cells
    held_out, refused = [], []
    for cell in unique(cells):
        found = held(cell, cells)
        (held_out if isinstance(found, Line) else refused).append(found)
    maxima = [line for table in catalog.published().tables for line in unknown_batch(table, cells)]
    text = f"{summary(held_out)}\n\n{table(held_out)}\n\n{table(maxima)}\n"
    print(text)
    for said in refused:
        print("refused:", said)
    if write:
        record = {"held_out": [row(line) for line in held_out], "maxima": [row(line) for line in maxima]}
        record["summary"] = by_tier(held_out)
        target = ROOT / "benchmarks" / "results" / "prediction.json"
        target.write_text(json.dumps(record, indent=1) + "\n")
        into_docs(f"{summary(held_out)}\n\n{table(held_out)}", table(maxima))


def unique(cells: list[Cell]) -> Iterator[Cell]:
    """Each point once; its value is the mean of its measurements, as `predict` takes it."""
    seen = set()
    for cell in cells:
        key = (cell.engine, cell.format, cell.group, cell.point)
        if key not in seen:
            seen.add(key)
            yield cell


def held(cell: Cell, cells: list[Cell]) -> Line | str:
    """The cell predicted without any measurement of its point."""
    same = [
        c for c in cells if (c.engine, c.format, c.group, c.point) == (cell.engine, cell.format, cell.group, cell.point)
    ]
    rest = [each for each in cells if each not in same]
    found = predict(Wanted(cell.point, cell.work, cell.engine, cell.format, cell.group), rest)
    if isinstance(found, str):
        return f"{cell.group} {cell.format} {cell.point}: {found}"
    value = math.exp(sum(math.log(each.tokens_per_second) for each in same) / len(same))
    return line(cell.source, cell.group, cell.format, cell.point, value, found)


def unknown_batch(table: PublishedTable, cells: list[Cell]) -> Iterator[Line]:
    """Published maxima: the best of the model over batches that fit."""
    for cell in table.cells:
        if cell.batch is None:
            found = max(batches(table, cell, cells), key=lambda pair: pair[1].tokens_per_second)
            group = group_of(cell.model, table.gpu, cell.gpus or table.gpus)
            point = Point(cell.isl, cell.osl, found[0])
            yield line(table.name, group, cell.recipe, point, cell.tokens_per_second, found[1])


def batches(table: PublishedTable, cell: PublishedCell, cells: list[Cell]) -> Iterator[tuple[int, Prediction]]:
    gpu, tp = catalog.target(table.gpu), cell.gpus or table.gpus
    model = catalog.published().model(cell.model) or catalog.model(cell.model)
    recipe = catalog.recipe(cell.recipe).record
    assert isinstance(recipe, Recipe)
    recipe = msgspec.structs.replace(recipe, kv_cache="fp8")
    assert model.shape is not None
    plan = preflight(model, cell.recipe, recipe, gpu, tp, context=cell.isl + cell.osl // 2)
    todo = work(model.shape, cell.recipe, gpu, tp, group=plan.group_size, cache_width=WIDTH)
    most = min(plan.largest_batch or 1, LARGEST)
    for batch in sorted({most, *(2**power for power in range(11) if 2**power <= most)}):
        wanted = Wanted(
            Point(cell.isl, cell.osl, batch), todo, table.engine, cell.recipe, group_of(cell.model, table.gpu, tp)
        )
        found = predict(wanted, cells)
        if isinstance(found, Prediction):
            yield batch, found


def line(source: str, group: str, recipe: str, point: Point, value: float, found: Prediction) -> Line:
    return Line(
        source,
        group,
        recipe,
        point.isl,
        point.osl,
        point.batch,
        value,
        found.tier,
        found.tokens_per_second,
        found.low,
        found.high,
    )


def by_tier(lines: list[Line]) -> dict[str, dict[str, float]]:
    """Tier -> cells, share inside the interval, median and largest error."""
    found = {}
    for tier in ("fit", "interpolated", "transfer", "roofline"):
        here = [each for each in lines if each.tier == tier]
        if here:
            errors = [abs(math.expm1(each.error)) for each in here]
            inside = sum(each.inside for each in here) / len(here)
            found[tier] = {
                "cells": len(here),
                "inside": inside,
                "median_error": median(errors),
                "largest_error": max(errors),
            }
    return found


def summary(lines: list[Line]) -> str:
    rows = ["| tier | cells | inside the 80 % interval | median error | largest |", "|---|---|---|---|---|"]
    for tier, each in by_tier(lines).items():
        rows.append(
            f"| {tier} | {each['cells']} | {each['inside']:.0%} | {each['median_error']:.0%} "
            f"| {each['largest_error']:.0%} |"
        )
    return "\n".join(rows)


def table(lines: list[Line]) -> str:
    head = "| source | model and GPU | recipe | in/out, batch | tier | predicted tokens/s | observed | inside | error |"
    rows = [head, "|---|---|---|---|---|---|---|---|---|"]
    for each in lines:
        rows.append(
            f"| {each.source} | {each.group} | {each.recipe} | {each.isl}/{each.osl}, {each.batch} | {each.tier} "
            f"| {each.predicted:,.0f} [{each.low:,.0f}, {each.high:,.0f}] | {each.value:,.0f} "
            f"| {'yes' if each.inside else '**no**'} | {math.expm1(each.error):+.0%} |"
        )
    return "\n".join(rows)


def row(each: Line) -> dict[str, object]:
    return {name: getattr(each, name) for name in (*Line.__dataclass_fields__, "inside", "error")}


def into_docs(held_out: str, maxima: str) -> None:
    """Replace what lies between the markers of docs/prediction.md."""
    path = ROOT / "docs" / "prediction.md"
    text = path.read_text()
    for name, new in (("held-out", held_out), ("maxima", maxima)):
        start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        before, rest = text.split(start, 1)
        text = before + start + new + "\n" + rest[rest.index(end) :]
    path.write_text(text)


if __name__ == "__main__":
    main("--write" in sys.argv[1:])
