"""Does TensorRT-LLM's loader take this unified checkpoint, and does it compute what was calibrated?

Read from headers and JSON alone, in milliseconds, because the loader finds out late (after minutes of start) or never:
without hf_quant_config.json it takes packed weights for 16 bit, and a config.json in transformers 5's spelling gives a
model with the wrong rotary embedding. What is checked was read in TensorRT-LLM 1.2.1's documentation and in nearby
versions of its loader (`_torch/model_config.py`, `_torch/modules/linear.py`); docs/engines.md says what was never run.

The int4 layout on disk is ModelOpt's: codes of two output rows in a byte, one scale a row and group. q, k, v and gate,
up are fused on loading, and the loader reads a pre_quant_scale for the other layers only: one that stands at a fused
layer is dropped in silence, one that lacks at o_proj or down_proj is a KeyError.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from quantlab import weights
from quantlab.errors import QuantlabError
from quantlab.formats import lint_layers
from quantlab.formats.declared import MIXED
from quantlab.records import FORMATS, Check

QUANTIZATION, LISTED = "hf_quant_config.json", "quant_cfg.json"
ALGORITHMS = {str(each.algorithms[0]): each.codes for each in FORMATS.values() if each.trtllm and each.algorithms[0]}
"""quant_algo -> safetensors type of a quantized weight. TensorRT-LLM knows more; quantlab exports these."""
CACHES = (None, "FP8")
TESTED_GROUP = 128
"""The only group size in TensorRT-LLM's own tests."""
KERNEL_GROUPS = (64, 128)
"""Group sizes of its int4 kernels: fpA_intB_gemm_template.h stops at any other."""
LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_PLAIN = ("BF16", "F16", "F32")

Tensors = dict[str, dict[str, Any]]
Finding = tuple[bool, str]


def lint_trtllm(folder: str | Path) -> tuple[Check, ...]:
    """Every requirement with its finding; a check that did not pass means: do not load this.

    Args:
        folder: a unified Hugging Face checkpoint.

    Raises:
        BadInput, Broken: config.json is missing or no JSON. All else is a finding.
    """
    folder = Path(folder)
    config = weights.config(folder)
    try:
        tensors = weights.headers(folder)
    except QuantlabError as error:
        return (Check(name="weights", passed=False, finding=str(error)), *_run(_SMALL, folder, config, {}))
    count = len({one["file"] for one in tensors.values()})
    whole = Check(name="weights", passed=True, finding=f"{len(tensors)} tensors in {count} files, none cut off.")
    return (whole, *_run(_SMALL | _LARGE, folder, config, tensors))


