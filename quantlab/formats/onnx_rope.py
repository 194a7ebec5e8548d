"""Cosines and sines of the rotary embedding, for every position a model may see.

A head's numbers i and i + d/2 are turned together by position * f_i, f_i = base ^ (-2 i / d). Llama 3 was trained on
8,192 positions and stretched to 131,072 by slowing down the slow turns only: those with a wavelength beyond
original / low_freq_factor are slowed by `factor`, those under original / high_freq_factor stay, and between them the
two are mixed (transformers, modeling_rope_utils). All in float32, as transformers computes them: the angles of late
positions differ from exact ones in the fourth digit, and the model was trained with these.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quantlab.errors import Broken, Refused

TYPES = ("default", "linear", "llama3")


def caches(config: dict[str, Any], head: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """(cosines, sines), each float32 [context, head / 2].

    Args:
        config: config.json in the words of transformers 4 or 5.
        head: width of a head.
        context: positions.

    Raises:
        Refused: another kind of scaling. Broken: a number is missing or wrong.
    """
    rope = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}
    rope |= config.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    if kind not in TYPES or partial != 1.0:
        what = kind if kind not in TYPES else "partial"
        raise Refused(f"a {what} rotary embedding is not known here.", place="config.json", cure="Use engine torch.")
    try:
        frequencies = np.float32(1) / np.float32(rope["rope_theta"]) ** (
            np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
        )
        frequencies = _scaled(frequencies, kind, rope, config)
    except (KeyError, TypeError, ValueError) as error:
        raise Broken(f"no usable rotary embedding ({error!r}).", place="config.json", cure="Fetch it again.") from None
    angles = np.arange(context, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def _scaled(frequencies: np.ndarray, kind: str, rope: dict[str, Any], config: dict[str, Any]) -> np.ndarray:
    if kind == "default":
        return frequencies
    factor = np.float32(rope["factor"])
    if kind == "linear":
        return frequencies / factor
    original = float(rope.get("original_max_position_embeddings") or config["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    wavelengths = 2 * np.pi / frequencies
    share = np.clip((original / wavelengths - low) / (high - low), 0, 1).astype(np.float32)
    mixed: np.ndarray = (1 - share) * frequencies / factor + share * frequencies
    return mixed
