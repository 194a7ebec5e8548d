"""Where the damage is: each quantized layer of an export against its 16-bit weights, one layer in memory at a time.

Two measures, because a layer may be rounded badly where no input ever looks, or well where a few inputs are huge:

weight error   |Wq - W| / |W|. Needs the weights only.
output error   |Wq x - W x| / |W x|, with x what the probe saw at this layer (four tokens, the first of a text among
               them, which carries the largest activations) and Wq x computed as an engine does, so the rounding of
               the activations is in it. Both sides get the same x: an error does not travel from layer to layer.

AWQ multiplies column k of the weight by s_k and the input by 1 / s_k. Where the 1 / s_k lies in the layer's own
pre_quant_scale, reading the layer undoes it. Where it was folded into the norm before, it is the ratio of the exported
norm to the source's; that norm is found among the block's by looking which ratio fits the weights. Where it went into
the rows of the layer before (NVFP4-AWQ, fused.py), both layers are read without it.

An outlier channel is an input channel whose range is many times the median: one static scale for all of them, as FP8
has it, leaves the others few codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantlab.calibrate import fused, probe
from quantlab.calibrate.accounting import PARTS, bits_of
from quantlab.calibrate.exported import Exported
from quantlab.errors import Broken
from quantlab.records import LayerDamage

if TYPE_CHECKING:
    from quantlab.formats.layers import QuantizedLinear

    Computed = tuple[Tensor, Callable[[Tensor], Tensor]]
    """A layer's dense weight, and what it makes of an input."""


def locate(export: Exported) -> tuple[LayerDamage, ...]:
    """The damage of every quantized layer, in the order of the model.

    Raises:
        Broken: a layer that cannot be read, or holds what is no number.
    """
    kept = probe.load(export.folder) if (export.folder / probe.FILE).is_file() else {}
    return tuple(
        _damage(export, name, dense, forward, kept.get(f"x.{name}")) for name, (dense, forward) in _layers(export)
    )


def finding(found: tuple[LayerDamage, ...]) -> str:
    """The figures in one sentence."""
    worst = max(found, key=lambda one: one.error)
    weights = sum(one.weight_error for one in found) / len(found)
    text = f"weights of {len(found)} layers moved by {weights:.1%} on average"
    outputs = [one.output_error for one in found if one.output_error is not None]
    if outputs:
        text += f", their outputs by {sum(outputs) / len(outputs):.1%}"
    return f"{text}; most in {worst.layer} ({worst.error:.1%})."


def _layers(export: Exported) -> Iterator[tuple[str, Computed]]:
    """Name, weight and computation of each quantized layer, read one after the other."""
    from quantlab.formats.readers import reader_of

    reader = None if export.simulated else reader_of(export.folder, export.layers)
    for name in export.layers:
        if reader is None:
            weight = export.read(f"{name}.weight").float()
            yield name, (weight, lambda x, weight=weight: x @ weight.T)  # type: ignore[misc]
        else:
            outputs, inputs = export.source[f"{name}.weight"]["shape"]
            layer = reader.layer(name, (outputs, inputs))
            layer.bias = None
            yield name, (layer.dense(), layer)


def modules(
    export: Exported, layers: Sequence[str], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, QuantizedLinear, Tensor]]:
    """Name, computation and the factor [inputs] that its input lost to the norm before, of some layers of an export.

    The computation takes the export's own input: the source's times that factor.
    """
    from quantlab.formats.readers import reader_of

    reader = replace(reader_of(export.folder, export.layers), dtype=dtype, device=device)
    for name in layers:
        source = export.read_source(f"{name}.weight").float()
        layer = reader.layer(name, (source.shape[0], source.shape[1]))
        yield name, layer, _moved(export, name, source, layer.dense().cpu())


def _damage(
    export: Exported, name: str, made: Tensor, forward: Callable[[Tensor], Tensor], x: Tensor | None
) -> LayerDamage:
    source = export.read_source(f"{name}.weight").float()
    rows = fused.rows(export, name)
    own = torch.ones(1, 1) if rows is None else rows
    made = made / own
    factor = _moved(export, name, source, made)
    parts = (export.made.get(f"{name}.{part}") for part in PARTS)
    output_error, outlier, channel = None, None, None
    if x is not None:
        x = x.float()
        with torch.inference_mode():
            output_error = _finite(name, probe.distance((x / factor) @ source.T, forward(x) / own.T))
        outlier, channel = _outlier(x / factor)
    return LayerDamage(
        layer=name,
        weights=source.numel(),
        bits=round(sum(bits_of(part) for part in parts if part is not None) / source.numel(), 3),
        weight_error=_finite(name, probe.distance(source, made * factor)),
        output_error=output_error,
        outlier=outlier,
        outlier_channel=channel,
    )


def _finite(name: str, error: float) -> float:
    if error == float("inf"):
        raise Broken("it computes what is no number.", place=name, cure="Calibrate again.")
    return round(error, 6)


def _moved(export: Exported, name: str, source: Tensor, made: Tensor) -> Tensor:
    """float32 [inputs]: what column k of the export must be multiplied with to stand for the source's column."""
    columns = fused.columns(export, name, source, made)
    return columns if columns is not None else _norm(export, name, source, made)[1]


def norm_of(export: Exported, name: str) -> str | None:
    """The norm before a layer into which AWQ folded its factor; None where it folded none."""
    for _, layer, _ in modules(export, [name], torch.float32, torch.device("cpu")):
        return _norm(export, name, export.read_source(f"{name}.weight").float(), layer.dense())[0]
    return None


def _norm(export: Exported, name: str, source: Tensor, made: Tensor) -> tuple[str | None, Tensor]:
    """The norm of the block whose change fits the layer best, and that change; ones where none fits better."""
    ratios: dict[str | None, Tensor] = {None: torch.ones(source.shape[1])}
    ratios |= norm_ratios(export, name, source.shape[1])
    if len(ratios) == 1:
        return None, ratios[None]
    fitted = (source * made).sum(0) / made.square().sum(0).clamp_min(1e-30)
    best = min(ratios, key=lambda norm: float((torch.nan_to_num(ratios[norm], 1.0) - fitted).norm()))
    return best, ratios[best].nan_to_num(1.0)


def norm_ratios(export: Exported, name: str, width: int) -> Iterator[tuple[str | None, Tensor]]:
    """Exported over source's weight of each norm in the layer's block that the export changed."""
    block = name.rpartition(".")[0].rpartition(".")[0]
    for norm, one in export.made.items():
        if norm.startswith(f"{block}.") and one["shape"] == [width] and norm.endswith("norm.weight"):
            before, after = export.read_source(norm).float(), export.read(norm).float()
            if not torch.equal(before, after):
                yield norm, torch.where(before == 0, torch.nan, after / before)


def _outlier(x: Tensor) -> tuple[float | None, int | None]:
    """Largest over median range of the input channels, and its channel."""
    ranges = x.abs().amax(0)
    middle = float(ranges.median())
    if not middle > 0:
        return None, None
    return round(float(ranges.max()) / middle, 2), int(ranges.argmax())
