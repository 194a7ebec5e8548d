"""Layers that a recipe keeps in another format than its others, as plain names: what belongs together, what is refused.

q, k and v are one matrix product in every fast runtime, gate and up another: they have one format, or none can be
served. ModelOpt finds that out at the export, as an assertion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Protocol

from quantlab.records import FORMATS, Recipe
from quantlab.records.formats import finer

FUSED = re.compile(r"(?P<block>.*)\.(?:(?P<first>[qkv]_proj)|(?P<second>gate_proj|up_proj))")
"""Layers that share an input and that every fast runtime computes as one product."""


class Named(Protocol):
    """A layer of which name and width count here."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> int: ...


def groups(layers: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Layers that change their format together, in the order given."""
    found: dict[str, list[str]] = {}
    for name in layers:
        match = FUSED.fullmatch(name)
        key = name if match is None else f"{match['block']}.{'qkv' if match['first'] else 'gate_up'}"
        found.setdefault(key, []).append(name)
    return tuple(tuple(names) for names in found.values())


def others(recipe: Recipe) -> tuple[str, ...]:
    """Quantized formats in which the recipe keeps layers, beside its own: more than none is mixed precision."""
    return tuple(dict.fromkeys(each.format for each in recipe.keep if each.format != "bf16"))


def refusals(recipe: Recipe, layers: Iterable[Named], group: int | None = None) -> Iterator[str]:
    """Why these layers cannot be kept, or rounded, so.

    Args:
        recipe: the recipe.
        layers: all that the preset quantizes; empty where they are not known.
        group: weights that share a scale in the recipe's own format.
    """
    layers = tuple(layers)
    names = tuple(layer.name for layer in layers)
    if text := unlearned(recipe, layers):
        yield text
    if not recipe.keep or not names:
        return
    for each in recipe.keep:
        if each.format in finer(recipe.format) and group and (size := FORMATS[each.format].group) and size >= group:
            yield f"{each.format} has groups of {size}, no smaller than the recipe's own of {group}."
        for wildcard in each.layers:
            if not any(fnmatchcase(name, wildcard) for name in names):
                yield f"keep names {wildcard}, and no quantized layer is called that."
    for together in groups(names):
        if len({recipe.format_of(name) for name in together}) > 1:
            yield f"keep tears {', '.join(together)} apart, which runtimes fuse. Keep all of them or none."


WIDER = 10
"""Times the recipe's samples that compensated rounding reads, where the set has so many: one pass, while AWQ's search
over the recipe's own takes twelve."""


def unlearned(recipe: Recipe, layers: Iterable[Named]) -> str:
    """Why compensated rounding has too little text for these layers; empty where it has enough. What fewer tokens than
    inputs show of them is mostly chance, and rounding by it loses more than it saves."""
    widest = max((layer.inputs for layer in layers), default=0)
    text = recipe.calibration
    tokens = WIDER * text.samples * text.length if text else 0
    if recipe.rounding != "compensated" or tokens >= widest:
        return ""
    return (
        f"compensated rounding learns from the calibration text what {widest:,} inputs do together, and {tokens:,} "
        f"tokens are fewer. Calibrate on several times {widest:,}, or write rounding: nearest."
    )


def unserved(recipe: Recipe) -> str:
    """What the plan says of a mixture that no server loads; empty otherwise. vLLM's way in converts one format."""
    words = (recipe.format, *others(recipe))
    lacking = [word for word in words if not FORMATS[word].trtllm]
    if len(words) == 1 or not lacking:
        return ""
    return (
        f"No server is known here that loads {' and '.join(words)} in one checkpoint (TensorRT-LLM has nothing for "
        f"{' and '.join(lacking)}). Engine torch scores it."
    )


def bits(recipe: Recipe, layers: Iterable[tuple[str, int, int]], group: int) -> float:
    """Stored bits a weight, the mean of `layers` (name, outputs, inputs) where some are kept in another format."""
    if not recipe.keep:
        return FORMATS[recipe.format].weight_bits(group)
    stored = weights = 0
    for name, outputs, inputs in layers:
        rules = FORMATS[recipe.format_of(name)]
        stored += rules.layer_bits(outputs, inputs, group if rules.grouped else None)
        weights += outputs * inputs
    return round(stored / max(weights, 1), 3)
