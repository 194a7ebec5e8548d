"""The linear layers of a model and the group size that divides them, from dimensions alone.

A scale of INT4 belongs to a group of weights along a layer's input. The width must be a multiple of the
group, and ModelOpt says so only after it has calibrated. Widths come from the safetensors headers when the
weights are here, otherwise from the seven layers that every Llama layer has.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from quantlab import weights
from quantlab.records import FORMATS, Model, Recipe, Shape, Suite

OWN_GROUP = 128
"""Group size of ModelOpt's INT4 presets."""
GROUPS = (128, 64, 32, 16)
"""Group sizes that kernels know; the largest that divides every layer is taken."""
KEPT = re.compile(r"embed|lm_head|norm|vision|visual|projector|router|\bwte\b|\bwpe\b|image_newline", re.I)
"""Two-dimensional weights that ModelOpt's presets leave in 16 bit."""


class Layer(msgspec.Struct, frozen=True):
    """A linear layer that the recipe quantizes."""

    name: str
    outputs: int
    inputs: int


class Sizes(msgspec.Struct, frozen=True):
    """What the arithmetic needs."""

    layers: tuple[Layer, ...]
    """Quantized by the recipe."""
    total: int
    """All weights; 0 where unknown."""
    shape: Shape | None


def sizes(model: Model, path: Path | None, recipe: Recipe) -> Sizes:
    """The layers that `recipe` quantizes and the number of all weights.

    Args:
        model: for its dimensions, where `path` is None.
        path: directory with safetensors; only their headers are read.
        recipe: its overrides may switch layers off.

    Raises:
        BadInput, Broken: `path` holds no weights, or damaged ones.
    """
    tensors = weights.shapes(path) if path else {}
    linear = list(_from_headers(tensors) if tensors else _from_shape(model.shape))
    total = sum(math.prod(each) for each in tensors.values()) or model.parameters or 0
    if not total and model.shape:
        embedding = model.shape.vocabulary * model.shape.hidden * (1 if model.shape.tied else 2)
        total = embedding + sum(each.outputs * each.inputs for each in linear)
    chosen = [each for each in linear if recipe.preset and _enabled(each.name, recipe)]
    return Sizes(tuple(chosen), total, model.shape)


def _from_headers(tensors: Mapping[str, tuple[int, ...]]) -> Iterator[Layer]:
    for name, shape in sorted(tensors.items()):
        if len(shape) == 2 and name.endswith(".weight") and not KEPT.search(name):
            yield Layer(name.removesuffix(".weight"), shape[0], shape[1])


def _from_shape(shape: Shape | None) -> Iterator[Layer]:
    """The seven linear layers of each decoder layer of a Llama."""
    if shape is None:
        return
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    widths = {
        "self_attn.q_proj": (queries, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, queries),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
    }
    for index in range(shape.layers + shape.cross_layers):
        for name, (outputs, inputs) in widths.items():
            yield Layer(f"model.layers.{index}.{name}", outputs, inputs)


def _enabled(name: str, recipe: Recipe) -> bool:
    """The last override that matches the layer's weight decides."""
    on = True
    for each in recipe.overrides:
        if each.enable is not None and fnmatch.fnmatchcase(f"{name}.weight_quantizer", each.quantizer):
            on = each.enable
    return on


def too_long(suite: Suite | None, shape: Shape | None) -> Iterator[str]:
    """Windows of the held-out text that the model cannot take; prompts are known only when they are tokenized."""
    asked = suite.fidelity if suite else None
    if asked and shape and asked.length > shape.context:
        yield (
            f"the suite's windows of {asked.length:,} tokens are longer than the model's context of "
            f"{shape.context:,}. Take a suite with shorter windows."
        )


def _blocks(form: str, block: int, layers: tuple[Layer, ...]) -> Iterator[str]:
    """Formats with blocks of their own leave no choice."""
    bad = [each for each in layers if each.inputs % block]
    if bad:
        widths = ", ".join(str(width) for width in sorted({each.inputs for each in bad}))
        yield (
            f"{form} has blocks of {block}, and {block} does not divide the input width {widths} of {len(bad)} layers "
            f"(first: {bad[0].name}). Use fp8, which has no groups."
        )


def group_size(recipe: Recipe, layers: tuple[Layer, ...]) -> tuple[int | None, list[str], list[str]]:
    """The group size that will be used (None without groups, or when refused), notes and refusals."""
    asked, own = recipe.group_size, FORMATS[recipe.format].group
    if asked is None:
        return None, [], list(_blocks(recipe.format, own, layers)) if own else []
    wanted = asked if isinstance(asked, int) else OWN_GROUP
    layers = tuple(each for each in layers if FORMATS[recipe.format_of(each.name)].grouped)
    bad = [each for each in layers if each.inputs % wanted]
    if not bad:
        return wanted, [], []
    widths = sorted({each.inputs for each in bad})
    shown = ", ".join(str(width) for width in widths)
    reason = f"{wanted} does not divide the input width {shown} of {len(bad)} layers (first: {bad[0].name})"
    best = next((size for size in GROUPS if all(each.inputs % size == 0 for each in layers)), None)
    if asked == "auto" and best:
        note = f"group_size auto: {reason}, so {best} is used, the largest that does."
        return best, [note, f"TensorRT-LLM's own tests use groups of {OWN_GROUP} only."], []
    cure = f"Use group_size: auto (takes {best})." if best else "Use fp8, which has no groups."
    return None, [], [f"group_size {asked}: {reason}. {cure}"]


def distribution_bytes(suite: Suite) -> int:
    """The baseline's kept log-probabilities: a 4-byte token id and a 4-byte float for each of the top k."""
    if (asked := suite.fidelity) is None:
        return 0
    return asked.windows * (asked.length - asked.burn_in) * asked.top_k * 8
