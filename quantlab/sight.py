"""What the plan must know of models with images: which calibration reaches them, and which suites they can answer."""

from __future__ import annotations

from collections.abc import Iterator

from quantlab.catalog import hubsets
from quantlab.records import CalibrationSet, Grid, Model, Recipe, Shape, Suite
from quantlab.serving import IMAGE_POSITIONS, gb, image_cache


def refusals(model: Model, recipe: Recipe, suite: Suite | None, data: CalibrationSet | None) -> Iterator[str]:
    """Why it cannot work, each with its cure.

    Args:
        data: the recipe's calibration set, where it is known.
    """
    if suite is not None and suite.modality == "vision" and model.modality != "vision":
        yield (
            f"the suite asks about pictures and {model.word} reads text only. Take a model with images (11b, 90b, "
            "mllama-easyvqa), or a text suite."
        )
    if model.modality == "vision":
        yield from _calibration(model, recipe, data)


def _calibration(model: Model, recipe: Recipe, data: CalibrationSet | None) -> Iterator[str]:
    if recipe.calibration is not None and data is not None and data.image is None:
        yield (
            f"{model.architecture}: its cross-attention layers run only when there is an image, and the calibration "
            f"set {recipe.calibration.set} is text only, so their ranges would be missing. Take a set with pictures: "
            "--calibration-set easyvqa, or your own (calibration/sets/README.md)."
        )
    if recipe.kv_cache != "none":
        yield (
            f"{model.architecture} with an FP8 key/value cache has not been tried: its cross-attention layers cache "
            "the picture's keys and values, and where ModelOpt rounds those is not known. Write kv_cache: none."
        )


def data(suite: Suite | None) -> tuple[list[str], list[str]]:
    """(notes, refusals) about data sets of the hub that the suite asks for: network, licence, token."""
    notes, refused, unknown = [], [], []
    for one in hubsets.hub_sets(suite) if suite else ():
        if not one.dataset:
            unknown.append(one.task)
        elif hubsets.cached(one.dataset):
            notes.append(f"{one.task}: data set {one.dataset} is in the hub's cache here. Licence: {one.licence}.")
        elif hubsets.offline():
            refused.append(
                f"{one.task} needs the data set {one.dataset} of the hub, which is not in the cache, and "
                "HF_HUB_OFFLINE is set. Unset it, or name a local mirror with `data:` in the suite (docs/vision.md)."
            )
        else:
            token = (
                " Needs a token (`hf auth login`) and its terms accepted." if one.gated else " Not known to be gated."
            )
            notes.append(
                f"{one.task}: data set {one.dataset}, revision {one.revision}, comes from the hub: network needed."
                f"{token} Licence: {one.licence}."
            )
    if unknown:
        notes.append(f"{', '.join(unknown)}: lm-eval's own, whose data come from the hub unless they are in its cache.")
    return notes, refused


def cache(shape: Shape, grid: Grid, width: int) -> tuple[int, list[str]]:
    """Bytes of the pictures' keys and values in the largest cell, and the sentence; (0, []) without pictures.

    Args:
        width: bytes of one number in the cache.
    """
    if not (shape.cross_layers and grid.images and grid.batch):
        return 0, []
    images, batch = max(grid.images), max(grid.batch)
    total = image_cache(shape, width) * images * batch
    return total, [
        f"Pictures: 2 x {shape.cross_layers} cross-attention layers x {shape.kv_heads} heads x {shape.head_dim} x "
        f"{width} bytes x {IMAGE_POSITIONS:,} image tokens x {images} x {batch} = {gb(total)} more with pictures."
    ]
