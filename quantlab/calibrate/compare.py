"""The numbers of an export, against the source weights and against the probe of the calibrated model.

Weights, for FP8 and plain int4: round the source again with the exported scale; the codes must be the same, except
where a tie fell to the other side. AWQ moved a factor s_k per input channel from the weights into the layer before, so
there is nothing to round again; but column k of the source must still be a multiple of column k of the export, up to
rounding. The best multiple is s_k = <w_k, q_k> / <q_k, q_k>, and what remains is the rounding error:
about step / sqrt(12). A layer that holds another layer's weights leaves nearly everything. NVFP4-AWQ also moved a
factor into the rows of up_proj (fused.py): it is undone with what the columns of down_proj say.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantlab.calibrate import codes, fused, probe, tower
from quantlab.calibrate.blocks import Blocks
from quantlab.calibrate.exported import Exported
from quantlab.calibrate.moved import RECIPROCAL
from quantlab.formats.blocks import passed
from quantlab.formats.modelopt import open_block, open_model
from quantlab.formats.readers import reader_of

SAME_CODES = 0.995
"""Least share of equal codes. In float32 0.13 % differ: ModelOpt divides where its simulation multiplies."""
RESIDUAL = {"fp8": 0.06, "fp8_rowwise": 0.06, "int8_sq": 0.1, "int8_wo": 0.05, "int4_awq": 0.3, "int4": 0.3,
            "int4_awq_g64": 0.3, "int4_awq_g32": 0.3,
            "w4a8_awq": 0.3, "nvfp4": 0.3, "nvfp4_awq": 0.3, "mxfp8": 0.06, "mxfp4": 0.3}  # fmt: skip
"""Largest rounding error of a layer's weights, relative. Expected: FP8 0.026, int8 with a scale a row 0.01, int4 in
groups of 64 about 0.1."""
LAYER = {"fp8": 0.05, "fp8_rowwise": 0.02, "int8_sq": 0.05, "int8_wo": 0.01, "int4_awq": 0.03, "int4": 0.03,
         "int4_awq_g64": 0.03, "int4_awq_g32": 0.03,
         "w4a8_awq": 0.06, "nvfp4": 0.05, "nvfp4_awq": 0.05, "mxfp8": 0.02, "mxfp4": 0.05}  # fmt: skip
"""Largest distance of a layer's output from the probe's. Measured on SmolLM2: FP8 0.07 % on average and 1.7 % at most
(codes of activations that fell to the other side), int4 0.5 % and 1.5 %: its weights were int4 once before, so
many lie exactly between two codes, where ModelOpt's export and its simulation choose differently."""
FOLDED = 0.15
"""The same for a folded checkpoint: its activations are not rounded and its weights are stored in 16 bit."""
LOGITS = 0.15, 0.75
"""Int4: largest mean difference of logits, as a share of their spread, and least top-1 agreement with the probe.
A `pre_quant_scale` that is not applied gives more than 1."""

Finding = tuple[bool, str]


def scales(export: Exported) -> Finding:
    """Every scale is a finite positive number of the right shape."""
    names = [name for name in export.made if name.endswith(("_scale", "_scale_2"))]
    bad = []
    low, high = float("inf"), 0.0
    for name in names:
        scale = export.read(name).float() + (1 if export.rules.exponents else 0)  # an exponent of 0 is a small number
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            bad.append(f"{name} ({int((~(torch.isfinite(scale) & (scale > 0))).sum())} of {scale.numel()})")
        low, high = min(low, float(scale.min())), max(high, float(scale.max()))
    lost = [name for name in export.layers if f"{name}.weight_scale" not in export.made]
    if bad or lost:
        text = f"{len(bad)} with zero, negative or non-finite values: {', '.join(bad[:3])}. " if bad else ""
        return False, (text + (f"{len(lost)} layers without weight_scale, e.g. {lost[0]}." if lost else "")).strip()
    return True, f"{len(names)} tensors of scales, {low:.3g} to {high:.3g}."


def saturation(export: Exported, limit: float) -> Finding:
    """Codes at the end of their range."""
    end = export.rules.end

    def share(name: str) -> float:
        found = codes.stored(export, name)
        own = 1 / found.shape[1] if export.rules.scales == "row" else 0.0  # the largest of a row is there by right
        return max(0.0, float((found.abs() >= end).float().mean()) - own)

    name, worst, mean = _worst(export.each_layer(share))
    return worst <= limit, f"{mean:.3%} of codes at the end of the range, at most {worst:.3%} ({name})."


def weights(export: Exported) -> Finding:
    """The codes are the rounding of the source's weights."""
    name, worst, mean = _worst(_residuals(export))
    text = f"rounding error {mean:.1%} of the weights, at most {worst:.1%} ({name})"
    good = worst <= (RESIDUAL[export.format] if export.quantized else 1.0)
    if not export.rules.moves_scales and export.quantized and export.spec.recipe.rounding == "nearest":
        odd, least, same = _worst(export.each_layer(lambda layer: codes.share_equal(export, layer)), lowest=True)
        text += f"; {same:.3%} of codes equal to the source rounded again, at least {least:.3%} ({odd})"
        good &= least >= SAME_CODES
    apart = _apart(export) if export.quantized else {}
    if apart:
        odd, most, _ = _worst(apart)
        text += f"; rows of {len(apart)} layers undo the columns of the next within {most:.1%} ({odd})"
        good &= most <= RECIPROCAL
    return good, text + "."


