"""A model of which one decoder block is there.

All the others are replaced by a module that hands its input on, so that whatever surrounds the blocks (masks, rotary
embeddings, ModelOpt's walk over module names) is the model's own, and block 7 is called `model.layers.7` in it. What
goes in are hidden states, as `inputs_embeds`; what comes out is what the next block takes in. Embedding and head would
be the largest tensors of all; two rows each stand for them, of which ModelOpt sees the type and the name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.calibrate.stored import Stored
from quantlab.errors import Refused
from quantlab.formats.modelopt import auto_class

NAMED = {"LlamaForCausalLM": "model.layers"}
"""Architecture -> its decoder blocks. Tried with these; in Llama 3.2 Vision blocks also take what the tower saw."""


class Through(nn.Module):  # type: ignore[misc]
    """Hands its first argument on, whatever else it is given."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


class Blocks:
    """The decoder blocks of a folder of weights, one at a time.

    Args:
        folder: config.json and safetensors.
        architecture: of its config.
        dtype: of the arithmetic.
        device: where blocks are put.

    Raises:
        Refused: an architecture whose blocks need more than hidden states.
    """

    def __init__(self, folder: str | Path, architecture: str, dtype: torch.dtype, device: torch.device) -> None:
        if architecture not in NAMED:
            cure = f"Calibrate it whole. Block by block: {', '.join(NAMED)}."
            raise Refused("its blocks cannot be calibrated one at a time here.", place=architecture, cure=cure)
        self.prefix = NAMED[architecture]
        self.stored = Stored(folder)
        self.dtype, self.device = dtype, device
        self.skeleton = self._empty()
        self.config: Any = self.skeleton.config

    @property
    def count(self) -> int:
        return len(self.skeleton.get_submodule(self.prefix))

    @property
    def rest(self) -> list[str]:
        """Stored tensors that belong to no block. A tied head is stored once, as the embedding."""
        tied = bool(getattr(self.config, "tie_word_embeddings", False))
        return [
            name
            for name in self.stored.headers
            if not name.startswith(f"{self.prefix}.") and not (tied and name == "lm_head.weight")
        ]

    def open(self, index: int) -> Any:
        """The model with this block alone. Each call makes a new one: calibrating changes a model for good."""
        model = self._empty()
        blocks: Any = model.get_submodule(self.prefix)
        for other in range(len(blocks)):
            if other != index:
                blocks[other] = Through()
        for name, parameter in list(blocks[index].named_parameters()):
            stored = self.stored.read(f"{self.prefix}.{index}.{name}")
            _place(blocks[index], name, stored.to(self.device, self.dtype), parameter)
        base: Any = model.base_model
        base.norm = nn.Identity()
        size = {"dtype": self.dtype, "device": self.device}
        rows = torch.zeros(2, self.config.hidden_size, **size)
        model.set_input_embeddings(nn.Embedding.from_pretrained(rows))
        model.set_output_embeddings(nn.Linear(self.config.hidden_size, len(rows), bias=False, **size))
        model.get_output_embeddings().weight.data.copy_(rows)  # as if tied: the export compares the two
        return model.to(self.device).eval().requires_grad_(False)

    def embed(self, ids: Tensor) -> Tensor:
        """[..., tokens, hidden]: only the rows that are asked for are read."""
        words, where = ids.unique(return_inverse=True)
        rows = [self.stored.read(f"{self._embedding}.weight", slice(int(word), int(word) + 1)) for word in words]
        return torch.cat(rows).to(self.dtype)[where]

    def logits(self, hidden: Tensor, rows_at_once: int = 16384) -> Tensor:
        """float32 [..., vocabulary] on the CPU: the last norm and the head, some rows of the head at a time."""
        norm: Any = self.skeleton.base_model.norm
        _place(norm, "weight", self.stored.read("model.norm.weight").to(self.device, self.dtype), norm.weight)
        hidden = norm(hidden.to(self.device))
        name = "lm_head.weight" if "lm_head.weight" in self.rest else f"{self._embedding}.weight"
        count = self.stored.headers[name]["shape"][0]
        parts = (self.stored.read(name, slice(first, first + rows_at_once)) for first in range(0, count, rows_at_once))
        found = [nn.functional.linear(hidden, part.to(self.device, self.dtype)).float().cpu() for part in parts]
        return torch.cat(found, dim=-1)

    @property
    def _embedding(self) -> str:
        return "model.embed_tokens"

    def _empty(self) -> Any:
        """The model without weights: parameters on `meta` (no memory), buffers real."""
        from accelerate import init_empty_weights
        from transformers import AutoConfig

        folder = self.stored.folder
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            return auto_class(folder).from_config(config, dtype=self.dtype, attn_implementation="sdpa")


def _place(module: nn.Module, name: str, tensor: Tensor, empty: Tensor) -> None:
    """A real parameter instead of the empty one."""
    if tensor.shape != empty.shape:
        raise Refused(f"{name} has shape {list(tensor.shape)}, not {list(empty.shape)}.", cure="Fetch the model again.")
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
