"""compressed-tensors' words for how a layer is quantized -> the reader that computes it.

config.json of such a checkpoint has `config_groups`: each names layers by `targets` (a module's class, a name, or "re:"
and a pattern) and says how their weights and input activations are rounded. What vLLM reads there decides which kernel
runs, so nothing is guessed: a scheme that is not in this table is unknown, by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SCHEMES: dict[tuple[str, str], str] = {
    ("float8 tensor", "float8 tensor static"): "FP8",
    ("float8 channel", "float8 tensor static"): "FP8",
    ("float8 channel", "float8 token dynamic"): "FP8_PER_CHANNEL_PER_TOKEN",
    ("float8 tensor", "float8 token dynamic"): "FP8_PER_TENSOR_PER_TOKEN",
    ("int8 channel", "int8 token dynamic"): "INT8_PER_CHANNEL_PER_TOKEN",
    ("int8 channel", "int8 tensor static"): "W8A8_SQ_PER_CHANNEL",
    ("int4 group", "16 bit"): "PACKED_4",
    ("int4 channel", "16 bit"): "PACKED_4",
    ("int8 group", "16 bit"): "PACKED_8",
    ("int8 channel", "16 bit"): "PACKED_8",
    ("float4 tensor_group", "float4 tensor_group dynamic"): "NVFP4_PACKED",
}
"""(weights, input activations) -> key of a reader."""
FORMAT_OF = {"int-quantized": {"PACKED_8": "W8A16"}}
"""`format` of the file where it changes the tensors: int8 codes lie as they are instead of packed."""


def scheme(group: Mapping[str, Any], written: str) -> tuple[str, str]:
    """One of `config_groups`.

    Args:
        group: with `weights` and `input_activations`.
        written: the file's `format`, e.g. "pack-quantized".

    Returns:
        (key of a reader or "", the scheme in words).
    """
    weights, inputs = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, dict):
        return "", "weights in 16 bit"
    first, second = _weights(weights), _inputs(inputs)
    said = f"{first}{_group(weights)} weights, {second} inputs"
    odd = _odd(weights, inputs, group.get("output_activations"), written)
    key = "" if odd else SCHEMES.get((first, second), "")
    return FORMAT_OF.get(written, {}).get(key, key), said + (f", {odd}" if odd else "")


def _weights(said: Mapping[str, Any]) -> str:
    return f"{said.get('type', 'int')}{said.get('num_bits', 8)} {said.get('strategy') or 'tensor'}"


def _group(said: Mapping[str, Any]) -> str:
    size = said.get("group_size")
    return f" {size}" if said.get("strategy") in ("group", "tensor_group") and size else ""


def _inputs(said: Any) -> str:
    if not isinstance(said, dict):
        return "16 bit"
    when = "dynamic" if said.get("dynamic") else "static"
    return f"{_weights(said)} {when}"


def _odd(weights: Mapping[str, Any], inputs: Any, outputs: Any, written: str) -> str:
    """What changes the arithmetic beyond the table."""
    if isinstance(outputs, dict):
        return "rounded outputs"
    if isinstance(inputs, dict) and inputs.get("symmetric") is False:
        return "asymmetric inputs"
    if weights.get("symmetric") is False and written != "pack-quantized":
        return "asymmetric weights"
    if weights.get("dynamic"):
        return "weights rounded while loading"
    return "" if written in WRITTEN else f"format {written}"


WRITTEN = ("float-quantized", "int-quantized", "pack-quantized", "nvfp4-pack-quantized", "naive-quantized")
"""Formats of a file that are read here; sparse ones and others are not."""


def matches(layer: str, targets: Any) -> int:
    """How closely `targets` name a layer: 3 by its name, 2 by a pattern, 1 by its class, 0 not at all."""
    best = 0
    for target in targets if isinstance(targets, list) else []:
        word = str(target)
        if word == layer:
            return 3
        if word.startswith("re:") and re.match(word[3:], layer):
            best = max(best, 2)
        elif word == "Linear":
            best = max(best, 1)
    return best


def ignored(layer: str, words: Any) -> bool:
    """`ignore`: names of modules, or patterns."""
    return any(
        re.match(str(word)[3:], layer) is not None if str(word).startswith("re:") else str(word) == layer
        for word in (words if isinstance(words, list) else [])
    )
