"""How many bytes a decode step must read, and how many the process held at its peak.

A decode step reads every weight once (one row of the embedding aside: it is counted only where it is also the
output head) and the keys and values of all tokens so far of all sequences. That over the bandwidth is the
shortest possible time a token; the share of it that a measurement reaches says how good the kernels are, and
a share above 1 says that something was not measured right.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from quantlab.records import MeasureJob

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "auto": 2}
"""Bytes of a number that is not quantized, by EngineConfig.dtype."""


def bytes_per_step(spec: MeasureJob, context: float, batch: int) -> float | None:
    """Weights and KV cache that one decode step reads; None where config.json does not tell.

    Args:
        spec: the job; its checkpoint gives sizes and formats.
        context: tokens in the cache, averaged over the steps.
        batch: sequences.
    """
    checkpoint = spec.artifact.checkpoint
    file = Path(checkpoint.path) / "config.json"
    if not file.is_file():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    width = BYTES[spec.config.dtype]
    weights = checkpoint.bytes * (width / 2 if checkpoint.format == "bf16" else 1)
    if not config.get("tie_word_embeddings", False):
        weights -= config["vocab_size"] * config["hidden_size"] * width
    cached = 1 if checkpoint.kv_cache == "fp8" else width
    return float(weights + _cache_numbers(config) * cached * context * batch)


def _cache_numbers(config: dict[str, Any]) -> int:
    """Keys and values of one token."""
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return int(2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * width)


def reset_peak() -> None:
    """Begin a new peak where that can be done: for GPU memory."""
    if (gpu := _gpu()) is not None:
        gpu.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Peak GPU memory that torch allocated since `reset_peak`; where it holds none, this process's peak memory."""
    if (gpu := _gpu()) is not None and (held := int(gpu.max_memory_allocated())):
        return held
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _gpu() -> Any:
    """torch.cuda if the engine uses it already; asking must not start it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
