"""Quantize with NVIDIA ModelOpt and export a unified Hugging Face checkpoint. The only file that imports modelopt.

What ModelOpt does silently, and what is done about it here:

* AWQ's search costs 11 roundings of every weight *per batch*, so all samples go in one batch if memory allows.
* After AWQ each of q, k, v (and gate, up) has its own input scale; the export averages them and rounds the weights
  again (NVFP4: one common range), so it is another model than the calibrated one.
  `requantize_resmooth_fused_llm_layers` does that to the live model first; from then on both are the same.
* A quantizer that never saw data has no `amax` and is exported without a scale: checked before the export.
* On a CPU the arithmetic is float32 whatever the checkpoint's type: bfloat16 is six times slower there without
  AVX512-BF16, and its rounding would hide what `verify` looks for. What will be stored in 16 bit is rounded
  to 16 bit before the probe is taken.
* NVFP4's blocks are rounded by a GPU kernel. On a CPU ModelOpt's tensor class does it, as a quantizer's backend.
* The export packs the weights in place; the live model is useless afterwards, so the probe comes before it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from quantlab import disk
from quantlab import weights as folders
from quantlab.calibrate import accounting, folded, presets, probe, source
from quantlab.calibrate.feed import Feed, choose_batch, fed, placed
from quantlab.calibrate.pictures import Pictures, noise
from quantlab.calibrate.samples import Samples
from quantlab.errors import Broken, Refused
from quantlab.records import Calibrated, CalibrateJob

if TYPE_CHECKING:
    from quantlab.worker import Reporter

COPIED = sorted(set(folders.IDENTITY) - {"config.json", "hf_quant_config.json", "quant_cfg.json"})
"""Files that are taken over as they are: the tokenizer, its chat template, generation defaults."""

BLOCKS = "quantlab_nvfp4"


@dataclass(frozen=True)
class _Live:
    """The calibrated model and what is known of it."""

    model: nn.Module
    layers: tuple[str, ...]
    data: Samples | Pictures | None
    seconds: float
    device: str
    notes: tuple[str, ...]


def run(spec: CalibrateJob, reporter: Reporter) -> Calibrated:
    """Calibrate and export.

    Raises:
        BadInput: a preset, a calibration set or a value that does not exist.
        NoAccess: the calibration set cannot be had.
        Refused: ModelOpt cannot quantize or export this architecture, or a group size does not divide a layer.
        Broken: weights that are not finite, or a quantizer that saw no data.
    """
    started = time.monotonic()
    reporter.progress("calibrate", 0, 1, "reading the weights")
    source.check_finite(spec.weights.path)
    if spec.recipe.preset is None:
        return accounting.baseline(spec, time.monotonic() - started)
    config = presets.configuration(spec.recipe, spec.group_size, _presets())
    if spec.threads:
        torch.set_num_threads(spec.threads)
    live = _calibrated(spec, config, reporter)
    with folders.written_whole(Path(spec.into)) as folder:
        _write(spec, live, folder, reporter)
        made = accounting.checkpoint(spec, folder, live.layers)
    return Calibrated(
        checkpoint=made,
        layers=live.layers,
        calibration_digest=live.data.digest if live.data else None,
        samples=live.data.count if live.data else 0,
        tokens=live.data.tokens if live.data else 0,
        seconds=round(time.monotonic() - started, 3),
        calibrate_seconds=round(live.seconds, 3),
        peak_bytes=accounting.peak_bytes(),
        peak_gpu_bytes=accounting.peak_gpu_bytes(),
        device=live.device,
        probe=probe.FILE,
        notes=live.notes,
    )


def _presets() -> dict[str, Any]:
    import modelopt.torch.quantization as mtq

    return {name: getattr(mtq, name) for name in dir(mtq) if name.endswith("_CFG")}


def _calibrated(spec: CalibrateJob, config: dict[str, Any], reporter: Reporter) -> _Live:
    import modelopt.torch.quantization as mtq

    model = source.load(spec)
    layers = _insert(model, config)
    data = source.calibration(spec, model)
    method = presets.method(config)
    feed = None
    if data is not None:
        batch = choose_batch(fed(spec.recipe.calibration, data, model), model, together=method.startswith("awq"))
        feed = Feed(data.batches(batch), method, reporter)
        _let_export_see(model, data)
    started = time.monotonic()
    mtq.calibrate(model, config["algorithm"], forward_loop=feed)
    seconds = time.monotonic() - started
    _check_saw_data(model)
    notes = [*_resmooth(model, method), *(feed.notes() if feed else ()), *_as_stored(model, spec)]
    device = accounting.device_name(next(model.parameters()).device)
    return _Live(model, layers, data, seconds, device, tuple(notes))


def _let_export_see(model: Any, data: Samples | Pictures) -> None:
    """ModelOpt's own forward pass finds layers that share an input. On text it skips the cross-attention layers, whose
    gate and up then keep two input scales; `get_dummy_inputs` is its hook for other inputs."""
    if isinstance(data, Pictures):
        model.get_dummy_inputs = lambda: {**placed(data.probe(), model), "use_cache": False}


def _insert(model: nn.Module, config: dict[str, Any]) -> tuple[str, ...]:
    """Put quantizers in, without calibrating; returns the names of the layers whose weights they quantize."""
    import modelopt.torch.quantization as mtq

    name = type(model).__name__
    cure = "Use bf16 for it, or a model of the Llama family."
    try:
        mtq.quantize(model, config | {"algorithm": None})
    except (RuntimeError, NotImplementedError, KeyError, AttributeError) as error:
        first = str(error).partition("\n")[0]
        raise Refused(f"ModelOpt cannot quantize it: {first}", place=name, cure=cure) from error
    layers = tuple(owner.removesuffix(".weight_quantizer") for owner in _quantizers(model, "weight_quantizer"))
    if not layers:
        raise Refused("ModelOpt finds no layer to quantize in it.", place=name, cure=cure)
    for layer in layers:
        _check_group(layer, model.get_submodule(layer))
    if next(model.parameters()).device.type == "cpu":
        _round_blocks_without_gpu(model)
    return layers


def _round_blocks_without_gpu(model: nn.Module) -> None:
    """Give NVFP4's quantizers a backend that needs no GPU."""
    from modelopt.torch.quantization.nn.modules import tensor_quantizer as backends

    if not backends.is_registered_quant_backend(BLOCKS):
        backends.register_quant_backend(BLOCKS, _nvfp4)
    for quantizer in _in_blocks(model):
        quantizer.backend = BLOCKS


