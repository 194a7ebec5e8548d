"""The codes of a weight: as they lie in the export, and as the source rounded again with the exported scales."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quantlab.calibrate.exported import Exported
from quantlab.formats.fp4 import round_e2m1, unpack_e2m1
from quantlab.formats.packing import unpack_codes


def stored(export: Exported, layer: str) -> Tensor:
    """float32 [outputs, inputs]: what the codes of a layer stand for in units of their scales."""
    found = export.read(f"{layer}.weight")
    if found.dtype is torch.uint8:
        return unpack_e2m1(found) if export.rules.fp4 else unpack_codes(found).float()
    return found.float()


def share_equal(export: Exported, layer: str) -> float:
    """Share of codes that are the source's weight rounded with the exported scales; 0 where shapes do not fit.

    A model calibrated in 16 bit, as on a GPU, is divided by its scale in 16 bit: ModelOpt's export rounds twice, and up
    to 6.5 % of FP8's codes lie one step beside those that are rounded once. Either is the source, but all codes of a
    layer in the same way.
    """
    kept, found = export.read_source(f"{layer}.weight"), stored(export, layer)
    unit = _unit(export, layer, kept)
    if unit is None or kept.shape != found.shape:
        return 0.0
    once, rounding = kept.float() / unit, _rounding(export)
    return max(float((rounding(one) == found).float().mean()) for one in (once, once.to(kept.dtype).float()))


def _unit(export: Exported, layer: str, source: Tensor) -> Tensor | None:
    """What a code of 1 stands for, for every weight; None where the scales do not fit."""
    scale = export.read(f"{layer}.weight_scale").float()
    if export.rules.scales != "group":
        return scale.reshape(-1, 1) if scale.numel() in (1, source.shape[0]) else None
    if scale.dim() != 2 or scale.shape[0] != source.shape[0] or source.shape[1] % scale.shape[1]:
        return None
    scale = (scale - 127).exp2() if export.rules.exponents else scale
    unit = scale.repeat_interleave(source.shape[1] // scale.shape[1], 1)
    return unit * export.read(f"{layer}.weight_scale_2").float() if export.rules.second_scale else unit


def _rounding(export: Exported) -> Callable[[Tensor], Tensor]:
    if export.rules.codes == "F8_E4M3":
        return lambda x: x.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    if export.format == "mxfp4":
        return lambda x: round_e2m1(x * (1 - 2.0**-20))  # ModelOpt rounds a tie towards zero here, and 1 in 60 is one
    if export.rules.fp4:
        return round_e2m1
    return lambda x: x.round().clamp(-export.rules.end - 1, export.rules.end)
