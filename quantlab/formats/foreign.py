"""What checkpoints of other programs say of themselves: compressed-tensors, AutoAWQ, GPTQ, and older FP8 files.

Config and tensors must tell the same story, layer by layer, because engines believe the config and compute with the
tensors: a layer that is quantized and stands in `ignore` loads as noise in one engine and not at all in the next. So
the layers are taken from the headers, and every contradiction with the config is Broken, with its name.

Nothing here imports an SDK.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from quantlab import weights
from quantlab.errors import Broken, Refused
from quantlab.formats import names
from quantlab.formats.declared import MIXED, Quantization, read_quantization
from quantlab.formats.schemes import ignored, matches, scheme
from quantlab.records.finished import Layout

HF_QUANT = "hf_quant_config.json"
LAYOUTS: dict[str, Layout] = {
    "modelopt": "modelopt",
    "compressed-tensors": "compressed-tensors",
    "awq": "autoawq",
    "gptq": "gptq",
    "fp8": "fp8",
}
"""quant_method -> layout."""
HOPELESS = {
    "bitsandbytes": "bitsandbytes rounds while it loads, in kernels of its own, and no server is made for it",
    "gguf": "GGUF is llama.cpp's file",
}
"""quant_method -> why nothing here takes it."""
CODES = {"compressed-tensors": ("weight_packed", "weight"), "autoawq": ("qweight",), "gptq": ("qweight",),
         "fp8": ("weight",), "modelopt": ("weight",)}  # fmt: skip
"""Layout -> what the tensor of a layer's codes is called."""
KEPT = re.compile(r"embed|lm_head|norm|vision|visual|projector|rotary", re.I)
"""Matrices that may stay in 16 bit without being named."""


def declared(folder: str | Path) -> dict[str, Any]:
    """`quantization_config` of config.json, also under its name of 2024; empty where there is none."""
    config = weights.config(folder)
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    for place in (config, inner or {}):
        for name in ("quantization_config", "compression_config"):
            if isinstance(place.get(name), dict) and place[name]:
                return dict(place[name])
    return {}


def layout_of(folder: str | Path) -> Layout | None:
    """Whose layout it is; None for 16-bit weights.

    Raises:
        Refused: a method that nothing here takes.
    """
    said = declared(folder)
    own = (Path(folder) / HF_QUANT).is_file()
    if not said:
        return "modelopt" if own else None
    method = str(said.get("quant_method", "modelopt"))
    if method.startswith("bitsandbytes") or method in HOPELESS:
        why = HOPELESS[method if method in HOPELESS else "bitsandbytes"]
        cure = "Start from the 16-bit weights with a recipe (quantlab ls recipes)."
        raise Refused(f"quantized by {method}: {why}.", place=str(folder), cure=cure)
    return LAYOUTS.get(method, "unknown")


def quantization_of(folder: str | Path) -> Quantization:
    """What a checkpoint of any layout says, its layers named where it is not ModelOpt's.

    Raises:
        Refused: a method that nothing here takes, or of ModelOpt's an algorithm that is not known.
        Broken: the config contradicts itself or the tensors.
    """
    layout = layout_of(folder)
    if layout in (None, "modelopt"):
        return read_quantization(folder)
    said, tensors = declared(folder), names.headers(folder)
    if layout == "unknown":
        return Quantization(MIXED, layout=layout, unknown=f"quant_method {said.get('quant_method')}")
    found, unknown = _READ[layout](folder, said, tensors)
    cache, odd = _cache(said)
    return Quantization(MIXED, None, cache, (), found, layout, unknown or odd)


def coded(layer: str, layout: str, tensors: Container[str]) -> str | None:
    """The tensor that holds the codes of a quantized layer; None where the layer is not quantized."""
    for part in CODES.get(layout, ("weight",)):
        name = f"{layer}.{part}"
        if name in tensors and (part != "weight" or f"{layer}.weight_scale" in tensors):
            return name
    return None


