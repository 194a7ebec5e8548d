"""Tied output heads of FP8 exports in vLLM 0.24."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def let_tied_heads_load() -> None:
    """Tie a 16-bit output head to the embedding in ModelOpt's FP8 exports.

    vLLM 0.24 gives a head that ModelOpt excludes an UnquantizedLinearMethod, which cannot be tied: Llama 3.2 1B and 3B
    end in NotImplementedError (seen on an H100). Sharing the parameter is all that its method for embeddings does too,
    and changes no number. A vLLM that brings its own is left alone.
    """
    method: Any = import_module("vllm.model_executor.layers.linear").UnquantizedLinearMethod
    base: Any = import_module("vllm.model_executor.layers.quantization.base_config").QuantizeMethodBase
    if method.tie_weights is not base.tie_weights:
        return

    def tie_weights(self: Any, layer: Any, embed_tokens: Any) -> Any:
        layer.weight = embed_tokens.weight
        return layer

    method.tie_weights = tie_weights
