"""What a repair is asked for, and why one is refused before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from quantlab import catalog, kept
from quantlab.errors import BadInput, Broken, Refused
from quantlab.pipeline.ask import Ask, Resolved
from quantlab.pipeline.walk import Walk
from quantlab.records import FORMATS, Recipe
from quantlab.records.formats import finer
from quantlab.sizes import OWN_GROUP, Layer

STAGES = ("calibrate", "verify", "canary", "fidelity", "accuracy")
DEFAULT_EXTRA = 0.5
"""Bits a weight beyond the recipe's own, where no budget is named."""


@dataclass(frozen=True)
class RepairAsk:
    """What `quantlab repair` is asked for."""

    ask: Ask
    """Model, suite, policy and device; `recipes` holds the one recipe. Of its stages those of STAGES are walked."""
    bits: float | None = None
    """Most bits a weight; None: half a bit more than the recipe takes."""
    keep: tuple[str, ...] = ()
    """Formats in which layers may be kept; empty: int8_wo for 4-bit weights with 16-bit activations, fp8 for other
    recipes below 8 bits, else bf16."""
    rounding: Literal["nearest", "compensated"] = "compensated"
    """How the new recipe rounds its int4 weights. compensated (calibrate/compensate.py) is of int4_awq alone, and not
    done where there is too little text."""
    points: int = 3
    """Mixtures on the curve, the chosen one among them."""
    samples: int = 8
    """Sequences of calibration text that the search reads."""
    length: int = 256
    """Tokens in each."""
    rounds: int = 2
    """Rounds of the search: the first at the recipe, each further one at the mixture that the budget would give. With
    smaller groups among the formats there is one at the recipe and one in each of them."""
    out: str | None = None
    """File of the new recipe; None: calibration/<recipe>_<bits>bit.yaml."""


def budget_of(
    asked: float | None, name: str, recipe: Recipe, layers: Sequence[Layer], formats: Sequence[str], group: int | None
) -> float:
    """The budget, if anything between the recipe and keeping all of it can be had for it.

    Raises:
        BadInput: there is nothing between.
    """
    own = kept.bits(recipe, map(msgspec.structs.astuple, layers), group or OWN_GROUP)
    most = max(FORMATS[word].weight_bits(OWN_GROUP) for word in formats)
    bits = asked if asked is not None else round(own + DEFAULT_EXTRA, 2)
    if bits <= own:
        cure = f"Allow more than {own:g} bits, e.g. --bits {own + DEFAULT_EXTRA:g}."
        raise BadInput(f"{name} itself takes {own:g} bits a weight.", place=f"--bits {bits:g}", cure=cure)
    if bits >= most:
        cure = f"Allow less than {most:g}, or run {formats[-1]} itself."
        words = " and ".join(formats)
        raise BadInput(
            f"keeping all layers in {words} takes no more than {most:g} bits a weight, so nothing is left to choose.",
            place=f"--bits {bits:g}",
            cure=cure,
        )
    return bits


def check(resolved: Resolved, recipe: Recipe, name: str) -> None:
    """What cannot be repaired, in seconds."""
    place = f"recipe {name}"
    if recipe.preset is None:
        raise Refused("it quantizes nothing, so there is nothing to repair.", place=place, cure="Name another recipe.")
    if recipe.export != "unified":
        raise Refused("a simulated recipe cannot be mixed.", place=place, cure="Write export: unified.")
    if recipe.keep:
        cure = "Repair the recipe that it was made from, with another budget."
        raise Refused("it keeps layers already.", place=place, cure=cure)
    if recipe.format == "nvfp4_awq":
        cure = "Repair nvfp4, or keep layers by hand (keep:)."
        raise Refused(
            "its export moves scales from one layer into the next, which a mixture would tear.", place=place, cure=cure
        )
    if resolved.model.modality != "text":
        raise Refused("the search reads text alone.", place=resolved.model.word, cure="Keep layers by hand (keep:).")
    if resolved.ask.engine != "torch":
        cure = "Leave --engine out: engine torch measures every mixture."
        raise BadInput("a repair is measured by engine torch.", place=f"--engine {resolved.ask.engine}", cure=cure)


def compensated(recipe: Recipe, rounding: Literal["nearest", "compensated"], layers: Sequence[Layer]) -> Recipe:
    """The recipe as the new one starts from it: the same bits, rounded as asked where that can be had."""
    better = msgspec.structs.replace(recipe, rounding=rounding)
    able = recipe.format == "int4_awq" and not kept.unlearned(better, layers)
    return better if able else recipe


def formats_of(asked: Sequence[str], recipe: Recipe, group: int | None) -> tuple[str, ...]:
    """What layers may be kept in. `group`: weights that share a scale in the recipe.

    Raises:
        BadInput: it stores no more bits than the recipe.
    """
    low = FORMATS[recipe.format].bits < 8
    own = "bf16" if not low else "int8_wo" if recipe.format in ("int4_awq", "int4") else "fp8"
    smaller = tuple(word for word in finer(recipe.format) if (FORMATS[word].group or 0) < (group or OWN_GROUP))
    words = tuple(dict.fromkeys(asked)) or (own,)
    for word in words:
        if FORMATS[word].group and word not in smaller:
            cure = f"Take {', '.join(smaller)}." if smaller else "Take --keep int8_wo."
            what = f"{recipe.format} in groups of {group}" if group else recipe.format
            raise BadInput(f"it is no smaller group of {what}.", place=f"--keep {word}", cure=cure)
        if word != "bf16" and not low:
            cure = "Take --keep bf16."
            raise BadInput(f"{word} has no more bits than {recipe.format}.", place=f"--keep {word}", cure=cure)
    return words


def donor_recipe(word: str, base: Recipe) -> Recipe:
    """The keeping format's own recipe on the base's calibration text: its layers come out as in the mixture."""
    if word in finer(base.format):
        return msgspec.structs.replace(base, format=word, group_size=None, keep=())
    own = catalog.recipe(word).record
    assert isinstance(own, Recipe)
    text = base.calibration or own.calibration if FORMATS[own.format].input_scale else None
    return msgspec.structs.replace(own, calibration=text, kv_cache=base.kv_cache)


def require(walk: Walk) -> None:
    """Raise what ended a walk without which there is no repair."""
    walk.require_done()
    if walk.doubts:
        raise Broken(
            " ".join(walk.doubts), place=f"recipe {walk.name}", cure="A recipe must pass verify before it is repaired."
        )
