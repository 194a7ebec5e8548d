"""What is known: throughput cells of ledgers and published tables, and what each recipe lost in accuracy.

A cell counts for every model of the same shape: the speed of a matrix product does not depend on the values in it, so
the measured checkpoint is known by its size in 16 bit. Accuracy counts for the model itself only. What cannot be used
(a CPU, an emulated format, an unknown GPU, a number that is not one) is counted and said, not dropped in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from quantlab import catalog
from quantlab.catalog import Datasheet, Published
from quantlab.decide.users import Loaded
from quantlab.kernels import KernelTables
from quantlab.ledgers import Ledger
from quantlab.predict import Cell, Point, Work
from quantlab.predict.links import Kind, link
from quantlab.records import Cell as Measured
from quantlab.records import Entry, Model, Run, Shape, Throughput
from quantlab.serving import image_cache, image_flops, kv_bytes, layer_weights, weight_bits

SAME_SIZE = 1e-3
"""Two checkpoints whose 16-bit sizes differ by less have the same shape; headers differ by kilobytes."""
EIGHT_BIT = ("fp8", "w4a8_awq")
"""Formats that multiply in FP8."""


@dataclass(frozen=True)
class Shown:
    """What a recipe lost."""

    drop: float
    """Points; negative is a gain."""
    low: float
    high: float
    """Ends of its interval; equal to `drop` where the source gives none."""
    provenance: str
    """measured or published."""
    source: str
    verdict: str = ""
    """The run's own verdict where it was not about the margin: anomalous, a collapse."""


@dataclass
class Evidence:
    """Everything that a recommendation may stand on."""

    cells: list[Cell] = field(default_factory=list)
    accuracy: dict[str, Shown] = field(default_factory=dict)
    """Recipe -> what it lost on the asked model."""
    loads: list[Loaded] = field(default_factory=list)
    """Loads of a running engine."""
    unusable: Counter[str] = field(default_factory=Counter)
    """Reason -> how many cells."""
    kernels: KernelTables | None = None
    """Tables of measured kernels, where there are some to ask."""
    unasked: dict[str, str] = field(default_factory=dict)
    """Recipe -> why these tables say nothing of it."""


def gather(model: Model, ledgers: Iterable[Ledger], published: Published) -> Evidence:
    """Read all ledgers and tables. Measured accuracy comes before published, newer before older.

    Raises:
        LedgerProblem: a damaged document, or one of a newer quantlab.
    """
    found = Evidence()
    _published(found, model, published)
    for ledger in ledgers:
        for entry in ledger.entries("throughput"):
            if entry.status == "done":
                found.cells += _entry(entry, ledger.result(entry), published, found)
        for run in ledger.runs():
            if run.model.word == model.word or run.model.location == model.location:
                _accuracy(found, run)
    return found


def ledgers_in(folder: Path) -> list[Ledger]:
    """The ledger at `folder`, and those in the folders below it (results that somebody handed over)."""
    inner = sorted(path.parent for path in folder.rglob("ledger.json")) if folder.is_dir() else []
    return [Ledger(path) for path in inner] or [Ledger(folder)]


def work(
    shape: Shape,
    form: str,
    gpu: Datasheet,
    tp: int,
    *,
    cache_width: int = 2,
    group: int | None = None,
    images: bool = False,
) -> Work:
    """What one of `tp` GPUs does for a token: its part of the layers and of the output head. With images the
    cross-attention layers are read and multiplied too; text alone passes them by."""
    linear, head = layer_weights(shape, text_only=not images), shape.vocabulary * shape.hidden
    tflops, plain = gpu.tflops.get("fp8" if form in EIGHT_BIT else "bf16"), gpu.tflops.get("bf16")
    layers = shape.layers + (shape.cross_layers if images else 0)
    between = link(cast(Kind, gpu.link), gpu.link_bandwidth, tp) if gpu.link and gpu.link_bandwidth else None
    return Work(
        (linear * weight_bits(form, group) / 8 + 2 * head) / tp,
        kv_bytes(shape, cache_width, tp),
        2.0 * (linear + head) / tp,
        gpu.bandwidth,
        tflops * 1e12 if tflops else None,
        layers,
        exchanges=2 * layers + 1 if tp > 1 else 0,
        token_message=2.0 * shape.hidden,
        link=between,
        image_bytes=float(image_cache(shape, cache_width, tp)) if images else 0.0,
        image_flops=image_flops(shape) / tp if images else 0.0,
        image_rate=plain * 1e12 if plain else None,
    )


def group_of(model: str, gpu: str, tp: int) -> str:
    return f"{model} on {tp} x {gpu}"


def _published(found: Evidence, model: Model, published: Published) -> None:
    for table in published.tables:
        gpu, width = catalog.target(table.gpu), 1 if table.kv_cache == "fp8" else 2
        for cell in table.cells:
            if not table.usable or cell.batch is None:
                if cell.model == model.word:
                    found.unusable[f"published table {table.name}: {table.notes}"] += 1
                continue
            tp, shape = cell.gpus or table.gpus, _shape(cell.model, published)
            seconds = cell.batch * cell.osl / cell.tokens_per_second
            found.cells.append(
                Cell(
                    Point(cell.isl, cell.osl, cell.batch, table.images),
                    work(shape, cell.recipe, gpu, tp, cache_width=width, images=bool(table.images)),
                    table.engine,
                    cell.recipe,
                    group_of(cell.model, table.gpu, tp),
                    seconds,
                    seconds,
                    seconds,
                    provenance="published",
                    source=f"{table.name} ({table.version})",
                )
            )
        for each in table.accuracy:
            if each.model == model.word:
                bound = "at most " if each.at_most else ""
                said = f"{each.task}, {bound}{each.drop:g} points, published: {table.source}"
                found.accuracy[each.recipe] = Shown(each.drop, each.drop, each.drop, "published", said)


