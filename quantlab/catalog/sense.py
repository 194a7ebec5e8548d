"""What a type cannot say: the values of a record that no run could mean.

A recipe with -5 samples or a grid of 0 tokens is well-typed. Without these rules it fails an hour later
inside a child, or worse: `range(-5)` calibrates on nothing and the export looks fine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from quantlab.catalog.strict import Complaint, Parts
from quantlab.records import FORMATS, CalibrationSet, Grid, Policy, Recipe, Suite
from quantlab.records.formats import finer


def recipe(record: Recipe) -> Iterator[Complaint]:
    """A preset needs data or weights only; a baseline needs neither."""
    if (record.preset is None) != (record.format == "bf16"):
        cure = "preset: null belongs to format: bf16, the baseline; every other format needs a preset."
        yield ("preset",), "preset and format contradict each other.", cure
    if record.preset is None and (record.calibration or record.overrides or record.keep or record.kv_cache != "none"):
        yield (
            ("preset",),
            "without a preset nothing is quantized.",
            "Remove calibration, overrides, keep and kv_cache.",
        )
    if record.format == "other":
        cure = "It is what a checkpoint made elsewhere may have; give that checkpoint itself instead of a recipe."
        yield ("format",), "nothing here writes this format.", cure
        return
    yield from _keep(record)
    if record.rounding == "compensated" and not (record.format.startswith("int4_awq") and record.calibration):
        cure = "Write rounding: nearest, or format: int4_awq with calibration."
        yield ("rounding",), "compensated rounding stands on AWQ's scales and takes calibration text.", cure
    if isinstance(record.group_size, int):
        yield from _least(record.group_size, 1, "group_size")
    if record.group_size is not None and not FORMATS[record.format].grouped:
        yield ("group_size",), f"{record.format} has no groups.", "Write group_size: null."
    if asked := record.calibration:
        yield from _least(asked.samples, 1, "calibration", "samples")
        yield from _least(asked.length, 8, "calibration", "length")
        yield from _least(asked.batch, 1, "calibration", "batch")
        yield from _least(asked.seed, 0, "calibration", "seed")
        yield from _least(asked.images, 1, "calibration", "images")


def _keep(record: Recipe) -> Iterator[Complaint]:
    """Layers in another format than the recipe's own, that need what it has."""
    for place, each in enumerate(record.keep):
        if not each.layers:
            yield ("keep", place, "layers"), "it names no layer.", "Name one, or remove the entry."
        if each.format == record.format:
            yield ("keep", place, "format"), f"{each.format} is the recipe's own format.", "Remove the entry."
        if "_g" in each.format and each.format not in finer(record.format):
            cure = "Keep them in int8_wo, or write format: int4_awq."
            yield ("keep", place, "format"), f"{each.format} is int4_awq in smaller groups.", cure
        if each.format == "fp8" and record.calibration is None:
            cure = "Add calibration, e.g. that of recipe fp8."
            yield ("keep", place, "format"), "fp8 takes its ranges from data and the recipe names none.", cure
        if each.format != "bf16" and record.export == "folded":
            yield ("keep", place, "format"), "a folded export has one format.", "Write export: unified."


def calibration_set(record: CalibrationSet) -> Iterator[Complaint]:
    """A hub set names a dataset, a file set names a file."""
    wanted, other = ("dataset", "file") if record.source == "hub" else ("file", "dataset")
    if not getattr(record, wanted):
        yield ("source",), f"source: {record.source} needs the field {wanted!r}.", f"Add {wanted}: ..."
    if getattr(record, other):
        yield (other,), f"does not belong to source: {record.source}.", "Remove it."
    if record.image is not None and record.source == "hub":
        yield ("image",), "pictures come from a file.", "Save the pictures and a JSONL file, and write source: file."


