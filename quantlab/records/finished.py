"""A checkpoint that somebody else quantized and published: what its own files say of it.

Whoever made it chose the method and the calibration text, and the files keep neither. So this record holds what can be
known (place, producer, layout, layers, bits) and everything else about it is a measurement.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Layout = Literal["modelopt", "compressed-tensors", "autoawq", "gptq", "fp8", "unknown"]
"""Whose way of laying codes and scales into tensors it is."""
PRESET = "made elsewhere"
"""In the place of a preset, in the recipe of a finished checkpoint: something is quantized, and not by us."""
OTHER: Literal["other"] = "other"
"""Format of a layout that no code of quantlab computes; an engine that takes the folder as it is may."""


class Finished(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was recognised, from config and safetensors headers alone."""

    place: str
    """Hub id, or the folder's own name."""
    layout: Layout
    algorithm: str
    """As its files say it, e.g. "W4A16_AWQ" or "pack-quantized int4 group 128"."""
    format: str
    """The word of quantlab's own vocabulary that computes the same; OTHER where there is none."""
    commit: str = ""
    """Of the hub; empty for a folder."""
    producer: str = ""
    """Program that wrote it, as far as its files say."""
    version: str = ""
    """Of that program."""
    group_size: int | None = None
    """Weights that share a scale, where there are groups."""
    kv_cache: Literal["none", "fp8"] = "none"
    """Precision of the key/value cache."""
    layers: tuple[str, ...] = ()
    """Quantized linear layers, under the model's names."""
    plain: tuple[str, ...] = ()
    """Linear layers that stayed in 16 bit, the output head among them."""
    formats: tuple[str, ...] = ()
    """Formats of the layers, the most frequent first."""
    bits_per_weight: float = 0.0
    """Stored bits of the quantized layers, scales included, over their number of weights."""
    unknown: str = ""
    """What of it quantlab does not compute, in words; empty where it computes all."""

    @property
    def maker(self) -> str:
        """ "modelopt 0.47.0" """
        return f"{self.producer} {self.version}".strip() or "a program that its files do not name"

    @property
    def provenance(self) -> str:
        """The sentence that stands wherever its numbers stand."""
        where = f"{self.place}, commit {self.commit[:12]}" if self.commit else self.place
        return f"made elsewhere: {where}, by {self.maker}; calibration unknown."
