"""Layers of a recipe in another format than its own."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

import msgspec


class Keep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Layers of a recipe that are stored in more bits than its others: mixed precision."""

    format: Literal["bf16", "fp8", "int8_wo", "int4_awq_g64", "int4_awq_g32"]
    """bf16: they stay as they are. fp8: 8-bit floating point, weights and activations, one static scale a tensor.
    int8_wo: 8-bit integer weights, a scale a row; activations stay in 16 bit. int4_awq_g64, _g32: in a recipe of
    int4_awq, its own codes in smaller groups: a scale for 64 or 32 weights."""
    layers: tuple[str, ...]
    """Names or wildcards of layers, e.g. "model.layers.0.mlp.down_proj". Layers that a runtime fuses (q, k and v; gate
    and up) can only be kept together."""

    def holds(self, layer: str) -> bool:
        """`layer` is one of them."""
        return any(fnmatchcase(layer, wildcard) for wildcard in self.layers)
