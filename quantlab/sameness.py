"""May one config.json be a quantization of another? Compared field by field, where rounding weights changes nothing.

The same model quantized by another program differs in its type (AutoAWQ writes float16), its spelling (the rotary
embedding has two) and its context limit; none of that is looked at. Dimensions, activation and rotary base are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SAME = ("architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "hidden_act", "attention_bias", "mlp_bias",
        "rope_theta", "rope_scaling")  # fmt: skip
"""Fields that both must have alike; where one leaves a field out it has the default, and says nothing."""


def differences(base: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[str]:
    """Fields of two config.json in which a quantization may not differ from its model, each as a clause."""
    one, other = ({**c, **(c.get("text_config") or {})} for c in (base, made))
    for name in SAME:
        a, b = _field(one, name), _field(other, name)
        if a is not None and b is not None and a != b:
            yield f"{name} {b} against {a}"


def _field(config: Mapping[str, Any], name: str) -> Any:
    """Base and scaling of the rotary embedding have two spellings, see formats/transformers4.py."""
    rope = config.get("rope_parameters")
    if name == "rope_theta" and isinstance(rope, dict):
        return rope.get("rope_theta", config.get(name))
    if name == "rope_scaling":
        found = rope if isinstance(rope, dict) else config.get(name) or {}
        kind = found.get("rope_type", found.get("type", "default"))
        factors = {key: float(v) for key, v in found.items() if isinstance(v, int | float) and key != "rope_theta"}
        return (kind, tuple(sorted(factors.items()))) if kind != "default" else "default"
    if name == "head_dim" and config.get(name) is None and config.get("num_attention_heads"):
        return int(config.get("hidden_size", 0)) // int(config["num_attention_heads"])
    return config.get(name)
