"""Quantize with NVIDIA ModelOpt and export a unified Hugging Face checkpoint.

quantizers, unified and shared are its parts; no other file imports modelopt.

* AWQ's search costs 11 roundings of every weight *per batch*, so all samples go in one batch if memory allows.
* On a CPU the arithmetic is float32 whatever the checkpoint's type: bfloat16 is six times slower there without
  AVX512-BF16, and its rounding would hide what `verify` looks for. What will be stored in 16 bit is rounded
  to 16 bit before the probe is taken.
* Several recipes of one model are calibrated in one child, one after the other: the SDKs are imported and the weights
  checked once, and what a pass over the data showed is told to the next recipe (shared.py). Each gets fresh weights,
  because calibrating changes them.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from quantlab import weights as folders
from quantlab.calibrate import (
    accounting,
    compensate,
    devices,
    folded,
    layerwise,
    mixed,
    presets,
    probe,
    quantizers,
    source,
    spared,
    unified,
)
from quantlab.calibrate.feed import Feed, choose_batch, fed, give_back, placed, return_large
from quantlab.calibrate.pictures import Pictures, noise
from quantlab.calibrate.samples import Samples
from quantlab.calibrate.shared import Passes
from quantlab.errors import QuantlabError
from quantlab.records import Calibrated, CalibrateJob, CalibrateJobs

if TYPE_CHECKING:
    from quantlab.worker import Reporter


ALL_PEAKS = "peak memory is that of the child and all recipes before it"


@dataclass(frozen=True)
class _Live:
    """The calibrated model and what is known of it."""

    model: nn.Module
    layers: tuple[str, ...]
    data: Samples | Pictures | None
    seconds: float
    device: str
    notes: tuple[str, ...]


@dataclass
class Common:
    """What the recipes of one child need not do again."""

    passes: Passes = field(default_factory=Passes)
    finite: set[str] = field(default_factory=set)
    """Weights that were found finite."""

    def check(self, weights: str, reporter: Reporter) -> None:
        """Raises Broken where a weight is not finite."""
        reporter.progress("calibrate", 0, 1, "reading the weights")
        if weights not in self.finite:
            source.check_finite(weights)
            self.finite.add(weights)


def run_all(spec: CalibrateJobs, reporter: Reporter) -> dict[str, str]:
    """Calibrate several recipes of one model. Each one's record is sent as an Event as soon as it is finished.

    Returns:
        Recipe -> why it could not be calibrated. The others are not touched by that.
    """
    common, failed = Common(), {}
    for job in spec.jobs:
        gc.collect()  # a model's hooks hold it in circles
        give_back()
        whole = accounting.forget_peak()
        try:
            made = run(job, reporter.about(job.recipe_name), common, () if whole else (ALL_PEAKS,))
            reporter.about(job.recipe_name).result("calibrate", made)
        except QuantlabError as error:
            failed[job.recipe_name] = str(error)
    return failed


def run(
    spec: CalibrateJob, reporter: Reporter, common: Common | None = None, notes: tuple[str, ...] = ()
) -> Calibrated:
    """Calibrate and export.

    Args:
        spec: the job.
        reporter: is told how far it is.
        common: of a child that calibrates several recipes.
        notes: sentences for the record.

    Raises:
        BadInput: a preset, a calibration set or a value that does not exist.
        NoAccess: the calibration set cannot be had.
        Refused: ModelOpt cannot quantize or export this architecture, or a group size does not divide a layer.
        Broken: weights that are not finite, or a quantizer that saw no data.
    """
    clock, common = accounting.Clock(), common or Common()
    return_large()
    common.check(spec.weights.path, reporter)
    if spec.recipe.preset is None:
        return accounting.baseline(spec, clock)
    config = presets.configuration(spec.recipe, spec.group_size, _presets())
    if spec.threads:
        torch.set_num_threads(spec.threads)
    if spec.layerwise:
        return layerwise.run(spec, config, reporter, notes)
    live = _calibrated(spec, config, reporter, common.passes)
    with folders.written_whole(Path(spec.into)) as folder:
        _write(spec, live, folder, reporter)
        made = accounting.checkpoint(spec, folder, live.layers)
    said = (*live.notes, *notes)
    return accounting.calibrated(made, live.layers, live.data, clock, live.seconds, live.device, said)


def _presets() -> dict[str, Any]:
    first = "modelopt.torch.quantization" not in sys.modules
    with spared.hidden():  # where a child imports ModelOpt first
        import modelopt.torch.quantization as mtq
    if first:  # what the SDKs made is no garbage, and to look through it takes half a second a recipe
        gc.collect()
        gc.freeze()
    return {name: getattr(mtq, name) for name in dir(mtq) if name.endswith("_CFG")}


def _calibrated(spec: CalibrateJob, config: dict[str, Any], reporter: Reporter, passes: Passes) -> _Live:
    import modelopt.torch.quantization as mtq

    model = source.load(spec)
    layers = quantizers.insert(model, config)
    data = source.calibration(spec, model)
    method = presets.method(config)
    feed: Feed | None = None
    if data is not None:
        batch = choose_batch(fed(spec.recipe.calibration, data, model), model, together=method.startswith("awq"))
        feed = passes.feed(data.digest, data.batches(batch), spec.recipe_name, method, reporter)
        _let_export_see(model, data)
    started, enabled = time.monotonic(), list(quantizers.enabled(model))
    found, tokens = _learnt(spec, model, layers, enabled, data, reporter)
    mixed.calibrate(model, spec.recipe, enabled, config["algorithm"], feed, mtq.calibrate)
    quantizers.check_saw_data(model)
    notes = [*devices.notes(model), *quantizers.resmooth(model, method), *(feed.notes() if feed else ())]
    notes += compensate.run(model, found, tokens) if found else []
    seconds = time.monotonic() - started
    notes += quantizers.as_stored(model, source.stored_type(spec.weights.path))
    device = accounting.device_name(next(model.parameters()).device)
    return _Live(model, layers, data, seconds, device, tuple(notes))


def _learnt(
    spec: CalibrateJob,
    model: nn.Module,
    layers: Sequence[str],
    enabled: Sequence[str],
    data: Samples | Pictures | None,
    reporter: Reporter,
) -> tuple[compensate.Moments, int]:
    """What compensated rounding goes by, from the 16-bit model, and from how many tokens; nothing for other recipes."""
    if spec.recipe.rounding != "compensated" or data is None:
        return {}, 0
    wide = source.wider(spec, data)
    size = choose_batch(fed(spec.recipe.calibration, wide, model), model, together=False)
    with mixed.off(model, enabled):
        own = mixed.of_own_kind(spec.recipe, layers)
        found = compensate.moments(model, own, Feed(wide.batches(size), "max", reporter))
    return found, wide.tokens if isinstance(wide, Samples) else 0


def _let_export_see(model: Any, data: Samples | Pictures) -> None:
    """ModelOpt's own forward pass finds layers that share an input. On text it skips the cross-attention layers, whose
    gate and up then keep two input scales; `get_dummy_inputs` is its hook for other inputs.

    With pictures it finds too much: keys and values of *all* cross-attention layers take the one tensor that the tower
    made, so all of them would get the average of their scales. No runtime multiplies two layers at once; each layer is
    handed a view of its own.
    """
    if isinstance(data, Pictures):
        model.get_dummy_inputs = lambda: {**placed(data.probe(), model), "use_cache": False}
        for name, module in model.named_modules():
            if name.endswith(".cross_attn"):
                module.register_forward_pre_hook(_own_view, with_kwargs=True)


def _own_view(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    states = named.get("cross_attention_states")
    return args, named if states is None else named | {"cross_attention_states": states.view_as(states)}


def _write(spec: CalibrateJob, live: _Live, folder: Path, reporter: Reporter) -> None:
    """Probe, weights, configuration and tokenizer."""
    reporter.note("calibrate", "Exporting.")
    vocabulary = int(live.model.get_input_embeddings().weight.shape[0])
    seeing = hasattr(live.model.config, "vision_config")
    data = noise(Path(spec.weights.path)) if live.data is None and seeing else live.data
    kept = probe.record(live.model, live.layers, probe.inputs(data, vocabulary))
    if spec.recipe.export == "folded":
        folded.write(spec, live.model, live.layers, folder)
    else:
        unified.write(live.model, source.stored_type(spec.weights.path), spec.recipe_name, folder)
        mixed.say(folder)
    source.copy_small(spec, folder)
    probe.save(kept, folder)
