"""What the plan must know of models with images: which calibration reaches them, which suites they can answer, and what
looking at a picture takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from quantlab import weights
from quantlab.catalog import hubsets
from quantlab.records import CalibrationSet, Grid, Model, Recipe, Shape, Suite
from quantlab.serving import (
    ENCODER_LAYERS,
    ENCODER_MLP,
    ENCODER_WIDTH,
    IMAGE_POSITIONS,
    PROJECTED,
    gb,
    image_cache,
)


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


class Eye(msgspec.Struct, frozen=True):
    """The vision tower of a model: what it makes of a picture, and what that takes."""

    tiles: int = 4
    patches: int = 1601
    """Vectors of a tile, its class vector included."""
    width: int = ENCODER_WIDTH
    mlp: int = ENCODER_MLP
    layers: int = ENCODER_LAYERS
    """Those that look at all tiles at once included."""
    projected: int = PROJECTED
    """Numbers of a vector before the projector."""
    out: int = 4096
    """After it: the width of the language model."""

    @property
    def vectors(self) -> int:
        """That the language model looks at."""
        return self.tiles * self.patches

    @property
    def _padded(self) -> int:
        return self.tiles * -(-self.patches // 8) * 8

    def states(self, width: int) -> int:
        """Bytes of what one picture becomes."""
        return self.vectors * self.out * width

    def looking(self, width: int) -> int:
        """Bytes while one picture goes through: the output of each layer is kept, and one layer's MLP, or the vectors
        that are put together at the end; and who may look at whom."""
        rows = self._padded
        end = max(2 * self.mlp, 2 * self.projected + self.out)
        return width * rows * ((self.layers + 1) * self.width + end + rows)

    def layer(self) -> int:
        """Weights of one layer."""
        return 4 * self.width**2 + 2 * self.width * self.mlp

    def kept(self) -> int:
        """Weights that are no layer's: the tables of positions, ten kinds of tiling, and the projector."""
        return (9 * self.vectors + 2 * 9 * self.tiles) * self.width + self.projected * self.out

    def flops(self) -> float:
        """Operations on one picture."""
        rows = self._padded
        attention = 4 * rows * rows * self.width
        return float(self.layers * (2 * rows * self.layer() + attention) + 2 * self.vectors * self.projected * self.out)


def eye(model: Model, path: Path | None) -> Eye | None:
    """Of the weights' own config.json where they are here, otherwise Llama 3.2's; None for a model without images."""
    if model.modality != "vision":
        return None
    out = model.shape.hidden if model.shape else 4096
    asked = weights.config(path).get("vision_config") if path else None
    if not isinstance(asked, dict):
        return Eye(out=out)
    return Eye(
        tiles=asked.get("max_num_tiles", 4),
        patches=(asked.get("image_size", 448) // asked.get("patch_size", 14)) ** 2 + 1,
        width=asked.get("hidden_size", ENCODER_WIDTH),
        mlp=asked.get("intermediate_size", ENCODER_MLP),
        layers=asked.get("num_hidden_layers", 32) + asked.get("num_global_layers", 8),
        projected=asked.get("vision_output_dim", PROJECTED),
        out=out,
    )
