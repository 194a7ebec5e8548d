"""Prediction against what was measured and published: the interval, the value, inside or not, and the held-out error.

    python benchmarks/prediction.py             tables on the screen
    python benchmarks/prediction.py --write     and benchmarks/results/prediction.json, and those of docs/prediction.md
    python benchmarks/prediction.py --bands     corrects quantlab/predict/bands.json from the held-out errors first

New cells: lay the run's ledger into a folder of benchmarks/results/gpu, at any depth, and run `--bands --write`.

A cell with a known batch is predicted from all others: every measurement of the same point is left out, so what is
predicted was not seen; and its interval comes from bands corrected without its model and GPU. Published maxima
without a batch are predicted at the batch up to 1,024 that is best in the model and fits into the memory with an FP8
cache, at the mean length of a sequence: in-flight batching replaces the finished by new ones.

Tables of kernels (aiconfigurator-core) are asked where $QUANTLAB_KERNELS or this Python has them, and what they said is
kept in benchmarks/results/kernels.json.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import msgspec
from held_out import ROOT, Answers, Line, asked, errors, held, line, unique, value, without

from quantlab import catalog
from quantlab.catalog.published import PublishedCell, PublishedTable
from quantlab.decide.evidence import gather, group_of, ledgers_in, work
from quantlab.predict import Cell, Point, Prediction, Wanted, attempts, predict
from quantlab.predict.bands import Bands, corrected, shipped, write
from quantlab.preflight import preflight
from quantlab.records import Recipe

LARGEST = 1024
WIDTH = 1
"""Bytes of a number in the cache of published maxima: NVIDIA's FP8 checkpoints keep it in FP8."""


def main(words: Sequence[str]) -> None:
    cells = gather(catalog.model("3b"), ledgers_in(ROOT / "benchmarks" / "results" / "gpu"), catalog.published()).cells
    tables = Answers(list(unique(cells)))
    seen = errors(cells, tables)
    if "--bands" in words:
        changed(shipped(), made := corrected(shipped(), seen))
        write(made)
        shipped.cache_clear()
    held_out, kernels, refused = [], [], []
    for cell in unique(cells):
        bands = without(cell.group, seen)
        found = held(cell, cells, bands, tables.of(cell))
        (held_out if isinstance(found, Line) else refused).append(found)
        said = attempts(asked(cell, tables.of(cell)), [], bands)["kernels"]
        if isinstance(said, Prediction):
            kernels.append(line(cell.source, cell.group, cell.format, cell.point, value(cell, cells), said))
    maxima = [each for table in catalog.published().tables for each in unknown_batch(table, cells)]
    parts = {
        "held-out": f"{summary(held_out)}\n\n{table(held_out)}",
        "kernels": f"{summary(kernels)}\n\n{table(kernels)}",
        "bands": band_table(shipped()),
        "maxima": table(maxima),
    }
    print("\n\n".join(parts.values()))
    for said in refused:
        print("refused:", said)
    if "--write" in words:
        lines = {"held_out": held_out, "kernels": kernels, "maxima": maxima}
        record = {name: [row(each) for each in rows] for name, rows in lines.items()}
        target = ROOT / "benchmarks" / "results" / "prediction.json"
        target.write_text(json.dumps({**record, "summary": by_tier(held_out)}, indent=1) + "\n")
        tables.write()
        into_docs(parts)


def unknown_batch(table: PublishedTable, cells: list[Cell]) -> Iterator[Line]:
    """Published maxima: the best of the model over batches that fit."""
    for cell in table.cells:
        if cell.batch is None:
            found = max(batches(table, cell, cells), key=lambda pair: pair[1].tokens_per_second)
            group = group_of(cell.model, table.gpu, cell.gpus or table.gpus)
            point = Point(cell.isl, cell.osl, found[0], table.images)
            yield line(table.name, group, cell.recipe, point, cell.tokens_per_second, found[1])


