"""Calibrate and export one decoder block at a time, so that a model larger than the memory can be calibrated.

A block needs nothing of a model but the hidden states that go into it. So these are kept, for all samples, and walk
from block to block: block i is read from the disk, calibrated on them by the same code that calibrates whole models,
written as file i of the export, and dropped; what came out of it goes into block i + 1. In memory at once: one block,
the hidden states (samples x length x hidden size), and what one batch makes of them.

In Llama 3.2 Vision the tower looks at the pictures first, and what it saw waits on the disk for the blocks that look at
it (tower.py).

Equal to calibrating the whole model, bit by bit: ModelOpt measures with its quantizers switched off, so in a whole
model too a block sees what the unquantized blocks before it made. The probe's two sequences walk beside, through the
quantized blocks, because the probe tells what the quantized model computes.

After each block all that the next one needs is on the disk; a killed run takes up there. ModelOpt 0.47 has a layer-wise
mode of its own (`layerwise` in an algorithm), and an export of models that accelerate offloads. It wants the whole
model as one object, with weights that it writes back to the offload folder, and its calibration cannot be resumed
for AWQ without them, so it is not used.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantlab import disk
from quantlab import weights as folders
from quantlab.calibrate import accounting, presets, probe, quantizers, source, unified
from quantlab.calibrate.blocks import Blocks
from quantlab.calibrate.feed import give_back
from quantlab.calibrate.tower import Beside
from quantlab.calibrate.walked import Walked
from quantlab.errors import Refused
from quantlab.formats.blocks import passed
from quantlab.records import Calibrated, CalibrateJob

if TYPE_CHECKING:
    from quantlab.worker import Reporter

SHARD = "model-{:05d}-of-{:05d}.safetensors"
NOTE = "calibrated one block at a time; the numbers are those of the whole model"


@dataclass
class BlockFeed:
    """A forward loop over one block. Its first call keeps what comes out: ModelOpt measures unquantized."""

    batches: list[Tensor]
    """Hidden states [samples, length, hidden] that go in."""
    beside: list[Beside]
    """What goes in with them."""
    looks: bool
    """The block looks at pictures."""
    calls: int = 0

    def __call__(self, model: nn.Module) -> None:
        first = self.calls == 0
        self.calls += 1
        for index, hidden in enumerate(self.batches):
            with torch.no_grad():
                out = passed(model, hidden, self.beside[index].given(self.looks))
            if first:
                self.out[index] = out
            give_back()

    def __post_init__(self) -> None:
        self.out: list[Tensor] = [torch.empty(0)] * len(self.batches)


def run(spec: CalibrateJob, config: dict[str, Any], reporter: Reporter, notes: Sequence[str] = ()) -> Calibrated:
    """As modelopt.run, one block at a time.

    Args:
        spec: the job.
        config: what `mtq.quantize` takes.
        reporter: is told how many blocks are done.
        notes: sentences for the record.

    Raises:
        Refused: an architecture, export or recipe that needs the whole model.
    """
    clock = accounting.Clock()
    if spec.recipe.keep:
        cure = "Take a machine that holds the whole model."
        raise Refused("layers in two formats are not calibrated block by block.", place=spec.recipe_name, cure=cure)
    if spec.recipe.rounding == "compensated":
        cure = "Take a machine that holds the whole model, or rounding: nearest."
        raise Refused("compensated rounding takes the whole model.", place=spec.recipe_name, cure=cure)
    dtype, device = source.arithmetic(spec)
    blocks = Blocks(spec.weights.path, spec.weights.architecture, dtype, device)
    _require(spec, config, blocks)
    data = source.calibration(spec, blocks.skeleton)
    reporter.progress("calibrate", 0, blocks.count, "looking at pictures" if blocks.sees else "block by block")
    walked = Walked.begin(spec, blocks, data, presets.method(config))
    _through(spec, config, blocks, walked, reporter)
    with folders.written_whole(Path(spec.into)) as folder:
        layers = _together(spec, blocks, walked, folder)
        made = accounting.checkpoint(spec, folder, layers)
    shutil.rmtree(walked.folder)
    reporter.progress("calibrate", 1, 1, "")
    resumed = [f"taken up at block {walked.resumed_at} after a kill"] if walked.resumed_at else []
    said, name = (*walked.notes, NOTE, *resumed, *notes), accounting.device_name(device)
    return accounting.calibrated(made, layers, data, clock, walked.seconds, name, said)


def _require(spec: CalibrateJob, config: dict[str, Any], blocks: Blocks) -> None:
    """Ask the model without weights what would be quantized, before anything is calibrated."""
    if spec.recipe.export == "folded":
        cure = "Calibrate the whole model, or take a recipe that ModelOpt exports."
        raise Refused("a simulation is folded into a whole model.", place=f"recipe {spec.recipe_name}", cure=cure)
    inside: dict[str, set[str]] = {f"{blocks.prefix}.{index}.": set() for index in range(blocks.count)}
    for layer in quantizers.insert(blocks.empty(), config):
        block = next((prefix for prefix in inside if layer.startswith(prefix)), "")
        if not block:
            cure = "Calibrate the whole model, or leave that layer in 16 bit."
            raise Refused(
                f"it quantizes {layer}, which is outside the blocks.", place=f"recipe {spec.recipe_name}", cure=cure
            )
        inside[block].add(layer.removeprefix(block))
    for looks in (False, True):
        alike = [(name, found) for index, (name, found) in enumerate(inside.items()) if blocks.looks(index) is looks]
        if odd := [name for name, found in alike if found != alike[0][1]]:
            problem = f"it quantizes other layers in {odd[0].rstrip('.')} than in {alike[0][0].rstrip('.')}."
            cure = "Calibrate the whole model: ModelOpt describes such a mixture only when it sees all of it."
            raise Refused(problem, place=f"recipe {spec.recipe_name}", cure=cure)


def _through(spec: CalibrateJob, config: dict[str, Any], blocks: Blocks, walked: Walked, reporter: Reporter) -> None:
    """All blocks that are not finished; the first of them says how long the others take."""
    for index in range(walked.done, blocks.count):
        reporter.progress("calibrate", index, blocks.count, "block by block")
        begun = time.monotonic()
        _block(spec, config, blocks, walked, index)
        if index == walked.resumed_at:
            took, left = time.monotonic() - begun, blocks.count - index - 1
            reporter.note("calibrate", f"A block took {took:.0f} s; the other {left} take about {took * left:.0f} s.")


def _block(spec: CalibrateJob, config: dict[str, Any], blocks: Blocks, walked: Walked, index: int) -> None:
    """Calibrate, probe and write one block, and move the hidden states past it."""
    import modelopt.torch.quantization as mtq

    model, looks = blocks.open(index), blocks.looks(index)
    layers = quantizers.insert(model, config)
    feed = BlockFeed(walked.hidden, walked.beside, looks) if walked.hidden else None
    beside = walked.beside[-1].given(looks)
    if blocks.sees:
        _let_export_see(model, walked.probe, beside)
    started = time.monotonic()
    mtq.calibrate(model, config["algorithm"], forward_loop=feed)
    walked.seconds += time.monotonic() - started
    quantizers.check_saw_data(model)
    stored = source.stored_type(spec.weights.path)
    notes = [*quantizers.resmooth(model, presets.method(config)), *quantizers.as_stored(model, stored)]
    seen, after = _probe(model, layers, walked.probe, beside)
    into = walked.scratch(index)
    unified.write(model, stored, spec.recipe_name, into, f"{blocks.prefix}.{index}.")
    walked.keep(index, layers, notes, seen, after, feed.out if feed else [])
    del model, feed, seen
    gc.collect()  # ModelOpt's hooks hold a model in circles
    give_back()


def _probe(
    model: nn.Module, layers: Sequence[str], hidden: Tensor, beside: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """What the layers of a quantized block are given and make of it; and what comes out of the block."""
    return probe.watched(model, layers, lambda: passed(model, hidden, beside))


def _let_export_see(model: Any, hidden: Tensor, beside: dict[str, Tensor]) -> None:
    """As for the whole model: ModelOpt's own forward pass is text, and a block that looks at pictures would not run."""
    model.get_dummy_inputs = lambda: {"inputs_embeds": hidden.to(model.device), **beside, "use_cache": False}


