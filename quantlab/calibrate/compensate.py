"""Rounding int4 weights so that what one column loses, the columns after it make good (GPTQ, arXiv 2210.17323).

A layer's output error on the calibration text is tr(dW H dW^T), dW the rounding error and H = mean of x x^T over its
inputs. Rounding to nearest looks at each weight by itself. Inputs are correlated, though, so after column k has been
rounded, the best of all changes to the columns not yet rounded is known in closed form: with U the upper Cholesky
factor of H^-1, subtract (w_k - q_k) / U_kk times row k of U. No bit more is stored, and nobody who loads it can tell.

It stands on AWQ, whose scales are in the weights and in H by then. Each group first gets the scale that loses least: of
eleven between half its largest magnitude and all of it, errors weighed with the diagonal of H. ModelOpt 0.47 has both
steps, and neither fits: its `gptq` takes H of inputs without AWQ's scale and rounds the whole matrix again for every
column, its `awq_clip` had not finished SmolLM2 on one core after eight minutes. This takes 40 s there. H is taken from
the 16-bit model before anything is calibrated, so a layer comes out the same whatever format its neighbours have.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from quantlab import kept
from quantlab.calibrate.feed import Feed
from quantlab.errors import Broken

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean: directions that the text does not show are left alone."""
SHRUNK = tuple(0.5 + 0.05 * step for step in range(11))
"""Scales of a group that are tried, as shares of the one its largest magnitude needs."""
COLUMNS = 128
"""Columns after which the rest of the matrix is corrected in one product."""
LOW, HIGH = -8, 7
"""Codes of ModelOpt's int4; a scale is the range / 7."""
Moments = dict[str, Tensor]
"""Layer -> H, float32 [inputs, inputs]; layers that share an input share it."""


def moments(model: nn.Module, layers: Iterable[str], feed: Feed) -> Moments:
    """H of every layer, from one pass over the data with a model that quantizes nothing.

    Memory: the square of each input width, in float32, once for layers that share an input.
    """
    sums: dict[str, Tensor] = {}
    groups = kept.groups(layers)
    handles = [model.get_submodule(names[0]).register_forward_pre_hook(_adding(sums, names[0])) for names in groups]
    try:
        feed(model)
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums[names[0]] for names in groups for name in names}


def _adding(sums: dict[str, Tensor], name: str) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().reshape(-1, args[0].shape[-1]).float()
        own = (x.T @ x).cpu()
        sums[name] = sums[name] + own if name in sums else own

    return hook


def run(model: nn.Module, found: Moments, tokens: int) -> list[str]:
    """Round the weights of these layers in place and give their quantizers the ranges that go with them.

    Args:
        model: calibrated.
        found: H of the layers to be rounded.
        tokens: from which it is, for the record; 0: from pictures.

    Raises:
        Broken: inputs of which no factor can be had.
    """
    for name, moment in found.items():
        layer: Any = model.get_submodule(name)
        before = getattr(layer.input_quantizer, "pre_quant_scale", None)
        moment = moment.to(layer.weight.device)
        if before is not None:
            before = before.detach().float().reshape(-1)
            moment = moment * before[:, None] * before[None]
        quantizer = layer.weight_quantizer
        weight, size = layer.weight.detach().float(), int(quantizer.block_sizes[-1])
        ranges = HIGH * _scales(weight, moment.diagonal(), size)
        quantizer.amax = ranges.reshape(quantizer.amax.shape).to(quantizer.amax.dtype)
        scale = quantizer.amax.float().reshape(ranges.shape) / HIGH
        layer.weight.data = _rounded(weight, scale, _factor(name, moment), size).to(layer.weight.dtype)
    text = f" on {tokens:,} tokens" if tokens else ""
    return [f"{len(found)} layers rounded column by column, each making good what those before it lost{text}"]


def _scales(weight: Tensor, importance: Tensor, size: int) -> Tensor:
    """float32 [outputs, groups]: the scale of each group that loses least.

    Args:
        weight: [outputs, inputs].
        importance: mean square of each input, [inputs].
        size: weights in a group.
    """
    grouped = weight.view(len(weight), -1, size)
    weighed = importance.view(1, -1, size)
    widest = grouped.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny) / HIGH
    best, least = widest, torch.full_like(widest, torch.inf)
    for share in SHRUNK:
        scale = widest * share
        codes = (grouped / scale[..., None]).round_().clamp_(LOW, HIGH)
        lost = ((codes * scale[..., None] - grouped).square_() * weighed).sum(-1)
        best = torch.where(lost < least, scale, best)
        least = torch.minimum(lost, least)
    return best


def _factor(name: str, moment: Tensor) -> Tensor:
    """U, upper triangular: U^T U is the inverse of the damped H."""
    damped = moment + torch.eye(len(moment), device=moment.device) * DAMPING * moment.diagonal().mean()
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed) or not bool(torch.isfinite(lower).all()):
        raise Broken("its inputs are all zero or no numbers.", place=name, cure="Calibrate on other text.")
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


def _rounded(weight: Tensor, scale: Tensor, factor: Tensor, size: int) -> Tensor:
    """Codes times scales, float32 [outputs, inputs]."""
    weight, made = weight.clone(), torch.empty_like(weight)
    for start in range(0, weight.shape[1], COLUMNS):
        end = min(start + COLUMNS, weight.shape[1])
        part, own = weight[:, start:end], factor[start:end, start:end]
        errors = torch.empty_like(part)
        for column in range(end - start):
            unit = scale[:, (start + column) // size]
            made[:, start + column] = (part[:, column] / unit).round().clamp(LOW, HIGH) * unit
            errors[:, column] = (part[:, column] - made[:, start + column]) / own[column, column]
            part[:, column:].addr_(errors[:, column], own[column, column:], alpha=-1)
        weight[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
    return made