def batches(table: PublishedTable, cell: PublishedCell, cells: list[Cell]) -> Iterator[tuple[int, Prediction]]:
    gpu, tp = catalog.target(table.gpu), cell.gpus or table.gpus
    model = catalog.published().model(cell.model) or catalog.model(cell.model)
    recipe = catalog.recipe(cell.recipe).record
    assert isinstance(recipe, Recipe)
    recipe = msgspec.structs.replace(recipe, kv_cache="fp8")
    assert model.shape is not None
    plan = preflight(model, cell.recipe, recipe, gpu, tp, context=cell.isl + cell.osl // 2)
    sizes = {"group": plan.group_size, "cache_width": WIDTH, "images": bool(table.images)}
    todo = work(model.shape, cell.recipe, gpu, tp, **sizes)
    most = min(plan.largest_batch or 1, LARGEST)
    for batch in sorted({most, *(2**power for power in range(11) if 2**power <= most)}):
        point = Point(cell.isl, cell.osl, batch, table.images)
        found = predict(Wanted(point, todo, table.engine, cell.recipe, group_of(cell.model, table.gpu, tp)), cells)
        if isinstance(found, Prediction):
            yield batch, found


def by_tier(lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Tier -> cells, share inside the interval, median and largest error."""
    found = {}
    for tier in dict.fromkeys(("fit", "interpolated", "transfer", "kernels", "roofline")):
        here = [each for each in lines if each.tier == tier]
        if here:
            off = [abs(math.expm1(each.error)) for each in here]
            inside = sum(each.inside for each in here) / len(here)
            found[tier] = {"cells": len(here), "inside": inside, "median_error": median(off), "largest_error": max(off)}
    return found


def summary(lines: Sequence[Line]) -> str:
    rows = ["| tier | cells | inside the 80 % interval | median error | largest |", "|---|---|---|---|---|"]
    for tier, each in by_tier(lines).items():
        shares = f"{each['inside']:.0%} | {each['median_error']:.0%} | {each['largest_error']:.0%}"
        rows.append(f"| {tier} | {each['cells']} | {shares} |")
    return "\n".join(rows)


def table(lines: Sequence[Line]) -> str:
    head = "| source | model and GPU | recipe | in/out, batch | tier | predicted tokens/s | observed | inside | error |"
    rows = [head, "|---|---|---|---|---|---|---|---|---|"]
    for each in lines:
        rows.append(
            f"| {each.source} | {each.group} | {each.recipe} | {each.isl}/{each.osl}, {each.batch} | {each.tier} "
            f"| {each.predicted:,.0f} [{each.low:,.0f}, {each.high:,.0f}] | {each.value:,.0f} "
            f"| {'yes' if each.inside else '**no**'} | {math.expm1(each.error):+.0%} |"
        )
    return "\n".join(rows)


def band_table(bands: Bands) -> str:
    """What each kind of prediction may be off, before and after our cells spoke."""
    rows = ["| band | before any cell | now | held-out cells | models and GPUs |", "|---|---|---|---|---|"]
    for name, each in bands.items():
        before = f"x{each.prior_low:g} to x{each.prior_high:g}"
        rows.append(f"| {name} | {before} | x{each.low:g} to x{each.high:g} | {each.cells} | {each.groups} |")
    return "\n".join(rows)


def changed(old: Bands, new: Bands) -> None:
    for name, each in new.items():
        if each != old[name]:
            ends = f"x{old[name].low:g} to x{old[name].high:g} -> x{each.low:g} to x{each.high:g}"
            print(f"band {name}: {ends} ({each.cells} cells, {each.groups} models and GPUs)")


def row(each: Line) -> dict[str, object]:
    return {name: getattr(each, name) for name in (*Line.__dataclass_fields__, "inside", "error")}


def into_docs(parts: dict[str, str]) -> None:
    """Replace what lies between the markers of docs/prediction.md."""
    path = Path(ROOT / "docs" / "prediction.md")
    text = path.read_text()
    for name, new in parts.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        before, rest = text.split(start, 1)
        text = before + start + new + "\n" + rest[rest.index(end) :]
    path.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
