"""What a checkpoint says of itself: hf_quant_config.json, which TensorRT-LLM reads, and config.json, which others read.

Round-to-nearest int4 is written as W4A16_AWQ too, with `pre_quant_scale: true` and no such tensor, so these words
choose a reader and no more: what a layer has is decided by its tensors (readers.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from quantlab.errors import Broken, Refused
from quantlab.formats import names
from quantlab.records import FORMATS
from quantlab.records.finished import Layout

ALGORITHMS = tuple(dict.fromkeys(word for each in FORMATS.values() for word in each.algorithms if word))
"""Values of quant_algo that quantlab computes with."""
MIXED = "MIXED_PRECISION"
"""quant_algo of a checkpoint whose layers have several; `quantized_layers` says which has which."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a checkpoint says it is quantized."""

    algorithm: str | None
    """One of ALGORITHMS, MIXED, or None: 16-bit weights."""
    group_size: int | None = None
    """Weights that share a scale; None where the file does not say."""
    kv_cache: str | None = None
    """"FP8" or None."""
    excluded: tuple[str, ...] = ()
    """Names or wildcards of layers that are not quantized."""
    layers: Mapping[str, Quantization] = field(default_factory=dict)
    """Of a mixed checkpoint: its quantized layers, each with its own words."""
    layout: Layout = "modelopt"
    """Whose tensors these are; others than ModelOpt's name every layer, as a mixed checkpoint does (foreign.py)."""
    unknown: str = ""
    """What of it no reader here computes, in words."""

    def of(self, layer: str) -> Quantization:
        """How one quantized layer is quantized."""
        return self.layers[layer] if self.algorithm == MIXED else self

    def excludes(self, layer: str) -> bool:
        """A bare name means the module and all below it; wildcards match as in a shell."""
        if self.algorithm == MIXED:
            return layer not in self.layers
        return any(fnmatchcase(layer, word) or layer.startswith(f"{word}.") for word in self.excluded)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Broken(f"cannot be read as JSON ({error}).", place=str(path), cure="Export it again.") from None
    return found if isinstance(found, dict) else {}


def read_quantization(folder: str | Path) -> Quantization:
    """What hf_quant_config.json and config.json say.

    Raises:
        Refused: an algorithm or a format that quantlab does not compute with.
        Broken: the two files contradict each other, or are not JSON.
    """
    folder = Path(folder)
    own = _json(folder / "hf_quant_config.json").get("quantization") or {}
    theirs = _json(folder / "config.json").get("quantization_config") or {}
    method = theirs.get("quant_method", "modelopt")
    if method != "modelopt":
        raise Refused(
            f"quantized by {method!r}, not by ModelOpt.", place=str(folder), cure="Start from 16-bit weights."
        )
    said = {str(part.get("quant_algo")) for part in (own, theirs) if part}
    if len(said) > 1:
        raise Broken(
            f"hf_quant_config.json and config.json name different algorithms: {', '.join(sorted(said))}.",
            place=str(folder),
            cure="Export it again.",
        )
    algorithm, kv_cache = own.get("quant_algo", theirs.get("quant_algo")), _kv_cache(own, theirs)
    layers = _layers(own, theirs, names.of(folder)) if algorithm == MIXED else {}
    unknown = {each.algorithm for each in layers.values()} - set(ALGORITHMS)
    algorithm = str(min(unknown, key=str)) if unknown else algorithm
    if algorithm not in (None, *ALGORITHMS, MIXED) or kv_cache not in (None, "FP8"):
        raise Refused(
            f"algorithm {algorithm} with a key/value cache in {kv_cache or '16 bit'} is not known here.",
            place=str(folder),
            cure=f"Known: {', '.join(ALGORITHMS)}, with a 16-bit or FP8 cache.",
        )
    excluded = own.get("exclude_modules") or theirs.get("ignore") or ()
    spelled = tuple(names.inside(name, names.of(folder)) for name in excluded)
    return Quantization(algorithm, own.get("group_size"), kv_cache, spelled, layers)


def _layers(own: dict[str, Any], theirs: dict[str, Any], architecture: str) -> dict[str, Quantization]:
    """Name in the model -> the words of one layer of a mixed checkpoint."""
    said = own.get("quantized_layers") or theirs.get("quantized_layers") or {}
    if not isinstance(said, dict) or not said or not all(isinstance(words, dict) for words in said.values()):
        raise Broken(
            "it says MIXED_PRECISION and not which layer has which precision.",
            place="hf_quant_config.json, field quantized_layers",
            cure="Export it again.",
        )
    return {
        names.inside(name, architecture): Quantization(words.get("quant_algo"), words.get("group_size"))
        for name, words in said.items()
    }


def _kv_cache(own: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    if own:
        return own.get("kv_cache_quant_algo")
    scheme = theirs.get("kv_cache_scheme")
    if isinstance(scheme, dict):
        return "FP8" if (scheme.get("num_bits"), scheme.get("type")) == (8, "float") else str(scheme)
    return scheme
