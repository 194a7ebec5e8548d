"""Sizes of Mllama's vision tower and projector, from config.json, and what goes in and out. No SDK."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantlab.errors import BadInput, Refused

PIXELS, IDS, MASK, STATES = "pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_states"
"""Inputs and output of the graph, named as in transformers."""


@dataclass(frozen=True, slots=True)
class TowerShape:
    """Of a picture there are up to `tiles` tiles of `image` x `image` pixels, each cut into patches."""

    image: int
    patch: int
    channels: int
    tiles: int
    ratios: int
    """Rows of the tables by aspect ratio: the ratios that are known, and row 0 for no picture."""
    hidden: int
    heads: int
    intermediate: int
    layers: int
    global_layers: int
    taps: tuple[int, ...]
    """Layers of the tower whose outputs go to the projector beside the last one."""
    eps: float
    """Of the layers' norms; the norms before and after the tower have torch's 1e-5."""
    out: int
    """Width of the language model."""

    @property
    def tokens(self) -> int:
        """Of one tile: its patches and the class token."""
        return (self.image // self.patch) ** 2 + 1

    @property
    def padded(self) -> int:
        """Tokens of one tile inside the tower: a multiple of eight."""
        return -(-self.tokens // 8) * 8

    @property
    def features(self) -> int:
        """Inputs of the projector."""
        return self.hidden * (1 + len(self.taps))


def tower_shape(config: Mapping[str, Any]) -> TowerShape:
    """From a config.json.

    Raises:
        BadInput: a model without a vision tower.
        Refused: a tower of another kind.
    """
    if config.get("model_type") != "mllama":
        kind = config.get("model_type", "unknown")
        cure = "Take a model with images: 11b, 90b or mllama-easyvqa."
        raise BadInput(f"it is of type {kind} and reads text only, or sees in another way.", place="model", cure=cure)
    vision, text = config["vision_config"], config["text_config"]
    if vision.get("hidden_act", "gelu") != "gelu":
        raise Refused(f"the tower computes {vision['hidden_act']}, and the graph gelu.", place="config.json")
    shape = TowerShape(
        image=int(vision["image_size"]),
        patch=int(vision["patch_size"]),
        channels=int(vision.get("num_channels", 3)),
        tiles=int(vision["max_num_tiles"]),
        ratios=len(vision["supported_aspect_ratios"]) + 1,
        hidden=int(vision["hidden_size"]),
        heads=int(vision["attention_heads"]),
        intermediate=int(vision["intermediate_size"]),
        layers=int(vision["num_hidden_layers"]),
        global_layers=int(vision["num_global_layers"]),
        taps=tuple(int(one) for one in vision["intermediate_layers_indices"]),
        eps=float(vision.get("norm_eps", 1e-5)),
        out=int(text["hidden_size"]),
    )
    if shape.tokens % 8 == 0:
        # transformers then masks `[-0:]`, which is everything: the mask of such a tower says nothing.
        raise Refused(f"{shape.tokens} tokens a tile need no padding, and no such model is known.", place="config.json")
    return shape
