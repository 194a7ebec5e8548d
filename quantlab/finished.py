"""A checkpoint that somebody else made, recognised from its config and headers: what it is, and what it is not.

Many publish quantized Llamas, and few say what theirs cost. Before that is measured, three things can be known in
milliseconds and without an SDK: whose layout it is and which layers are in which format; whether config and tensors
agree (an engine believes the one and computes with the other); and whether it can be a quantization of the model that
it shall be compared with at all. Weights are compared later, in a child (calibrate/finished.py).

What can never be loaded is refused here by name: pickles, code of the repository, GGUF, bitsandbytes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantlab import weights
from quantlab.errors import BadInput, Broken, Refused
from quantlab.formats import names
from quantlab.formats.declared import MIXED, Quantization
from quantlab.formats.foreign import HF_QUANT, coded, count, declared, layout_of, linear, quantization_of
from quantlab.records import FORMATS, Checkpoint, Finished, Recipe, Weights
from quantlab.records.finished import OTHER, PRESET

FORMAT_OF = {
    "FP8_PER_TENSOR_PER_TOKEN": "fp8_rowwise",
    "PACKED_4": "int4",
    "PACKED_8": "int8_wo",
    "AWQ_GEMM": "int4_awq",
    **{f"GPTQ_{word}": form for word, form in (("4", "int4"), ("V2_4", "int4"), ("8", "int8_wo"), ("V2_8", "int8_wo"))},
    "NVFP4_PACKED": "nvfp4",
    **{
        str(word): form
        for form, each in reversed(FORMATS.items())  # of several forms of int4_awq the first
        if form not in ("bf16", "int4")
        for word in each.algorithms
    },
}
"""Key of a reader -> format. Int4 of ModelOpt is told apart by its tensors: without AWQ nothing was moved."""
PRODUCERS = {"compressed-tensors": "compressed-tensors", "autoawq": "AutoAWQ", "gptq": "GPTQ", "fp8": "AutoFP8"}
QUANTIZED = ("F8_E4M3", "F8_E5M2", "I8", "U8", "I32")
"""Types that no 16-bit checkpoint has."""
CACHE = re.compile(r"\.(k_scale|v_scale|kv_scale)$")

Headers = Mapping[str, Mapping[str, Any]]


def recognise(folder: str | Path, place: str, commit: str = "") -> Finished:
    """What a quantized checkpoint is.

    Args:
        folder: config.json, safetensors, tokenizer.
        place: hub id, or the folder's name.
        commit: of the hub.

    Raises:
        BadInput: it is no quantized checkpoint, or no whole model.
        Refused: it can be loaded by nothing here.
        Broken: a file is damaged, or config and tensors contradict each other.
    """
    folder = Path(folder)
    _require_loadable(folder)
    weights.check_folder(folder)
    tensors = names.headers(folder)
    layout = layout_of(folder)
    if layout is None:
        raise _plain(folder, tensors)
    said = quantization_of(folder)
    layers = _layers(folder, said, tensors)
    _require_cache(folder, said, tensors)
    forms = Counter() if said.unknown else Counter(_format(said.of(name), tensors) for name in layers)
    first = forms.most_common(1)[0][0] if forms else OTHER if said.unknown else "bf16"
    producer, version = _producer(folder, layout)
    return Finished(
        place=place,
        layout=layout,
        algorithm=_algorithm(folder, said),
        format=first,
        commit=commit,
        producer=producer,
        version=version,
        group_size=_group(folder, said, layers, tensors) if first in FORMATS and FORMATS[first].grouped else None,
        kv_cache="fp8" if said.kv_cache else "none",
        layers=tuple(layers),
        plain=tuple(name for name in linear(tensors) if name not in set(layers) and not re.search("embed", name)),
        formats=tuple(form for form, _ in forms.most_common()),
        bits_per_weight=round(_bits(layers, said, tensors), 3),
        unknown=said.unknown,
    )


def checkpoint(found: Finished, here: Weights, name: str, source_bytes: int) -> Checkpoint:
    """As every other checkpoint is described. `here`: its folder; `source_bytes`: of the model in 16 bit."""
    return Checkpoint(
        path=here.path,
        digest=here.digest,
        recipe=name,
        format=found.format,
        architecture=here.architecture,
        group_size=found.group_size,
        kept=found.formats[1:],
        kv_cache=found.kv_cache,
        bytes=here.bytes,
        source_bytes=source_bytes,
        bits_per_weight=found.bits_per_weight,
        layout=found.layout,
    )


def recipe(found: Finished) -> Recipe:
    """What stands in a run where other candidates have their recipe."""
    return Recipe(
        summary=f"{found.algorithm}, {found.provenance}",
        preset=PRESET,
        format=found.format,  # type: ignore[arg-type]
        kv_cache=found.kv_cache,
        group_size=found.group_size,
    )


def sentences(found: Finished, size: int = 0) -> list[str]:
    """What was recognised, for the plan."""
    groups = f", groups of {found.group_size}" if found.group_size else ""
    kept = f"; {len(found.plain)} linear layers in 16 bit ({_some(found.plain)})" if found.plain else ""
    what = f"{found.algorithm} in the layout of {found.layout}{groups}, KV cache {found.kv_cache}".replace(
        "cache none", "cache in 16 bit"
    )
    known = f"computed as {' and '.join(found.formats)}" if found.formats else f"not computed here: {found.unknown}"
    stored = f"{found.bits_per_weight:.2f} bits a quantized weight" + (f", {size / 1e9:,.2f} GB" if size else "")
    return [
        f"{found.provenance[:1].upper()}{found.provenance[1:]}",
        f"Recognised: {what}; {known}.",
        f"{len(found.layers)} layers quantized{kept}. {stored}.",
    ]


def _some(layers: tuple[str, ...]) -> str:
    return ", ".join(layers[:2]) + (" ..." if len(layers) > 2 else "")


def _require_loadable(folder: Path) -> None:
    """Raises for what is no safetensors checkpoint of transformers, by name."""
    if not list(folder.glob("*.safetensors")) and (found := sorted(folder.glob("*.gguf"))):
        raise Refused(
            f"{found[0].name} is GGUF, llama.cpp's file, which no engine here opens.",
            place=str(folder),
            cure="Judge it with llama.cpp, or give a safetensors checkpoint.",
        )
    config = weights.config(folder)
    if config.get("auto_map"):
        raise Refused(
            "it brings code of its own (auto_map in config.json), and code of a checkpoint is never run here.",
            place=str(folder),
            cure="Take a checkpoint of an architecture that transformers knows, or remove auto_map if it is one.",
        )
    if "quantization" in config and "quantization_config" not in config:
        raise Refused("it is MLX's layout.", place=str(folder), cure="Take a checkpoint for NVIDIA GPUs.")


def _plain(folder: Path, tensors: Headers) -> BadInput | Broken:
    """No word about quantization: 16 bit, or a config that hides something."""
    odd = [name for name, one in tensors.items() if one["dtype"] in QUANTIZED]
    if odd:
        return Broken(
            f"neither config.json nor {HF_QUANT} says how it is quantized, and {odd[0]} is {tensors[odd[0]]['dtype']}.",
            place=str(folder),
            cure="An engine would load it as 16 bit and compute noise. Fetch all of its files.",
        )
    return BadInput(
        "is in 16 bit, so there is nothing to judge.",
        place=str(folder),
        cure="Give a quantized checkpoint here, or this one with --model and recipes beside it.",
    )


def _layers(folder: Path, said: Quantization, tensors: Headers) -> list[str]:
    """Quantized layers; config and tensors must agree about each."""
    if said.algorithm is None:  # the key/value cache alone
        return []
    if said.layout != "modelopt":
        return sorted(said.layers) if said.layers else [n for n in linear(tensors) if coded(n, said.layout, tensors)]
    found = []
    for layer in linear(tensors):
        held = coded(layer, said.layout, tensors) is not None
        embeds = bool(re.search("embed|lm_head|norm", layer)) and not held
        if not embeds and held == said.excludes(layer):
            raise _lies(folder, f"says {'16 bit' if held else said.algorithm} of {layer}, and its tensors are not")
        if held:
            _require_codes(folder, said.of(layer), layer, tensors)
            found.append(layer)
    if not found and said.kv_cache is None:
        raise _lies(folder, f"says {said.algorithm}, and no layer has a scale")
    return found


def _require_codes(folder: Path, said: Quantization, layer: str, tensors: Headers) -> None:
    meant = {one.codes for one in FORMATS.values() if said.algorithm in one.algorithms}
    kind = tensors[f"{layer}.weight"]["dtype"]
    if kind not in meant:
        raise _lies(folder, f"says {said.algorithm}, and {layer}.weight is {kind}, not {' or '.join(sorted(meant))}")


def _require_cache(folder: Path, said: Quantization, tensors: Headers) -> None:
    """Scales of the key/value cache are there if and only if the config says so, in both of ModelOpt's files."""
    held = [name for name in tensors if CACHE.search(name)]
    scheme = declared(folder).get("kv_cache_scheme")
    if said.layout == "modelopt" and (folder / HF_QUANT).is_file() and scheme and said.kv_cache is None:
        raise _lies(folder, f"has a kv_cache_scheme and {HF_QUANT} says 16 bit, so engines will differ")
    if held and said.kv_cache is None and not said.unknown:
        raise _lies(folder, f"says nothing of a key/value cache in FP8, and {held[0]} is there")
    if said.kv_cache and not held:
        raise _lies(folder, "says FP8 of the key/value cache, and no scale of it is there: engines would take 1")


