"""How many operations a prefill takes, and how long it must take at the least.

A multiplication with a weight matrix of K x N costs 2 K N operations a token. Attention between s tokens, each looking
back at those before it, costs 2 s^2 (heads x width of a head) a layer: scores and weighted sums, half of the square
each. The output head is computed for the last token alone. The linear layers run at the speed of their format, the
rest in 16 bit: an INT4 weight is widened first, so its products are 16-bit products; only FP8, INT8 and NVFP4 are
faster.

Prefill is bound by this where decoding is bound by memory (memory.py). The figure is the share of the time that the
operations must take at the GPU's dense peak; data sheets promise peaks that a power cap does not allow for long.
"""

from __future__ import annotations

import json
from pathlib import Path

from quantlab.records import MeasureJob


def prefill_seconds(spec: MeasureJob, isl: int, batch: int) -> float | None:
    """Least time of a prefill; None where the GPU's peaks or the model's dimensions are not known.

    Args:
        spec: the job; `spec.compute` has the peaks of all GPUs of the artifact.
        isl: tokens of one prompt.
        batch: prompts.
    """
    file = Path(spec.artifact.checkpoint.path) / "config.json"
    if spec.compute is None or not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    found = found.get("text_config", found)
    if "cross_attention_layers" in found:
        return None  # how much of an image is seen is not known from here
    hidden, layers, heads = found["hidden_size"], found["num_hidden_layers"], found["num_attention_heads"]
    width = found.get("head_dim") or hidden // heads
    kv_heads = found.get("num_key_value_heads", heads)
    linear = layers * hidden * (width * (2 * heads + 2 * kv_heads) + 3 * found["intermediate_size"])
    attention = layers * 2 * isl**2 * heads * width
    head = 2 * hidden * found["vocab_size"]
    fast, plain = spec.compute
    return float(batch * (2 * linear * isl / fast + (attention + head) / plain))