def linear(tensors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Layers with a matrix, quantized or not, in the order of their names."""
    parts = (".weight", ".weight_packed", ".qweight")
    found = {n.rpartition(".")[0] for n, one in tensors.items() if n.endswith(parts) and len(one["shape"]) == 2}
    return sorted(found)


def _compressed(folder: Any, said: Mapping[str, Any], tensors: dict[str, dict[str, Any]]) -> _Read:
    """By `config_groups`; the most exact target of a layer counts."""
    groups = said.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(one, dict) for one in groups.values()):
        raise Broken("names no config_groups.", place=f"{folder}, quantization_config", cure="Fetch it again.")
    written = str(said.get("format", "pack-quantized"))
    odd = _odd_compressed(said)
    layers: dict[str, Quantization] = {}
    for layer in linear(tensors):
        held = coded(layer, "compressed-tensors", tensors)
        fit = max(groups.values(), key=lambda one: matches(layer, one.get("targets")))
        meant = matches(layer, fit.get("targets")) > 0 and not ignored(layer, said.get("ignore"))
        _agree(folder, layer, held is not None, meant)
        if held is not None:
            key, words = scheme(fit, str(fit.get("format") or written))
            odd = odd or ("" if key else words)
            layers[layer] = Quantization(key or words, (fit["weights"] or {}).get("group_size") or None)
    return layers, odd


def _odd_compressed(said: Mapping[str, Any]) -> str:
    sparse = said.get("sparsity_config")
    if isinstance(sparse, dict) and sparse.get("format", "dense") != "dense":
        return f"sparse weights ({sparse['format']})"
    if said.get("transform_config"):
        return "rotations that are applied while it runs (transform_config)"
    return ""


def _autoawq(folder: Any, said: Mapping[str, Any], tensors: dict[str, dict[str, Any]]) -> _Read:
    key, bits, version = "AWQ_GEMM", said.get("bits", said.get("w_bit", 4)), str(said.get("version", "gemm")).lower()
    odd = "" if (bits, version) == (4, "gemm") else f"AWQ with {bits} bits in layout {version}"
    size = said.get("group_size", said.get("q_group_size"))
    return _packed(folder, key, size, said.get("modules_to_not_convert"), tensors, "autoawq"), odd


def _gptq(folder: Any, said: Mapping[str, Any], tensors: dict[str, dict[str, Any]]) -> _Read:
    bits, written = said.get("bits"), str(said.get("checkpoint_format", "gptq"))
    odd = "" if bits in (4, 8) and written in ("gptq", "gptq_v2") else f"GPTQ with {bits} bits in layout {written}"
    odd = odd or ("GPTQ with settings of single layers" if said.get("dynamic") else "")
    key = f"GPTQ_{bits}" if written == "gptq" else f"GPTQ_V2_{bits}"
    return _packed(folder, key, said.get("group_size"), None, tensors, "gptq"), odd


def _old_fp8(folder: Any, said: Mapping[str, Any], tensors: dict[str, dict[str, Any]]) -> _Read:
    """AutoFP8's files of 2024; the same word now also means blocks of 128 x 128."""
    when, block = said.get("activation_scheme"), said.get("weight_block_size")
    odd = (
        ""
        if when == "static" and not block
        else f"FP8 with {when} inputs" + (f" in blocks of {block}" if block else "")
    )
    if odd:
        return {}, odd
    left = [str(name) for name in said.get("ignored_layers") or said.get("modules_to_not_convert") or ()]
    layers = {}
    for layer in linear(tensors):
        held = coded(layer, "fp8", tensors) is not None
        _agree(folder, layer, held, not any(layer == name or layer.endswith(f".{name}") for name in left))
        if held:
            layers[layer] = Quantization("FP8")
    return layers, ""


def _packed(
    folder: Any, key: str, size: Any, left: Any, tensors: dict[str, dict[str, Any]], layout: str
) -> dict[str, Quantization]:
    """AutoAWQ and GPTQ quantize the linear layers of the decoder; AutoAWQ's exceptions are parts of names."""
    words = [str(word) for word in left] if isinstance(left, list) else []
    layers = {}
    for layer in linear(tensors):
        held = coded(layer, layout, tensors) is not None
        _agree(folder, layer, held, not any(word in layer for word in words))
        if held:
            layers[layer] = Quantization(key, size if isinstance(size, int) and size > 0 else None)
    return layers


def _agree(folder: Any, layer: str, held: bool, meant: bool) -> None:
    """Raises Broken where config and tensors differ about a layer."""
    if held == meant or (not held and KEPT.search(layer)):
        return
    says, is_ = ("quantized", "16 bit") if meant else ("16 bit", "quantized")
    raise Broken(
        f"its config says {says} of {layer}, and its tensors are {is_}.",
        place=str(folder),
        cure="An engine would compute noise or nothing: ask whoever published it, or take another checkpoint.",
    )


def _cache(said: Mapping[str, Any]) -> tuple[str | None, str]:
    """(key/value cache, what of it is not known here)."""
    words = said.get("kv_cache_scheme")
    if not isinstance(words, dict):
        return None, ""
    kind = words.get("type"), words.get("num_bits"), words.get("strategy", "tensor"), bool(words.get("dynamic"))
    if kind == ("float", 8, "tensor", False):
        return "FP8", ""
    return None, f"a key/value cache in {kind[0]}{kind[1]} {kind[2]}"


_Read = tuple[dict[str, Quantization], str]
"""Layers, and what of them is unknown."""
_READ: dict[str, Any] = {"compressed-tensors": _compressed, "autoawq": _autoawq, "gptq": _gptq, "fp8": _old_fp8}


def count(tensor: Mapping[str, Any]) -> int:
    """Numbers in a tensor of a header."""
    return math.prod(tensor["shape"])
