"""Tower and projector in torch, without the language model. No checkpoint is needed here: see stored.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn


class TorchTower(nn.Module):  # type: ignore[misc]
    """The reference: transformers' own vision model, and the projector behind it."""

    def __init__(self, config: Any, out: int) -> None:
        super().__init__()
        from transformers.models.mllama.modeling_mllama import MllamaVisionModel

        self.vision_model = MllamaVisionModel(config)
        self.multi_modal_projector = nn.Linear(config.vision_output_dim, out)

    def forward(
        self, pixel_values: torch.Tensor, aspect_ratio_ids: torch.Tensor, aspect_ratio_mask: torch.Tensor
    ) -> torch.Tensor:
        """[batch, tiles, tokens, out]."""
        seen = self.vision_model(
            pixel_values=pixel_values, aspect_ratio_ids=aspect_ratio_ids, aspect_ratio_mask=aspect_ratio_mask
        ).last_hidden_state
        states: torch.Tensor = self.multi_modal_projector(seen).flatten(0, 1)
        return states


def source_in(tower: TorchTower) -> Callable[[str], np.ndarray]:
    """The weights of a tower in memory, as `source_of`."""
    own = tower.state_dict()

    def take(name: str) -> np.ndarray:
        return np.asarray(own[name].float().cpu().numpy())

    return take
