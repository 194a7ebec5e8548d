"""A model with one of its decoder blocks, for whatever can be done block by block.

All other blocks are replaced by a module that hands its input on, so that what surrounds the blocks (masks, rotary
embeddings, names of modules) is the model's own, and block 7 is called `model.layers.7` in it. What goes in are hidden
states, as `inputs_embeds`; what comes out, with the last norm taken away, is what the next block takes in. Embedding
and head would be the largest tensors of all; two rows each stand for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantlab.errors import Refused

NAMED = {"LlamaForCausalLM": "model.layers"}
"""Architecture -> its decoder blocks. In Llama 3.2 Vision blocks also take what the tower saw, so it is not here."""


class Through(nn.Module):  # type: ignore[misc]
    """Hands its first argument on, whatever else it is given."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


def prefix_of(architecture: str) -> str:
    """Raises Refused for an architecture whose blocks need more than hidden states."""
    if architecture not in NAMED:
        cure = f"Calibrate it whole. Block by block: {', '.join(NAMED)}."
        raise Refused("its blocks cannot be taken one at a time here.", place=architecture, cure=cure)
    return NAMED[architecture]


def alone(model: Any, index: int, dtype: torch.dtype, device: torch.device) -> Any:
    """The same model, changed in place: block `index` as it is, nothing else.

    Raises:
        Refused: as `prefix_of`.
    """
    blocks: Any = model.get_submodule(prefix_of(type(model).__name__))
    for other in range(len(blocks)):
        if other != index:
            blocks[other] = Through()
    rows = torch.zeros(2, model.config.hidden_size, dtype=dtype, device=device)
    head = nn.Linear(model.config.hidden_size, len(rows), bias=False, dtype=dtype, device=device)
    head.weight.data.copy_(rows)  # as if tied: ModelOpt's export compares the two
    model.set_input_embeddings(nn.Embedding.from_pretrained(rows))
    model.set_output_embeddings(head)
    model.base_model.norm = nn.Identity()
    return model


def passed(model: Any, hidden: Tensor) -> Tensor:
    """Hidden states behind the block, on the CPU; both [samples, length, hidden]."""
    first = next(model.parameters())
    out: Tensor = model.base_model(
        inputs_embeds=hidden.to(first.device, first.dtype), use_cache=False
    ).last_hidden_state
    return out.cpu()
