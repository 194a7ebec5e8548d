"""What the plan must know of models with images: which calibration reaches them, and which suites they can answer."""

from __future__ import annotations

from collections.abc import Iterator

from quantlab.records import CalibrationSet, Model, Recipe, Suite


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
