"""The decoder blocks of a folder of weights, opened one at a time (formats/blocks.py), and what lies around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.calibrate.stored import Stored
from quantlab.errors import Broken
from quantlab.formats.blocks import alone, prefix_of
from quantlab.formats.modelopt import auto_class


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
        self.prefix = prefix_of(architecture)
        self.inner = self.prefix.rpartition(".")[0]
        self.stored = Stored(folder)
        self.dtype, self.device = dtype, device
        self.skeleton = self.empty()
        self.config: Any = self.skeleton.config
        self.text: Any = self.config.get_text_config()
        self.sees = hasattr(self.config, "vision_config")

    @property
    def count(self) -> int:
        return len(self.skeleton.get_submodule(self.prefix))

    def looks(self, index: int) -> bool:
        """A cross-attention block: it takes what the vision tower saw."""
        return index in (getattr(self.text, "cross_attention_layers", None) or ())

    @property
    def rest(self) -> list[str]:
        """Stored tensors that belong to no block. A tied head is stored once, as the embedding."""
        tied = bool(getattr(self.text, "tie_word_embeddings", False))
        return [
            name
            for name in self.stored.headers
            if not name.startswith(f"{self.prefix}.") and not (tied and name == "lm_head.weight")
        ]

    def open(self, index: int) -> Any:
        """The model with this block alone. Each call makes a new one: calibrating changes a model for good."""
        model = alone(self.empty(), index, self.dtype, self.device)
        block: Any = model.get_submodule(f"{self.prefix}.{index}")
        for name, parameter in list(block.named_parameters()):
            stored = self.stored.read(f"{self.prefix}.{index}.{name}")
            place(block, name, stored.to(self.device, self.dtype), parameter)
        return model.to(self.device).eval().requires_grad_(False)

    def embed(self, ids: Tensor) -> Tensor:
        """[..., tokens, hidden]: only the rows that are asked for are read."""
        words, where = ids.unique(return_inverse=True)
        rows = [self.stored.read(f"{self._embedding}.weight", slice(int(word), int(word) + 1)) for word in words]
        return torch.cat(rows).to(self.dtype)[where]

    def logits(self, hidden: Tensor, rows_at_once: int = 16384) -> Tensor:
        """float32 [..., vocabulary] on the CPU: the last norm and the head, some rows of the head at a time."""
        norm: Any = self.skeleton.get_submodule(f"{self.inner}.norm")
        place(norm, "weight", self.stored.read(f"{self.inner}.norm.weight").to(self.device, self.dtype), norm.weight)
        hidden = norm(hidden.to(self.device))
        name = "lm_head.weight" if "lm_head.weight" in self.rest else f"{self._embedding}.weight"
        count = self.stored.headers[name]["shape"][0]
        parts = (self.stored.read(name, slice(first, first + rows_at_once)) for first in range(0, count, rows_at_once))
        found = [nn.functional.linear(hidden, part.to(self.device, self.dtype)).float().cpu() for part in parts]
        return torch.cat(found, dim=-1)

    @property
    def _embedding(self) -> str:
        return f"{self.inner}.embed_tokens"

    def empty(self) -> Any:
        """The model without weights: parameters on `meta` (no memory), buffers real."""
        from accelerate import init_empty_weights
        from transformers import AutoConfig

        folder = self.stored.folder
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with init_empty_weights(include_buffers=False):
            return auto_class(folder).from_config(config, dtype=self.dtype, attn_implementation="sdpa")


def place(module: nn.Module, name: str, tensor: Tensor, empty: Tensor) -> None:
    """A real parameter instead of the empty one."""
    if tensor.shape != empty.shape:
        raise Broken(f"has shape {list(tensor.shape)}, not {list(empty.shape)}.", place=name, cure="Fetch it again.")
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