def _lies(folder: Path, what: str) -> Broken:
    cure = "Ask whoever published it, or take another checkpoint: an engine would compute noise, or something else."
    return Broken(f"its config {what}.", place=str(folder), cure=cure)


def _format(said: Quantization, tensors: Headers) -> str:
    """Round-to-nearest int4 says W4A16_AWQ too, and has no scale that AWQ moved."""
    if said.algorithm in FORMATS["int4"].algorithms:
        return "int4_awq" if any(name.endswith(".pre_quant_scale") for name in tensors) else "int4"
    return FORMAT_OF.get(str(said.algorithm), OTHER)


def _group(folder: Path, said: Quantization, layers: list[str], tensors: Headers) -> int | None:
    """Weights that share a scale: what the first layer's tensors say. A config that says otherwise is wrong."""
    found = {size for name in layers if (size := _width(name, said, tensors))}
    own = {said.of(name).group_size for name in layers} | {said.group_size} - {None, 0}
    stated = {size for size in own if size}
    if len(found) == 1 and stated and stated != found:
        raise _lies(folder, f"says groups of {min(stated)}, and the scales are those of groups of {min(found)}")
    return min(found) if len(found) == 1 else None


def _width(layer: str, said: Quantization, tensors: Headers) -> int | None:
    codes = coded(layer, said.layout, tensors)
    scale = tensors.get(f"{layer}.scales") or tensors.get(f"{layer}.weight_scale")
    if codes is None or scale is None or len(scale["shape"]) != 2 or not count(scale):
        return None
    return _weights_in(tensors[codes], said.of(layer)) // count(scale)