def _together(spec: CalibrateJob, blocks: Blocks, walked: Walked, folder: Path) -> list[str]:
    """All blocks' files and the rest of the tensors as one checkpoint; returns the quantized layers."""
    stored = source.stored_type(spec.weights.path)
    count = blocks.count + 1
    mapped: dict[str, str] = {}
    for index in range(blocks.count):
        name = SHARD.format(index + 1, count)
        (folder / name).hardlink_to(walked.exported(index) / "model.safetensors")
        mapped |= dict.fromkeys(folders.header(folder / name), name)
    name = SHARD.format(count, count)
    mapped |= dict.fromkeys(unified.copy(blocks.stored, blocks.rest, stored, folder / name), name)
    total = sum(one["data_offsets"][1] for file in folder.glob("*.safetensors") for one in _last(folders.header(file)))
    index_file = {"metadata": {"total_size": total}, "weight_map": mapped}
    disk.write(folder / folders.INDEX, json.dumps(index_file, indent=1).encode())
    unified.join([walked.exported(index) for index in range(blocks.count)], folder, spec.recipe_name)
    source.copy_small(spec, folder)
    kept = walked.probed()
    hidden = walked.probe
    kept |= {f"in.{name}": tensor for name, tensor in walked.given.items()}
    kept |= {"logits": blocks.logits(hidden[:, :: probe.stride(hidden)]).flatten(0, 1)}
    probe.save(kept, folder)
    return walked.layers


def _last(header: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The tensor that ends last says how many bytes a file's tensors take."""
    return sorted(header.values(), key=lambda one: one["data_offsets"][1])[-1:]