def _in_blocks(model: nn.Module) -> Iterator[Any]:
    """NVFP4's quantizers."""
    for name in _quantizers(model):
        quantizer: Any = model.get_submodule(name)
        if (getattr(quantizer, "block_sizes", None) or {}).get("scale_bits") == (4, 3):
            yield quantizer


def _nvfp4(inputs: torch.Tensor, quantizer: Any) -> torch.Tensor:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    second = quantizer.amax.float() / (6 * 448)
    made, scale, _ = NVFP4QTensor.quantize(inputs, quantizer.block_sizes[-1], None, second)
    blocks = quantizer.block_sizes
    back: torch.Tensor = made.dequantize(inputs.dtype, scale=scale, double_scale=second, block_sizes=blocks)
    return back.reshape(inputs.shape)


def _check_group(name: str, layer: nn.Module) -> None:
    blocks = getattr(layer.weight_quantizer, "block_sizes", None) or {}
    size, width = blocks.get(-1), layer.weight.shape[-1]
    if size and int(width) % size:
        raise Refused(
            f"its input width {width} is no multiple of the group size {size}, and the export cannot pack that.",
            place=name,
            cure="Write group_size: auto in the recipe.",
        )


def _quantizers(model: nn.Module, suffix: str = "") -> Iterator[str]:
    """Names of enabled quantizers. A W4A8 weight has two in a row; the row's own name counts."""
    from modelopt.torch.quantization.nn import SequentialQuantizer, TensorQuantizer

    for name, module in model.named_modules():
        if isinstance(module, TensorQuantizer | SequentialQuantizer) and name.endswith(suffix) and module.is_enabled:
            yield name


