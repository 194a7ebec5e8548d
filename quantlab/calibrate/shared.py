"""One pass over the calibration data for several recipes: what it showed is kept, and told to the next recipe.

All that a recipe takes from the data is a few numbers a layer, and none of them depends on the recipe, because ModelOpt
measures with its quantizers switched off:

ranges    largest magnitude of each input channel: static scales of FP8 and NVFP4 are its maximum, SmoothQuant takes it
          as it is, an FP8 cache has the same of keys and values
means     mean magnitude of each input channel: what AWQ scales by
losses    of each of AWQ's 11 strengths, a layer. They hang on how the weights are rounded and on nothing else: ModelOpt
          searches W4A8 with its int4 half alone and without rounding the input, so it finds what INT4-AWQ found.

Telling goes through ModelOpt's own doors: a quantizer that collects ranges is shown one row with the largest magnitudes
instead of all rows; AWQ's helper in each layer is handed its means, then its losses. What follows is ModelOpt's own
code on the same numbers, so an export is equal, byte for byte, to one calibrated alone; a test holds that.
Batches of another size round sums in another order, so only passes of equal batches are shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantlab.calibrate.feed import Feed
from quantlab.calibrate.quantizers import activations

if TYPE_CHECKING:
    from quantlab.worker import Reporter

METHODS = ("max", "smoothquant", "awq_lite")
"""Algorithms of ModelOpt that take nothing else from the data."""

Search = tuple[str, str]
"""A layer, and how its weights are rounded."""


@dataclass
class Seen:
    """What the passes over one set of batches showed."""

    by: str
    """The recipe that fed them first."""
    ranges: dict[str, Tensor] = field(default_factory=dict)
    """Quantizer -> [1, ..., channels], largest magnitudes of what it was given."""
    means: dict[str, tuple[Tensor, int, float]] = field(default_factory=dict)
    """Layer -> sum over batches of mean magnitudes [channels], batches, tokens."""
    losses: dict[Search, dict[float, Tensor]] = field(default_factory=dict)
    """Loss of each strength, summed over batches."""


class Passes:
    """What is kept between the recipes of one child."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], Seen] = {}

    def feed(self, digest: str, batches: Sequence[dict[str, Tensor]], recipe: str, method: str, to: Reporter) -> Feed:
        """A forward loop that feeds `batches` only as far as nothing is known of them. `digest`: of the ids fed."""
        if method not in METHODS:
            return Feed(batches, method, to)
        largest = max(len(batch["input_ids"]) for batch in batches)
        return SharedFeed(batches, method, to, self._seen.setdefault((digest, largest), Seen(recipe)), recipe)


class SharedFeed(Feed):
    """A forward loop that looks up before it feeds."""

    def __init__(
        self, batches: Sequence[dict[str, Tensor]], method: str, reporter: Reporter, seen: Seen, recipe: str
    ) -> None:
        super().__init__(batches, method, reporter)
        self.seen = seen
        self.recipe = recipe
        self.told: list[str] = []

    def __call__(self, model: nn.Module) -> None:
        layers = _searched(model)
        if self.calls == 0:
            self._measure(model, layers)
        else:
            self._search(model, layers)

    def notes(self) -> list[str]:
        """As of a feed; and what was taken over from another recipe of the run."""
        told = [f"{' and '.join(self.told)} shared with {self.seen.by}, not measured again"] if self.told else []
        return [*super().notes(), *told]

    def _measure(self, model: nn.Module, layers: dict[str, Any]) -> None:
        """Ranges of all quantizers that are collecting, and AWQ's means."""
        wanted = {name: quantizer for name, quantizer in activations(model) if quantizer._if_calib}
        wanted |= {f"{name}.input_quantizer": None for name, one in layers.items() if one.awq_lite.is_input_quantized}
        known = wanted.keys() <= self.seen.ranges.keys() and layers.keys() <= self.seen.means.keys()
        if not known or not all(_plain(quantizer) for quantizer in wanted.values()):
            with _recorded(model, self.seen.ranges):
                super().__call__(model)
            for name, layer in layers.items():
                self.seen.means[name] = (
                    layer.awq_lite.act_scale,
                    layer.awq_lite.num_cache_steps,
                    layer.awq_lite.num_tokens,
                )
            return
        self.calls += 1
        self.told.append("activations")
        for name, quantizer in wanted.items():
            if quantizer is not None:
                quantizer(self.seen.ranges[name].to(_home(model, name)))
        for name, layer in layers.items():
            self._tell_means(name, layer, layer.weight.device)

    def _tell_means(self, name: str, layer: Any, home: torch.device) -> None:
        """`home`: of the layer's weights; another recipe may have had them on another GPU."""
        if layer.awq_lite.is_input_quantized:  # AWQ's own forward collects the range of the input
            layer(self.seen.ranges[f"{name}.input_quantizer"].to(home))
        means, steps, tokens = self.seen.means[name]
        search = layer.awq_lite
        search.act_scale, search.num_cache_steps, search.num_tokens = means.to(home), steps, tokens

    def _search(self, model: nn.Module, layers: dict[str, Any]) -> None:
        """AWQ's second pass: the loss of every strength."""
        searches = {name: (name, _rounding(layer.weight_quantizer)) for name, layer in layers.items()}
        found = {name: self.seen.losses.get(search) for name, search in searches.items()}
        if any(losses is None or losses.keys() != layers[name].awq_lite.loss.keys() for name, losses in found.items()):
            super().__call__(model)
            for name, layer in layers.items():
                self.seen.losses[searches[name]] = dict(layer.awq_lite.loss)
            return
        self.calls += 1
        self.told.append("AWQ's search")
        for name, layer in layers.items():
            layer.awq_lite.loss = dict(found[name] or {})
            layer.awq_lite.num_search_steps = self.seen.means[name][1]


def _searched(model: nn.Module) -> dict[str, Any]:
    """Layers in which AWQ's helper is at work."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "awq_lite")}


def _home(model: nn.Module, quantizer: str) -> torch.device:
    """Where the weights beside a quantizer lie: those of its layer, or of the attention that it belongs to."""
    return next(model.get_submodule(quantizer.rpartition(".")[0]).parameters()).device


def _plain(quantizer: Any) -> bool:
    """One row of largest magnitudes tells it all it would learn from the data."""
    if quantizer is None:
        return True
    kind = type(quantizer._calibrator).__name__
    return kind == "MaxCalibrator" and quantizer.axis in (None, -1) and quantizer.bias_calibrator is None


def _rounding(quantizer: Any) -> str:
    """How weights are rounded while AWQ searches."""
    blocks = sorted((str(key), str(value)) for key, value in (quantizer.block_sizes or {}).items())
    return f"{quantizer.num_bits} {blocks} {quantizer.axis} {quantizer.unsigned} {quantizer.narrow_range}"


@contextmanager
def _recorded(model: nn.Module, ranges: dict[str, Tensor]) -> Iterator[None]:
    """Keep the ranges of all that quantizers of activations are given, switched on or not."""

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args[0].numel():
                found = args[0].detach().abs().amax(dim=tuple(range(args[0].dim() - 1)), keepdim=True)
                ranges[name] = torch.maximum(ranges[name], found) if name in fresh else found
                fresh.add(name)

        return hook

    fresh: set[str] = set()
    handles = [quantizer.register_forward_pre_hook(keep(name)) for name, quantizer in activations(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