def _bits(layers: list[str], said: Quantization, tensors: Headers) -> float:
    """Stored bits of the quantized layers, scales included, a weight."""
    total = weights_ = 0
    chosen = set(layers)
    for name, one in tensors.items():
        layer, _, part = name.rpartition(".")
        if layer in chosen and part not in ("bias", "k_scale", "v_scale"):
            total += weights.BITS.get(str(one["dtype"]), 16) * count(one)
            if name == coded(layer, said.layout, tensors):
                weights_ += _weights_in(one, said.of(layer) if said.layers or said.algorithm != MIXED else said)
    return total / weights_ if weights_ else 16.0


def _weights_in(codes: Mapping[str, Any], said: Quantization) -> int:
    """Weights that a tensor of codes stands for."""
    eight = str(said.algorithm).endswith("_8")
    return count(codes) * {"I32": 4 if eight else 8, "U8": 2}.get(str(codes["dtype"]), 1)


def _algorithm(folder: Path, said: Quantization) -> str:
    if said.layout == "modelopt":
        return str(said.algorithm or "16-bit weights")
    words = declared(folder)
    found = [f"{words.get('quant_method')} {words.get('format') or words.get('version') or ''}".strip()]
    found += sorted({str(each.algorithm) for each in said.layers.values()})
    return ", ".join(found)


def _producer(folder: Path, layout: str) -> tuple[str, str]:
    """(program, version), as far as the files say."""
    own = _json(folder / HF_QUANT).get("producer")
    said = declared(folder)
    made = own if isinstance(own, dict) else said.get("producer")
    if isinstance(made, dict):
        return str(made.get("name", "")), str(made.get("version", ""))
    meta = said.get("meta")
    quantizer = meta.get("quantizer") if isinstance(meta, dict) else None
    if quantizer:
        name, _, version = str(quantizer[0] if isinstance(quantizer, list) else quantizer).partition(":")
        return name, version
    version = str(said.get("version", "")) if layout == "compressed-tensors" else ""
    return PRODUCERS.get(layout, "modelopt" if layout == "modelopt" else str(said.get("quant_method", ""))), version


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise Broken(f"cannot be read as JSON ({error}).", place=str(path), cure="Fetch it again.") from None
    return found if isinstance(found, dict) else {}
