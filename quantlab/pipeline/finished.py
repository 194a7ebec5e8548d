"""Checkpoints that were made elsewhere, as candidates of a run beside recipes.

A recipe is calibrated and verified; a finished checkpoint is recognised (finished.py: config and headers, before
anything is started) and inspected against the model's 16-bit weights (a child, before the baseline is measured, because
a checkpoint of another model is not worth an hour of measuring). From there on both walk alike, through the same
engine, gate and judge. Its numbers say where it comes from, and that nobody here knows how it was calibrated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from quantlab import fetch, finished, sameness, weights
from quantlab.catalog import Found
from quantlab.catalog.elsewhere import KIND
from quantlab.errors import BadInput, Broken
from quantlab.pipeline.ask import AUTO, Resolved
from quantlab.pipeline.walker import Walker
from quantlab.plans import Plan
from quantlab.records import Calibrated, Checkpoint, Finished, Model, Recipe, Weights
from quantlab.sizes import too_long

AS_IT_IS = "vllm"
"""The engine that takes a folder as it is, whoever wrote it."""
Fetch = Callable[[Model], Weights | None]


@dataclasses.dataclass(frozen=True)
class Adopted:
    """A finished checkpoint on this machine."""

    here: Weights
    found: Finished
    calibrated: Calibrated
    """As every candidate has it; nothing was calibrated."""


def adopt(resolved: Resolved, base: Weights | None, fetched: Fetch) -> tuple[Resolved, dict[str, Adopted]]:
    """Recognise every finished checkpoint of the run.

    Args:
        resolved: the run; its recipes get what was recognised.
        base: the model's weights, where they are here.
        fetched: brings the files of a checkpoint here, or says None.

    Returns:
        The run, and name -> checkpoint of those that are here.

    Raises:
        BadInput, Refused, Broken: it is none, or none of this model; nothing was started yet.
    """
    adopted: dict[str, Adopted] = {}
    pairs: list[tuple[Found, Recipe]] = []
    for each, recipe in resolved.recipes:
        made = _adopted(each, resolved, base, fetched) if each.kind == KIND else None
        if made is not None:
            adopted[each.name] = made
        pairs.append((each, recipe if made is None else finished.recipe(made.found)))
    return dataclasses.replace(resolved, recipes=tuple(pairs)), adopted


def local(resolved: Resolved) -> Fetch:
    """Only what is on this machine already."""
    return lambda model: fetch.local(model, resolved.home)


def _adopted(each: Found, resolved: Resolved, base: Weights | None, fetched: Fetch) -> Adopted | None:
    model = each.record
    assert isinstance(model, Model)
    here = fetched(model)
    if here is None:
        return None
    place = Path(model.location).name if model.source == "path" else model.location
    commit = Path(here.path).name if model.source == "hub" else ""
    found = finished.recognise(here.path, place, commit)
    _require_same(each.name, resolved.model, base, here)
    count = 2 * (resolved.model.parameters or 0)
    made = finished.checkpoint(found, here, each.name, base.bytes if base else count)
    said = f"{found.provenance[:1].upper()}{found.provenance[1:]}"
    record = Calibrated(checkpoint=made, layers=found.layers, notes=(said,), finished=found)
    return Adopted(here, found, record)


def _require_same(name: str, model: Model, base: Weights | None, here: Weights) -> None:
    """From config files alone; weights are compared later."""
    config = weights.config(here.path)
    apart = list(sameness.differences(weights.config(base.path), config)) if base else _shapes(model, config)
    if apart:
        said = str(config.get("_name_or_path") or "")
        hint = f" Its config names {said}." if said.count("/") == 1 and not said.startswith((".", "/")) else ""
        raise BadInput(
            f"is no quantization of {model.word}: {'; '.join(apart[:3])}.",
            place=name,
            cure=f"Name the model it was made from with --model.{hint}",
        )


def _shapes(model: Model, config: dict[str, object]) -> list[str]:
    from quantlab.catalog.models import shape_of

    mine, theirs = model.shape, shape_of(config)
    if mine is None or theirs is None:
        return []
    pairs = (
        (n, getattr(mine, n), getattr(theirs, n)) for n in ("layers", "hidden", "intermediate", "heads", "kv_heads")
    )
    return [f"{name} {b} against {a}" for name, a, b in pairs if a != b]


def plan(each: Found, resolved: Resolved, made: Adopted | None) -> Plan:
    """What is known before it is measured."""
    if made is None:
        return Plan(recipe=each.name, notes=("a checkpoint of the hub, to be fetched; it is recognised then.",))
    found, engine = made.found, resolved.ask.engine
    refusals = list(too_long(resolved.suite_record, resolved.model.shape))
    if found.unknown and engine not in (AS_IT_IS, AUTO):
        refusals.append(
            f"quantlab does not compute {found.unknown}. An engine that takes the folder as it is may: "
            f"--engine {AS_IT_IS}."
        )
    return Plan(
        recipe=each.name,
        group_size=found.group_size,
        arithmetic=tuple(finished.sentences(found, made.here.bytes)),
        refusals=tuple(refusals),
        checkpoint_bytes=made.here.bytes,
        disk_bytes=0,
    )


def checkpoints(adopted: Mapping[str, Adopted]) -> dict[str, Checkpoint]:
    """Name -> checkpoint, for whoever asks which engine takes it."""
    return {name: each.calibrated.checkpoint for name, each in adopted.items()}


def inspect_first(walker: Walker) -> None:
    """Inspect all finished checkpoints before anything is measured; each walk finds its result in the ledger.

    Raises:
        Broken: no candidate is left, because every one is a finished checkpoint and none passed.
    """
    if "verify" not in walker.resolved.ask.stages:
        return
    bad: list[str] = []
    for name in walker.adopted:
        found = walker.inspect(name)
        bad += [f"{name}: {check.finding}" for check in found.checks if not check.passed][:1]
    others = [each for each, _ in walker.resolved.recipes[1:] if each.name not in walker.adopted]
    if bad and len(bad) == len(walker.adopted) and not others:
        cure = "Name the model it was made from with --model, fetch its files again, or take another checkpoint."
        raise Broken(" ".join(bad), place="finished checkpoint", cure=cure)


def require_none(resolved: Resolved, what: str) -> None:
    """Raises BadInput where a finished checkpoint stands in the place of a recipe that shall be calibrated."""
    for each, _ in resolved.recipes:
        if each.kind == KIND:
            raise BadInput(
                f"is a finished checkpoint, and {what} calibrates a recipe.",
                place=each.name,
                cure="Judge it as it is with `quantlab run`, or name a recipe.",
            )
