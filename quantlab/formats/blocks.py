"""A model with one of its decoder blocks, for whatever can be done block by block.

All other blocks are replaced by a module that hands its input on, so that what surrounds the blocks (masks, rotary
embeddings, names of modules) is the model's own, and block 7 is called `model.layers.7` in it. What goes in are hidden
states, as `inputs_embeds`; what comes out, with the last norm taken away, is what the next block takes in. Embedding
and head would be the largest tensors of all; two rows each stand for them.

Every fifth block of Llama 3.2 Vision takes more: what the vision tower made of the pictures, and which token may look
at which of them. Both are handed to the model as they are handed to the whole one, and it makes its masks of them
itself. A tower of a few bytes stands for the real one, which has nothing more to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.errors import Refused
from quantlab.formats.names import BLOCKS

TINY = {"hidden_size": 8, "attention_heads": 1, "intermediate_size": 8, "num_hidden_layers": 1, "num_global_layers": 1,
        "image_size": 8, "patch_size": 8, "vision_output_dim": 8, "intermediate_layers_indices": []}  # fmt: skip
"""Of the tower that stands for the real one."""
NOTHING: Mapping[str, Tensor] = {}


class Through(nn.Module):  # type: ignore[misc]
    """Hands its first argument on, whatever else it is given."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


def prefix_of(architecture: str) -> str:
    """Raises Refused for an architecture whose blocks need more than hidden states and pictures."""
    if architecture not in BLOCKS:
        cure = f"Calibrate it whole. Block by block: {', '.join(BLOCKS)}."
        raise Refused("its blocks cannot be taken one at a time here.", place=architecture, cure=cure)
    return BLOCKS[architecture]


def decoder(model: Any) -> Any:
    """The module that holds blocks, embedding and last norm."""
    return model.get_submodule(prefix_of(type(model).__name__).rpartition(".")[0])


def alone(model: Any, index: int, dtype: torch.dtype, device: torch.device) -> Any:
    """The same model, changed in place: block `index` as it is, nothing else.

    Raises:
        Refused: as `prefix_of`.
    """
    inner = decoder(model)
    for other in range(len(inner.layers)):
        if other != index:
            inner.layers[other] = Through()
    width = model.config.get_text_config().hidden_size
    rows = torch.zeros(2, width, dtype=dtype, device=device)
    head = nn.Linear(width, len(rows), bias=False, dtype=dtype, device=device)
    head.weight.data.copy_(rows)  # as if tied: ModelOpt's export compares the two
    model.set_input_embeddings(nn.Embedding.from_pretrained(rows))
    model.set_output_embeddings(head)
    inner.norm = nn.Identity()
    if hasattr(model.config, "vision_config"):
        _blind(model.base_model, dtype, device)
    return model


def _blind(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """A tower and a projector of the real ones' names. How many vectors a tile has is asked of the tower."""
    from transformers.models.mllama.modeling_mllama import MllamaVisionModel

    shape = type(model.config.vision_config)(**TINY)
    shape._attn_implementation = "sdpa"
    tower: Any = MllamaVisionModel(shape)
    tower.num_patches = model.vision_model.num_patches
    model.vision_model = tower.to(device, dtype)
    model.multi_modal_projector = nn.Linear(1, 1, dtype=dtype, device=device)


def passed(model: Any, hidden: Tensor, beside: Mapping[str, Tensor] = NOTHING) -> Tensor:
    """Hidden states behind the block, on the CPU; both [samples, length, hidden].

    Args:
        model: of `alone`.
        hidden: what goes in.
        beside: what else the whole model is given for these samples: masks, and the tower's states where it looks.
    """
    first = next(decoder(model).parameters())
    given = {name: _placed(tensor, first) for name, tensor in beside.items()}
    out: Tensor = model.base_model(
        inputs_embeds=hidden.to(first.device, first.dtype), use_cache=False, **given
    ).last_hidden_state
    return out.cpu()


def _placed(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)
