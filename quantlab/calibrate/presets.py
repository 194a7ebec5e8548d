"""A recipe -> ModelOpt's configuration: a preset with the group size, the overrides and the cache put in.

ModelOpt applies the entries of `quant_cfg` in order, and an entry with a `cfg` replaces everything the quantizer had
and switches it on. So an override appended as "*weight_quantizer" would switch the output head on, which the preset had
switched off further down. Here an override of numbers whose wildcard the preset has already changes that entry in its
place, and keeps what it does not name; any other is appended, on top of the cfg of its kind. A mere switch is appended.
"""

from __future__ import annotations

import copy
import difflib
from typing import Any

from quantlab.errors import BadInput
from quantlab.records import FORMATS, Keep, QuantizerOverride, Recipe
from quantlab.records.formats import finer

Entry = dict[str, Any]


def configuration(recipe: Recipe, group_size: int | None, presets: dict[str, Any]) -> dict[str, Any]:
    """What `mtq.quantize` takes.

    Args:
        recipe: with a preset.
        group_size: resolved by the plan; None keeps the preset's own.
        presets: ModelOpt's configurations by name.

    Raises:
        BadInput: no such preset, or an override that says nothing.
    """
    name = str(recipe.preset)
    if name not in presets:
        close = difflib.get_close_matches(name.upper(), presets, n=3)
        cure = f"Did you mean {' or '.join(close)}?" if close else "See modelopt.torch.quantization for the names."
        raise BadInput(f"ModelOpt has no preset {name!r}.", place="recipe, field preset", cure=cure)
    config: dict[str, Any] = copy.deepcopy(presets[name])
    entries: list[Entry] = config["quant_cfg"]
    size = FORMATS[recipe.format].group if recipe.format in finer("int4_awq") else group_size
    if size is not None:
        _regroup(entries, size)
    for override in recipe.overrides:
        _override(entries, override)
    for kept in recipe.keep:
        entries += _kept(kept, presets)
    if recipe.kv_cache == "fp8":
        entries += copy.deepcopy(presets["FP8_KV_CFG"]["quant_cfg"])
    return config


KEPT = {
    "fp8": "FP8_DEFAULT_CFG",
    "int8_wo": "INT8_WEIGHT_ONLY_CFG",
    **dict.fromkeys(finer("int4_awq"), "INT4_AWQ_CFG"),
}
"""Format in which layers are kept -> the preset that says what their quantizers do."""


def _kept(kept: Keep, presets: dict[str, Any]) -> list[Entry]:
    """Entries for the layers of one `keep`: their quantizers off (16 bit), or as another preset has them."""
    if kept.format not in KEPT:
        return [{"quantizer_name": f"{layer}.*quantizer", "enable": False} for layer in kept.layers]
    theirs = copy.deepcopy(presets[KEPT[kept.format]]["quant_cfg"])
    if (size := FORMATS[kept.format].group) is not None:
        _regroup(theirs, size)
    kinds = {kind: _ground(theirs, kind) for kind in ("weight_quantizer", "input_quantizer")}
    return [
        {"quantizer_name": f"{layer}.{kind}", "enable": bool(cfg)} | ({"cfg": copy.deepcopy(cfg)} if cfg else {})
        for layer in kept.layers
        for kind, cfg in kinds.items()
    ]


def method(config: dict[str, Any]) -> str:
    """Name of the calibration algorithm."""
    algorithm = config.get("algorithm")
    return str(algorithm["method"]) if isinstance(algorithm, dict) else str(algorithm)


def _regroup(entries: list[Entry], size: int) -> None:
    """Static groups along the input width only; the 16 of NVFP4 and the tiles of 2-D blocks belong to the format."""
    for entry in entries:
        cfg = entry.get("cfg")
        for one in cfg if isinstance(cfg, list) else [cfg]:
            blocks = (one or {}).get("block_sizes") or {}
            if -1 in blocks and -2 not in blocks and blocks.get("type", "static") == "static":
                blocks[-1] = size


def _override(entries: list[Entry], override: QuantizerOverride) -> None:
    cfg: Entry = {}
    if override.num_bits is not None:
        cfg["num_bits"] = override.num_bits
    if override.axis is not None:
        cfg |= {"axis": override.axis, "block_sizes": None}
    if override.block_size is not None:
        cfg |= {"axis": None, "block_sizes": {-1: override.block_size, "type": "static"}}
    if not cfg and override.enable is None:
        place = f"recipe, override {override.quantizer}"
        raise BadInput("it changes nothing.", place=place, cure="Set enable, num_bits, axis or block_size.")
    if not cfg:
        entries.append({"quantizer_name": override.quantizer, "enable": override.enable})
        return
    same = [each for each in entries if each["quantizer_name"] == override.quantizer and "parent_class" not in each]
    target: Entry = same[-1] if same else {"quantizer_name": override.quantizer}
    target["cfg"] = {**_ground(entries, override.quantizer), **cfg}
    target["enable"] = override.enable is not False
    if not same:
        entries.append(target)


def _ground(entries: list[Entry], quantizer: str) -> Entry:
    """The cfg that the preset gives to quantizers of this kind (weight or input)."""
    kind = next((kind for kind in ("weight_quantizer", "input_quantizer") if quantizer.endswith(kind)), None)
    same = [each.get("cfg") for each in entries if kind and each["quantizer_name"].endswith(kind)]
    fitting = [cfg for cfg in same if isinstance(cfg, dict)]
    return copy.deepcopy(fitting[-1]) if fitting else {}