def _apart(export: Exported) -> dict[str, float]:
    """Layers with another's factor in their rows -> how badly the two agree."""
    reader, found = reader_of(export.folder, export.layers), {}
    for layer in export.layers:
        moved = fused.rows(export, layer)
        if moved is not None:
            source = export.read_source(f"{layer}.weight").float()
            made = reader.layer(layer, (source.shape[0], source.shape[1])).dense()
            found[layer] = fused.apart(source, made / moved)
    return found


def _residuals(export: Exported) -> dict[str, float]:
    """Rounding error of every layer, what was moved between weights and input taken out."""
    reader = reader_of(export.folder, export.layers) if export.quantized else None

    def residual(layer: str) -> float:
        source = export.read_source(f"{layer}.weight").float()
        outputs, inputs = source.shape
        made = reader.layer(layer, (outputs, inputs)).dense() if reader else export.read(f"{layer}.weight").float()
        if not export.rules.moves_scales:
            return probe.distance(source, made)
        if export.format == "int8_sq":
            return _as_stored(export, layer, source)
        moved = fused.rows(export, layer)
        made = made if moved is None else made / moved
        return probe.distance(source, made * fused.best_columns(source, made))

    return export.each_layer(residual)


def _as_stored(export: Exported, layer: str, source: Tensor) -> float:
    """SmoothQuant's error among the stored numbers. A column that it made 4,000 times larger sets the scale of its
    rows, and all that the other columns lose is there by right: in the source's numbers that was 44 % of one layer of
    SmolLM2, while its output moved by a few percent."""
    made = codes.stored(export, layer) * export.read(f"{layer}.weight_scale").float().reshape(-1, 1)
    if made.shape != source.shape:
        return float("inf")
    return probe.distance(made, source * ((source * made).sum(0) / source.square().sum(0).clamp_min(1e-30)))


def reopened(export: Exported) -> Finding:
    """The export, opened by quantlab's own loader, computes what the calibrated model computed."""
    kept = probe.load(export.folder)
    used = next(kept[f"x.{name}"].dtype for name in export.layers)
    device = "cuda" if export.spec.device != "cpu" and torch.cuda.is_available() else "cpu"
    differ, logits = (_by_blocks if export.spec.layerwise else _whole)(export, kept, used, device)
    name, worst, mean = _worst(differ)
    text = f"outputs of {len(export.layers)} layers differ by {mean:.2%}, at most {worst:.2%} ({name})"
    good = all(value <= (FOLDED if export.simulated else _limit(export, each)) for each, value in differ.items())
    agreed, words = _logits(kept["logits"], logits, export)
    return good and agreed, f"{text}; {words}."


def _limit(export: Exported, layer: str) -> float:
    return LAYER[export.spec.recipe.format_of(layer)]


Reopened = tuple[dict[str, float], Tensor]
"""How far each layer's output is from the probe's, and the logits."""


def _whole(export: Exported, kept: dict[str, Tensor], used: torch.dtype, device: str) -> Reopened:
    model = open_model(export.folder, used, device, native_fp8=False)
    differ = export.each_layer(lambda name: _off(model, name, kept))
    return differ, probe.logits(model, probe.given(kept))


def _by_blocks(export: Exported, kept: dict[str, Tensor], used: torch.dtype, device: str) -> Reopened:
    """As `_whole`, with one decoder block in memory."""
    blocks = Blocks(export.folder, export.spec.weights.architecture, used, torch.device(device))
    given = probe.given(kept)
    hidden = blocks.embed(given["input_ids"])
    differ: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        beside = tower.beside(blocks, {"probe": given}, Path(scratch))["probe"]
        for index in range(blocks.count):
            model = open_block(export.folder, index, used, device)
            inside = [name for name in export.layers if name.startswith(f"{blocks.prefix}.{index}.")]
            differ |= {name: _off(model, name, kept) for name in inside}
            hidden = passed(model, hidden, beside.given(blocks.looks(index)))
        return differ, blocks.logits(hidden[:, :: probe.stride(hidden)]).flatten(0, 1)


def _off(model: Any, layer: str, kept: dict[str, Tensor]) -> float:
    return probe.distance(kept[f"y.{layer}"], probe.output(model, layer, kept[f"x.{layer}"]))


def _logits(kept: Tensor, found: Tensor, export: Exported) -> Finding:
    mean = float((kept - found).abs().mean() / kept.std(-1).mean())
    top1 = float((kept.argmax(-1) == found.argmax(-1)).float().mean())
    text = f"logits by {mean:.2%} of their spread, top-1 {top1:.0%} of {len(kept)} positions"
    rules = [export.rules_of(layer) for layer in export.layers]
    rounded = any(one.codes == "F8_E4M3" or one.input_scale or one.exponents for one in rules)
    if rounded or export.simulated:
        return mean == mean, f"{text} (information: small models are chaotic here)"
    return mean <= LOGITS[0] and top1 >= LOGITS[1], text


def _worst(values: Mapping[str, float], *, lowest: bool = False) -> tuple[str, float, float]:
    """Name and value of the worst layer, and the mean."""
    name = (min if lowest else max)(values, key=lambda key: values[key])
    return name, values[name], sum(values.values()) / len(values)
