"""How far a calibration block by block has come, on the disk, so that a killed one takes up at the block it was at.

    .<checkpoint>.layers/key.json               what is being made; another key, and it begins again
    .<checkpoint>.layers/seen-00002.safetensors what the vision tower made of the pictures of batch 2 (tower.py)
    .<checkpoint>.layers/block-00003/           the finished block 3 as ModelOpt exports it, its probe and its notes
    .<checkpoint>.layers/state-00004.safetensors   hidden states that go into block 4; there, blocks 0 to 3 are finished

The state is written last and under another name first, so it never speaks of a block that is not whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from quantlab import disk
from quantlab.calibrate import probe, tower
from quantlab.calibrate.blocks import Blocks
from quantlab.calibrate.feed import choose_batch, fed
from quantlab.calibrate.pictures import Pictures, noise
from quantlab.calibrate.samples import Samples
from quantlab.calibrate.stored import held
from quantlab.calibrate.tower import Beside
from quantlab.records import CalibrateJob, digest

PROTOCOL = 2
"""Raised by hand when a half-finished calibration of an older quantlab cannot be gone on with."""


@dataclass
class Walked:
    """What the finished blocks left, and what goes into the next."""

    folder: Path
    given: dict[str, Tensor]
    """What the probe gives the model."""
    beside: list[Beside]
    """Of each batch, and last of the probe: what blocks take beside hidden states."""
    hidden: list[Tensor]
    """Batches of float [samples, length, hidden]; empty where nothing is calibrated."""
    probe: Tensor
    """float [2, length, hidden]: the probe's, out of the quantized blocks."""
    done: int = 0
    """Blocks that are finished."""
    seconds: float = 0.0
    """Spent in calibrating, by this process."""
    resumed_at: int = 0
    layers: list[str] = field(default_factory=list)
    """Quantized layers of the finished blocks."""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, spec: CalibrateJob, blocks: Blocks, data: Samples | Pictures | None, method: str) -> Walked:
        """The first block's hidden states, or those that a killed process left."""
        batches = _batches(spec, blocks, data, method)
        # A model with images is probed with pictures, also where nothing is calibrated.
        shown = noise(Path(spec.weights.path)) if data is None and blocks.sees else data
        given = probe.inputs(shown, int(blocks.text.vocab_size))
        folder = _folder(spec, blocks, data, [len(batch["input_ids"]) for batch in batches])
        named = {f"{index:05d}": batch for index, batch in enumerate(batches)}
        beside = tower.beside(blocks, named | {"probe": given}, folder)
        found = cls(folder, given, list(beside.values()), [], given["input_ids"])
        states = sorted(found.folder.glob("state-*.safetensors"))
        if states:
            found._resume(states[-1])
        else:
            found.hidden = [blocks.embed(batch["input_ids"]) for batch in batches]
            found.probe = blocks.embed(given["input_ids"])
        return found

    def scratch(self, index: int) -> Path:
        """An empty folder for a block's export."""
        folder = self.exported(index)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def exported(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}"

    def keep(
        self,
        index: int,
        layers: Sequence[str],
        notes: Sequence[str],
        seen: dict[str, Tensor],
        after: Tensor,
        hidden: list[Tensor],
    ) -> None:
        """A block is finished: what the probe saw in it, and the hidden states behind it."""
        from safetensors.torch import save_file

        folder = self.exported(index)
        save_file({name: tensor.contiguous() for name, tensor in seen.items()}, folder / "probe.safetensors")
        disk.write(folder / "block.json", json.dumps({"layers": list(layers), "notes": list(notes)}).encode())
        self.hidden, self.probe = hidden, after
        state = {f"hidden.{batch:05d}": tensor.contiguous() for batch, tensor in enumerate(hidden)}
        temporary = self.folder / "state.partial"
        save_file(state | {"probe": after.contiguous()}, temporary)
        os.replace(temporary, self._state(index + 1))
        self._state(index).unlink(missing_ok=True)
        self._count(index)

    def probed(self) -> dict[str, Tensor]:
        """Inputs and outputs of all layers, as the blocks' probes kept them."""
        from safetensors.torch import load_file

        kept: dict[str, Tensor] = {}
        for index in range(self.done):
            kept |= load_file(self.exported(index) / "probe.safetensors")
        return kept

    def _state(self, index: int) -> Path:
        return self.folder / f"state-{index:05d}.safetensors"

    def _count(self, index: int) -> None:
        said: dict[str, Any] = json.loads((self.exported(index) / "block.json").read_bytes())
        self.layers += said["layers"]
        self.notes = list(dict.fromkeys([*self.notes, *said["notes"]]))
        self.done = index + 1

    def _resume(self, state: Path) -> None:
        left = held(state)
        self.probe = left.pop("probe")
        self.hidden = [left[name] for name in sorted(left)]
        self.resumed_at = int(state.stem.removeprefix("state-"))
        for index in range(self.resumed_at):
            self._count(index)


def _batches(
    spec: CalibrateJob, blocks: Blocks, data: Samples | Pictures | None, method: str
) -> list[dict[str, Tensor]]:
    """The same as the whole model is fed: AWQ's search depends on what goes together."""
    if data is None:
        return []
    asked = fed(spec.recipe.calibration, data, blocks.skeleton)
    size = choose_batch(asked, blocks.skeleton, together=method.startswith("awq"), device=blocks.device)
    return data.batches(size)


def _folder(spec: CalibrateJob, blocks: Blocks, data: Samples | Pictures | None, batches: list[int]) -> Path:
    """The folder of this very calibration: what another one left there is taken away."""
    import modelopt

    recipe = msgspec.to_builtins(spec.recipe)
    used = [f"{blocks.dtype}", blocks.device.type, modelopt.__version__, data.digest if data else "", batches]
    key = digest(PROTOCOL, spec.weights.digest, recipe, spec.group_size, *used)
    into = Path(spec.into)
    folder, file = into.with_name(f".{into.name}.layers"), "key.json"
    if not (folder / file).is_file() or json.loads((folder / file).read_bytes()) != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        disk.write(folder / file, json.dumps(key).encode())
    return folder
