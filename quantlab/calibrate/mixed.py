"""Layers in two formats: calibrated one format after the other, and said in the file that TensorRT-LLM reads.

ModelOpt's algorithm holds for the whole model: AWQ would search scales for layers kept in FP8 as well, and fold them
into norms. So the kept layers take their ranges first, with everything else switched off, which is what a recipe of
their own would do; then they are switched off and the recipe's own algorithm runs. Both see 16-bit inputs, as every
layer does while ModelOpt calibrates, so that each layer comes out as in a recipe of one format, bit for bit. The search
of docs/repair.md stands on that. Layers kept in smaller groups of the recipe's own format go through its algorithm with
the others: AWQ searches each layer by itself, whatever its groups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from quantlab import disk
from quantlab.calibrate.feed import Feed
from quantlab.formats.declared import MIXED
from quantlab.records import Recipe
from quantlab.records.formats import finer

FOR_TRTLLM = "quant_cfg.json"
"""Where TensorRT-LLM looks for the layers of a mixed checkpoint."""


def calibrate(
    model: nn.Module,
    recipe: Recipe,
    quantizers: Sequence[str],
    algorithm: Any,
    feed: Feed | None,
    run: Callable[..., Any],
) -> None:
    """Calibrate all quantizers, those of kept layers apart from the others.

    Args:
        quantizers: names of the enabled ones.
        algorithm: the recipe's own; kept layers take the largest magnitude.
        run: ModelOpt's `calibrate`.
    """
    own = set(of_own_kind(recipe, map(layer_of, quantizers)))
    kept = [name for name in quantizers if layer_of(name) not in own]
    if kept:
        seeing = feed is not None and any(name.endswith("input_quantizer") for name in kept)
        ranges = Feed(feed.batches, "max", feed.reporter) if feed is not None and seeing else None
        with off(model, [name for name in quantizers if name not in set(kept)]):
            run(model, "max", forward_loop=ranges)
    with off(model, kept):
        run(model, algorithm, forward_loop=feed)


def of_own_kind(recipe: Recipe, layers: Iterable[str]) -> tuple[str, ...]:
    """The layers in the recipe's own format, in groups of whatever size."""
    own = (recipe.format, *finer(recipe.format))
    return tuple(layer for layer in layers if recipe.format_of(layer) in own)


def layer_of(quantizer: str) -> str:
    """The layer that a quantizer belongs to; a W4A8 weight has two in a row."""
    return quantizer.rpartition("_quantizer")[0].rpartition(".")[0]


@contextmanager
def off(model: nn.Module, quantizers: Sequence[str]) -> Iterator[None]:
    """These quantizers do nothing meanwhile."""
    found: list[Any] = [model.get_submodule(name) for name in quantizers]
    for quantizer in found:
        quantizer.disable()
    try:
        yield
    finally:
        for quantizer in found:
            quantizer.enable()


def say(folder: Path) -> None:
    """Write the layers of a mixed export where TensorRT-LLM looks for them; nothing for any other."""
    words = json.loads((folder / "hf_quant_config.json").read_text(encoding="utf-8"))["quantization"]
    if words.get("quant_algo") == MIXED:
        kept = {key: words.get(key) for key in ("kv_cache_quant_algo", "quantized_layers")}
        disk.write(folder / FOR_TRTLLM, json.dumps({"quant_algo": MIXED, **kept}, indent=4).encode())