def suite(record: Suite) -> Iterator[Complaint]:
    """Something to measure, and windows in which something is scored."""
    if not record.tasks and not record.fidelity:
        yield ("tasks",), "the suite measures nothing.", "Add a task or fidelity."
    asks = bool(record.canary or record.sights)
    if not asks or not all(prompt.strip() for prompt in record.canary):
        yield ("canary",), "the canary needs prompts.", "Leave the field out to take the usual ones."
    for field in ("controls", "sights"):
        if getattr(record, field) and record.modality != "vision":
            yield (field,), "belongs to a suite that asks about pictures.", "Write modality: vision."
    seen: set[str] = set()
    for index, task in enumerate(record.tasks):
        if task.task in seen:
            yield ("tasks", index, "task"), f"{task.task!r} is listed twice.", "Keep one."
        seen.add(task.task)
        yield from _least(task.shots, 0, "tasks", index, "shots")
        yield from _least(task.limit, 1, "tasks", index, "limit")
    if asked := record.fidelity:
        yield from _least(asked.windows, 1, "fidelity", "windows")
        yield from _least(asked.burn_in, 1, "fidelity", "burn_in")
        yield from _least(asked.length, asked.burn_in + 1, "fidelity", "length")
        yield from _least(asked.top_k, 1, "fidelity", "top_k")


def grid(record: Grid) -> Iterator[Complaint]:
    """Axes with at least one positive value each; of batch and concurrency one may be left out."""
    for axis in ("isl", "osl", "batch", "concurrency"):
        values: tuple[int, ...] = getattr(record, axis)
        other = {"batch": record.concurrency, "concurrency": record.batch}.get(axis, ())
        if not values and not other:
            yield (axis,), "has no values.", f"Write {axis}: [1]."
        if len(set(values)) < len(values):
            yield (axis,), "holds a value twice.", "Keep one."
        for index, value in enumerate(values):
            yield from _least(value, 1, axis, index)
    if record.served and not record.concurrency:
        yield ("served",), "there is no load to serve.", "Write concurrency: [1, 4, 16]."
    yield from _least(record.waves, 1, "waves")
    for index, count in enumerate(record.images):
        yield from _least(count, 1, "images", index)
        if count >= min(record.isl, default=count + 1):
            yield ("images",), f"{count} image tokens leave no text in {min(record.isl)}.", "Write a longer isl."
    yield from _least(record.warmup, 0, "warmup")
    yield from _least(record.repeats, 1, "repeats")


def policy(record: Policy) -> Iterator[Complaint]:
    """Shares lie between 0 and 1; drops and gains are finite and not negative."""
    for name in ("max_drop", "max_gain", "collapse_kl"):
        value = getattr(record, name)
        if not (math.isfinite(value) and value >= 0):
            yield (name,), f"{value} is not a size.", "Write a number of at least 0."
    for name in ("collapse_top1", "max_broken_items"):
        if not 0 <= getattr(record, name) <= 1:
            yield (name,), f"{getattr(record, name)} is not a share.", "Write a number from 0 to 1."
    if not 0.5 <= record.confidence < 1:
        yield ("confidence",), f"{record.confidence} is not a confidence.", "Write for instance 0.95."
    yield from _looks(record)


def _looks(record: Policy) -> Iterator[Complaint]:
    """An early run can only claim something about the suite, needs a margin to bet on, and looks that grow."""
    if record.early and record.scope == "population":
        cure = "Write `scope: suite`, or `early: false`."
        yield ("scope",), "an early run decides about the suite in full, not about a population.", cure
    if record.early and not 0 < record.max_drop < 100:
        yield ("max_drop",), f"{record.max_drop:g} points leave nothing to decide early.", "Write a number above 0."
    yield from _least(record.first_look, 1, "first_look")
    if not 1.1 <= record.look_growth <= 100:
        yield ("look_growth",), f"{record.look_growth} does not grow well.", "Write for instance 2."


def _least(value: Any, least: int, *parts: str | int) -> Iterator[Complaint]:
    where: Parts = parts
    if value is not None and value < least:
        yield where, f"{value} is too small.", f"The least is {least}."