def _shape(word: str, published: Published) -> Shape:
    shape = (published.model(word) or catalog.model(word)).shape
    assert shape is not None, "checked when the file was read"
    return shape


def _entry(entry: Entry, result: Throughput, published: Published, found: Evidence) -> Iterator[Cell]:
    """The valid cells of one throughput entry: static batches, without and with pictures; loads go to `found`."""
    unusable = found.unusable
    spec: dict[str, Any] = entry.spec
    checkpoint, config = spec["artifact"]["checkpoint"], spec["config"]
    gpu = catalog.gpu(entry.host.gpus[0].name) if entry.host.gpus and not result.device.startswith("cpu") else None
    model = _known(entry.model, checkpoint, published)
    why = _unusable(result, gpu, model)
    if gpu is None or model is None or model.shape is None or why:
        count = len(result.cells) + len(result.load) + len(result.pictures)
        unusable[why or "the model's dimensions are not known"] += count
        return
    tp = config.get("tensor_parallel") or 1
    width = 1 if checkpoint.get("kv_cache") == "fp8" else 2
    group = checkpoint.get("group_size")
    todo = work(model.shape, checkpoint["format"], gpu, tp, cache_width=width, group=group)
    engine, source = spec["artifact"]["engine"], f"{spec['artifact']['engine_version']}, {entry.started[:10]}"
    bad = next((cell.reason for cell in result.cells if not cell.valid and cell.reason), "no speed that is a number")
    where, name = group_of(model.word, gpu.word, tp), entry.recipe
    seeing = work(model.shape, checkpoint["format"], gpu, tp, cache_width=width, group=group, images=True)
    timed = [(cell, todo, 0) for cell in result.cells]
    timed += [(each.cell, seeing, each.images) for each in result.pictures if model.shape.cross_layers]
    for cell, needs, images in timed:
        made = _cell(cell, needs, engine, name, where, source, images)
        if made is None or not made.sound:
            unusable[f"{name} of {where} failed a check: {cell.reason or bad}"] += 1
        else:
            yield made
    for load in result.load:
        if load.valid and load.tokens_per_second and load.tokens_per_second.value > 0:
            found.loads.append(Loaded(name, engine, where, source, load))
        else:
            unusable[f"{name} of {where} under load failed a check: {load.reason}"] += 1


def _unusable(result: Throughput, gpu: Datasheet | None, model: Model | None) -> str:
    if result.numerics != "native":
        return f"{result.numerics} numerics: its speed says nothing"
    if gpu is None:
        return f"measured on {result.device}, which is no GPU of the catalog"
    return "" if model else "a model of unknown shape"


def _cell(cell: Measured, todo: Work, engine: str, recipe: str, group: str, source: str, images: int) -> Cell | None:
    speed, first, step = cell.tokens_per_second, cell.ttft_seconds, cell.tpot_seconds
    if not cell.valid or speed is None or not speed.value > 0:
        return None
    tokens = cell.batch * cell.osl
    return Cell(
        Point(cell.isl, cell.osl, cell.batch, images),
        todo,
        engine,
        recipe,
        group,
        tokens / speed.value,
        tokens / (speed.high or speed.value),
        tokens / (speed.low or speed.value),
        first.value if first and first.value > 0 else None,
        step.value if step and step.value > 0 else None,
        "measured",
        source,
        _joules(cell),
    )


def _joules(cell: Measured) -> float | None:
    """Energy of a token where it was measured and held to be valid."""
    power = cell.power
    energy = power.joules_per_token if power and power.valid else None
    return energy.value if energy and energy.value > 0 else None


def _known(word: str, checkpoint: dict[str, Any], published: Published) -> Model | None:
    """The model of the catalog or the tables that has this word, or this architecture and this size in 16 bit."""
    models = [*catalog.models(), *filter(None, (published.model(each.word) for each in published.models))]
    size = checkpoint.get("source_bytes") or 0
    for each in models:
        if each.word == word:
            return each
    for each in models:
        expected = 2 * (each.parameters or 0)
        if each.architecture == checkpoint["architecture"] and abs(size - expected) < SAME_SIZE * expected:
            return each
    return None


def _accuracy(found: Evidence, run: Run) -> None:
    """Newer runs come later and replace what is there; a run without a comparison replaces nothing."""
    for each in run.candidates:
        suite = each.comparison.suite if each.comparison else None
        if each.verdict.status == "anomalous":  # "infeasible" speaks of the host of the run, not of this GPU
            found.accuracy[each.recipe_name] = Shown(
                0.0, 0.0, 0.0, "measured", run.suite_name, f"{each.verdict.status}: {each.verdict.reason}"
            )
        elif suite and suite.difference is not None:
            # A claim about the suite alone would look more certain than it is about what will be served.
            gain = (each.comparison.population if each.comparison else None) or suite.difference
            low, high = gain.low, gain.high
            source = f"suite {run.suite_name}, {suite.n:,} items, {run.created[:10]}"
            found.accuracy[each.recipe_name] = Shown(
                -gain.value,
                -(high if high is not None else gain.value),
                -(low if low is not None else gain.value),
                "measured",
                source,
            )