def _check_saw_data(model: nn.Module) -> None:
    """Every enabled static quantizer has a finite, positive range."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    bad = []
    for name in _quantizers(model):
        quantizer = model.get_submodule(name)
        if isinstance(quantizer, TensorQuantizer) and not _is_dynamic(quantizer):
            amax = quantizer.amax
            if amax is None or not bool((torch.isfinite(amax) & (amax >= 0)).all()) or not bool((amax > 0).any()):
                bad.append(name)
    if bad:
        cure = "Calibrate with data that reach these layers, or switch them off with an override."
        raise Broken(
            f"{len(bad)} quantizers saw no usable data, e.g. {', '.join(bad[:3])}.", place="calibrate", cure=cure
        )


def _is_dynamic(quantizer: Any) -> bool:
    blocks = quantizer.block_sizes or {}
    return bool(getattr(quantizer, "_dynamic", False)) or blocks.get("type") == "dynamic"


def _resmooth(model: nn.Module, method: str) -> list[str]:
    if not (method.startswith("awq") or method == "smoothquant" or any(_in_blocks(model))):
        return []
    from modelopt.torch.export.unified_export_hf import requantize_resmooth_fused_llm_layers

    requantize_resmooth_fused_llm_layers(model)
    return ["layers that share an input were given one common scale before the probe, as the export does"]


def _as_stored(model: nn.Module, spec: CalibrateJob) -> list[str]:
    """Round to the stored type what the export keeps in it; quantized weights are rounded to their own codes."""
    stored, used = source.stored_type(spec.weights.path), next(model.parameters()).dtype
    if stored is used:
        return []
    with torch.no_grad():
        for tensor in _sixteen_bit(model):
            tensor.copy_(tensor.to(stored))
    return [f"calibrated in {_word(used)}, stored in {_word(stored)}"]


def _sixteen_bit(model: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and scales that are not replaced by codes."""
    codes = {name.removesuffix("_quantizer") for name in _quantizers(model, "weight_quantizer")}
    yield from (parameter for name, parameter in model.named_parameters() if name not in codes)
    yield from (buffer for name, buffer in model.named_buffers() if name.endswith("_pre_quant_scale"))


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write(spec: CalibrateJob, live: _Live, folder: Path, reporter: Reporter) -> None:
    """Probe, weights, configuration and tokenizer."""
    reporter.note("calibrate", "Exporting.")
    vocabulary = int(live.model.get_input_embeddings().weight.shape[0])
    data = live.data
    if data is None and hasattr(live.model.config, "vision_config"):
        data = noise(Path(spec.weights.path))
    kept = probe.record(live.model, live.layers, probe.inputs(data, vocabulary))
    if spec.recipe.export == "folded":
        folded.write(spec, live.model, live.layers, folder)
    else:
        _write_unified(spec, live, folder)
    for name in COPIED:
        if (Path(spec.weights.path) / name).is_file():
            shutil.copyfile(Path(spec.weights.path) / name, folder / name)
    probe.save(kept, folder)


def _write_unified(spec: CalibrateJob, live: _Live, folder: Path) -> None:
    """ModelOpt's export. Codes are made in the type of the calibration, whatever is stored beside them: a division in
    bfloat16 rounds twice, and then one FP8 code in fifty is a step off."""
    from modelopt.torch.export import export_hf_checkpoint

    model: Any = live.model
    used, stored = next(model.parameters()).dtype, source.stored_type(spec.weights.path)
    save = model.save_pretrained

    def save_as_stored(into: Path, state_dict: dict[str, torch.Tensor], **options: Any) -> None:
        save(into, state_dict={name: _stored(name, each, stored) for name, each in state_dict.items()}, **options)

    model.save_pretrained = save_as_stored
    try:
        export_hf_checkpoint(model, dtype=used, export_dir=folder)
    except NotImplementedError as error:
        place, cure = f"recipe {spec.recipe_name}", "Set `export: folded` in the recipe to simulate it."
        raise Refused(f"ModelOpt has no export for it: {error}", place=place, cure=cure) from error
    except AssertionError as error:  # ModelOpt's own check of scales: a group of weights that are all zero
        place, cure = f"recipe {spec.recipe_name}", "Look for weights that are all zero; FP8 has no groups."
        raise Broken(f"ModelOpt refuses the export: {str(error)[:200]}", place=place, cure=cure) from error
    config = folders.config(folder)
    disk.write(folder / "config.json", json.dumps(config | {"dtype": _word(stored)}, indent=2).encode())


def _stored(name: str, tensor: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
    """Scales keep their float32: a scale of bfloat16 would shift a whole group by up to 0.4 %."""
    scale = name.endswith(("_scale", "_scale_2")) and not name.endswith("pre_quant_scale")
    return tensor if scale or tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16) else tensor.to(stored)