def said(folder: str | Path) -> dict[str, Any]:
    """`quantization` of hf_quant_config.json; empty where there is none or it cannot be read."""
    try:
        found = json.loads((Path(folder) / QUANTIZATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    inner = found.get("quantization") if isinstance(found, dict) else None
    return inner if isinstance(inner, dict) else {}


def _run(checks: dict[str, _Check], folder: Path, config: dict[str, Any], tensors: Tensors) -> Iterator[Check]:
    for name, check in checks.items():
        passed, finding = check(folder, config, tensors)
        yield Check(name=name, passed=passed, finding=finding)


def _metadata(folder: Path, config: dict[str, Any], tensors: Tensors) -> Finding:
    quantized = bool(config.get("quantization_config")) or any(
        one["dtype"] in ("U8", "F8_E4M3") for one in tensors.values()
    )
    if not (folder / QUANTIZATION).is_file():
        if quantized:
            return False, f"No {QUANTIZATION}, without which the weights are taken for 16 bit."
        return True, "16 bit, nothing to say about quantization."
    words = said(folder)
    algorithm, cache = words.get("quant_algo"), words.get("kv_cache_quant_algo")
    if algorithm == MIXED and not (folder / LISTED).is_file():
        return False, f"{MIXED} without {LISTED}, where the loader looks for each layer's precision."
    if algorithm not in (*ALGORITHMS, MIXED):
        return False, f"quant_algo is {algorithm!r}, which is none of {', '.join(ALGORITHMS)}."
    if cache not in CACHES:
        return False, f"kv_cache_quant_algo is {cache!r}; only FP8 or null."
    excluded = words.get("exclude_modules")
    if excluded is not None and not (isinstance(excluded, list) and all(isinstance(each, str) for each in excluded)):
        return False, "exclude_modules is no list of names."
    return True, f"{algorithm}, KV cache {cache or '16 bit'}, {len(excluded or ())} exclusions."


def _group(folder: Path, config: dict[str, Any], tensors: Tensors) -> Finding:
    words = said(folder)
    if words.get("quant_algo") == MIXED:
        return _groups(words)
    if words.get("quant_algo") not in ("W4A16_AWQ", "W4A8_AWQ"):
        return True, "no groups in this format."
    size = words.get("group_size")
    if not isinstance(size, int) or size < 1:
        return False, "group_size is missing in hf_quant_config.json, and the loader has no default."
    if size != TESTED_GROUP:
        return True, f"group size {size}; TensorRT-LLM tests {TESTED_GROUP} only, so this is untested there."
    return True, f"group size {size}."


def _groups(words: dict[str, Any]) -> Finding:
    """Of a mixture. The loader gives each layer its own words, and the kernels know two sizes."""
    own = (words.get("quantized_layers") or {}).values()
    sizes = sorted({one.get("group_size") or 0 for one in own if one.get("quant_algo") in ("W4A16_AWQ", "W4A8_AWQ")})
    odd = [str(size) for size in sizes if size not in KERNEL_GROUPS]
    if odd:
        return False, f"groups of {', '.join(odd)}; its int4 kernels have 64 and 128."
    return True, f"groups of {' and '.join(map(str, sizes))}." if sizes else "no groups in these formats."


def _rope(folder: Path, config: dict[str, Any], tensors: Tensors) -> Finding:
    """Base and scaling of the rotary embedding, in the spelling of transformers 4."""
    config = config.get("text_config", config)
    new, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    if isinstance(new, dict) and "rope_theta" not in config:
        return False, "rope_theta stands only inside rope_parameters, so transformers 4 takes 10000."
    if isinstance(new, dict) and new.get("rope_type", "default") != "default" and not scaling:
        return (
            False,
            f"rope_scaling ({new['rope_type']}) stands only inside rope_parameters, so transformers 4 scales nothing.",
        )
    base = config.get("rope_theta", 10000)
    if not scaling:
        return True, f"base {base:g}, not scaled."
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else scaling
    if kind != "llama3":
        return True, f"base {base:g}, scaled by {kind}."
    lacking = [name for name in LLAMA3_ROPE if not _positive(scaling.get(name))]
    if lacking:
        return False, f"rope_scaling of Llama 3 lacks {', '.join(lacking)}."
    reach = scaling["factor"] * scaling["original_max_position_embeddings"]
    longest = config.get("max_position_embeddings", 0)
    return True, f"base {base:g}, Llama 3's scaling to {reach:g} tokens; {longest} positions."


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _tokenizer(folder: Path, config: dict[str, Any], tensors: Tensors) -> Finding:
    found = [name for name in weights.TOKENIZERS if (folder / name).is_file()]
    if not found:
        return False, "No tokenizer beside the weights."
    file = folder / "tokenizer_config.json"
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class") if file.is_file() else None
    except (OSError, ValueError, AttributeError):
        return False, "tokenizer_config.json cannot be read."
    if kind == "TokenizersBackend":
        return False, "tokenizer_class TokenizersBackend is unknown to transformers 4."
    return True, f"{found[0]}{f', {kind}' if kind else ''}."


def _sight(folder: Path, config: dict[str, Any], tensors: Tensors) -> Finding:
    """TensorRT-LLM 1.2.1's list for Mllama: bf16, FP8 and weight-only integers without AWQ."""
    if "vision_config" not in config:
        return True, "text only."
    algorithm = said(folder).get("quant_algo")
    if algorithm not in (None, "FP8"):
        return False, f"TensorRT-LLM lists no {algorithm} for a model with images, only bf16 and FP8."
    return True, "a model with images, of which the PyTorch flow computes the text alone."


def _layers(folder: Path, config: dict[str, Any], tensors: Tensors) -> Finding:
    """Weights and scales of every layer that is not excluded."""
    words = said(folder)
    algorithm = words.get("quant_algo")
    if algorithm == MIXED:
        return _mixed(words, tensors)
    names = _linear(tensors, words)
    if algorithm not in ALGORITHMS:
        odd = [name for name, one in tensors.items() if one["dtype"] not in _PLAIN]
        return not odd, f"{_some(odd)} not in 16 bit." if odd else f"{len(names)} layers in 16 bit."
    check = lint_layers.LAYERS[str(algorithm)]
    group = words.get("group_size")
    faults = [
        fault
        for name in names
        for fault in check(name, tensors, group if isinstance(group, int) and group > 0 else TESTED_GROUP)
    ]
    if not names:
        faults = ["no quantized layer"]
    faults += lint_layers.unequal(names, tensors, folder) if algorithm in ("W4A8_AWQ", "NVFP4") else []
    if faults:
        return False, f"{_some(faults)}."
    return True, f"{len(names)} layers of {algorithm}, each with its scales."


def _mixed(words: dict[str, Any], tensors: Tensors) -> Finding:
    """The same of a checkpoint in which every layer has its own words."""
    listed = words.get("quantized_layers") or {}
    faults = [f"{name} is not in {QUANTIZATION}" for name, one in tensors.items()
              if one["dtype"] in ALGORITHMS.values() and name.endswith(".weight")
              and name.removesuffix(".weight") not in listed]  # fmt: skip
    for name, own in listed.items():
        check = lint_layers.LAYERS.get(str(own.get("quant_algo")))
        if check is None or f"{name}.weight" not in tensors:
            faults.append(f"{name} of {own.get('quant_algo')}")
        else:
            faults += check(name, tensors, own.get("group_size") or TESTED_GROUP)
    counts = Counter(str(own.get("quant_algo")) for own in listed.values())
    text = ", ".join(f"{count} layers of {word}" for word, count in sorted(counts.items()))
    return not faults, f"{_some(faults)}." if faults else f"{text}, each with its scales."


def _linear(tensors: Tensors, words: dict[str, Any]) -> list[str]:
    """Layers that must be quantized: matrices named *_proj that no exclusion names."""
    excluded = [str(each) for each in words.get("exclude_modules") or ()]

    def left_out(layer: str) -> bool:
        return any(fnmatchcase(layer, word) or layer.startswith(f"{word}.") for word in excluded)

    names = [name.removesuffix(".weight") for name in tensors if name.endswith("_proj.weight")]
    return sorted(name for name in names if not left_out(name))


def _cache(folder: Path, config: dict[str, Any], tensors: Tensors) -> Finding:
    if said(folder).get("kv_cache_quant_algo") is None:
        return True, "KV cache in 16 bit."
    keys = [name for name in tensors if name.endswith("k_proj.weight")]
    wanted = [f"{name.removesuffix('k_proj.weight')}{kv}_proj.{kv}_scale" for name in sorted(keys) for kv in "kv"]
    missing = [name for name in wanted if name not in tensors]
    if missing:
        return False, f"{_some(missing)} missing, so the FP8 cache would be scaled by 1."
    return True, f"{len(wanted)} scales of the FP8 KV cache."


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more}"


_Check = Callable[[Path, dict[str, Any], Tensors], Finding]
_SMALL: dict[str, _Check] = {
    "metadata": _metadata,
    "group_size": _group,
    "rope": _rope,
    "tokenizer": _tokenizer,
    "sight": _sight,
}
_LARGE: dict[str, _Check] = {"layers": _layers, "kv_cache": _cache}
