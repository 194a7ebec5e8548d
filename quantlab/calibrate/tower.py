"""What goes into the blocks of a model beside hidden states: masks, and in Llama 3.2 Vision what its tower saw.

The tower looks at each picture once, before the first block, and its states wait on the disk: a cross-attention block
of the 11B takes 1,601 x 4 vectors of 4,096 numbers a picture, 105 MB in float32, and a hundred pictures would be more
than all else together. A block reads those of one batch at a time; the blocks between do not ask for them.

Two habits of the tower decide how much memory that takes. Its weights (3.6 GB in float32) would be the largest thing
of all, so on a CPU each of its layers is read when it is reached and dropped behind; on a GPU they stay, because there
looking takes less time than reading. And transformers keeps what comes out of all 32 layers, of which five are used:
1.1 GB a picture, so it looks at one sample's at a time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.calibrate.blocks import Blocks, place
from quantlab.calibrate.feed import give_back
from quantlab.calibrate.stored import held

STATES = "cross_attention_states"
MASKS = ("attention_mask",)
LOOKING = ("cross_attention_mask",)
"""What a block takes that looks at pictures, and no other."""
PIXELS = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")


@dataclass(frozen=True)
class Beside:
    """Of one batch."""

    masks: dict[str, Tensor] = field(default_factory=dict)
    looking: dict[str, Tensor] = field(default_factory=dict)
    states: Path | None = None
    """Where the tower's states lie; None without pictures."""

    def given(self, looks: bool) -> dict[str, Tensor]:
        """For a block that looks at pictures or one that does not."""
        if not looks or self.states is None:
            return self.masks
        return self.masks | self.looking | held(self.states)


class Tower:
    """Vision tower and projector of a folder of weights, a layer at a time.

    Args:
        blocks: of a model with images.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        inner: Any = blocks.empty().base_model
        self.tower, self.projector = inner.vision_model, inner.multi_modal_projector
        self.layers = {
            f"{part}.layers.{index}": layer
            for part in ("transformer", "global_transformer")
            for index, layer in enumerate(self.tower.get_submodule(part).layers)
        }
        for name, layer in self.layers.items():
            layer.register_forward_pre_hook(self._fetch(f"model.vision_model.{name}"))
            if blocks.device.type == "cpu":
                layer.register_forward_hook(_drop)
        self._fill(self.projector, "model.multi_modal_projector")
        self._fill(self.tower, "model.vision_model", tuple(f"{name}." for name in self.layers))

    def look(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[pictures x tiles, vectors, hidden] on the CPU, as the blocks take it."""
        count, tiles = len(batch[PIXELS[0]]), batch[PIXELS[0]][0].flatten(0, -4).shape[0]
        width = self.projector.out_features
        found = torch.empty(count * tiles, self.tower.num_patches, width, dtype=self.blocks.dtype)
        for at in range(count):
            found[at * tiles : (at + 1) * tiles] = self._one({name: batch[name][at : at + 1] for name in PIXELS})
        return found

    def _one(self, pixels: dict[str, Tensor]) -> Tensor:
        given = {name: tensor.to(self.blocks.device) for name, tensor in pixels.items()}
        with torch.no_grad():
            seen = self.tower(**given).last_hidden_state
            states: Tensor = self.projector(seen).flatten(0, 2).cpu()
        give_back()
        return states

    def _fill(self, module: nn.Module, prefix: str, without: tuple[str, ...] = ()) -> None:
        for name, empty in list(module.named_parameters()):
            if not name.startswith(without or "\0"):
                weight = self.blocks.stored.read(f"{prefix}.{name}")
                place(module, name, weight.to(self.blocks.device, self.blocks.dtype), empty)

    def _fetch(self, prefix: str) -> Any:
        def fetch(layer: nn.Module, _: Any) -> None:
            if next(layer.parameters()).is_meta:
                self._fill(layer, prefix)

        return fetch


def _drop(layer: nn.Module, *_: Any) -> None:
    layer.to("meta")


def beside(blocks: Blocks, batches: Mapping[str, Mapping[str, Tensor]], folder: Path) -> dict[str, Beside]:
    """What goes with each batch. States that lie in the folder already are not made again.

    Args:
        blocks: of the model.
        batches: what the model takes, each under a name.
        folder: for the tower's states, one file a batch.
    """
    tower: Tower | None = None
    found = {}
    for name, batch in batches.items():
        file = folder / f"seen-{name}.safetensors" if PIXELS[0] in batch else None
        if file is not None and not file.is_file():
            tower = tower or Tower(blocks)
            _keep(tower.look(batch), file)
        found[name] = Beside(_some(batch, MASKS), _some(batch, LOOKING), file)
    return found


def _keep(states: Tensor, file: Path) -> None:
    from safetensors.torch import save_file

    temporary = file.with_suffix(".partial")
    save_file({STATES: states}, temporary)
    os.replace(temporary, file)


def _some(batch: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: batch[name] for name in names if name in batch}
