"""A model of which layers can be exchanged: those of 16 bit, those of exports, and what stands between the two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantlab.calibrate import damage
from quantlab.calibrate.exported import Exported
from quantlab.formats.layers import Int4Linear, QuantizedLinear
from quantlab.records.repair import SearchPoint


class Bench:
    """The model with the layers of 16 bit and those of the recipe's export, or of a mixture, at hand."""

    def __init__(
        self,
        model: nn.Module,
        opened: dict[str, Exported],
        groups: tuple[tuple[str, ...], ...],
        point: SearchPoint | None = None,
    ) -> None:
        """Args:
        opened: the recipe's export first.
        point: the mixture; None: all layers as the recipe has them.
        """
        self.model: Any = model
        self.opened = opened
        self.group = {name: layers[0] for layers in groups for name in layers}
        self.word = dict.fromkeys(self.group, next(iter(opened)))
        """Layer -> the format that it has."""
        self.halfway = frozenset(point.halfway if point else ())
        for word, names in (point.kept if point else {}).items():
            self.word |= dict.fromkeys(set(names) - self.halfway, word)
        self.own = {name: model.get_submodule(name) for name in self.group}
        self.base = {name: self._standing(word, name) for name, word in self.word.items()}

    @property
    def scored(self) -> tuple[str, ...]:
        """Layers of which the gradient is wanted."""
        return tuple(name for name in self.group if not self.halfway or name in self.halfway)

    @property
    def part(self) -> float:
        """What of g . d is a layer's cost, where it stands."""
        return 1.0 if self.halfway else 0.5

    def computed(self, name: str) -> str | None:
        """The format in which the model computes this layer; None for one that stands halfway."""
        return None if name in self.halfway else self.word[name]

    def _standing(self, word: str, name: str) -> nn.Module:
        layer = self.layer(word, name)
        return Halfway(self.own[name], layer) if name in self.halfway else layer

    def layer(self, word: str, name: str) -> nn.Module:
        """The layer of an export as a module that stands in for the source's."""
        own: Any = self.own[name]
        if word == "bf16":
            return nn.Sequential(own)  # another module than own, which is asked for the exact output
        ((_, layer, factor),) = damage.modules(self.opened[word], [name], own.weight.dtype, own.weight.device)
        layer.bias = own.bias
        return Moved(layer, factor.to(own.weight.device))

    @contextmanager
    def quantized(self) -> Iterator[None]:
        """The model computes as the recipe's export does."""
        for name, layer in self.base.items():
            self.model.set_submodule(name, layer)
        try:
            yield
        finally:
            for name, layer in self.own.items():
                self.model.set_submodule(name, layer)


class Moved(nn.Module):  # type: ignore[misc]
    """A layer of an export behind the source's norm: its input first gets the factor that AWQ put into the norm.

    Rounding has no gradient. Where activations are rounded it is that of the weight (straight through).
    """

    def __init__(self, layer: QuantizedLinear, factor: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.factor.to(x.dtype)
        found: Tensor = self.layer(x)
        if not torch.is_grad_enabled() or isinstance(self.layer, Int4Linear):
            return found
        exact = functional.linear(x, self.layer.dense().to(x.dtype), self.layer.bias)
        return exact + (found - exact).detach()


class Halfway(nn.Module):  # type: ignore[misc]
    """The mean of what a layer and its quantized form make of an input."""

    def __init__(self, own: nn.Module, quantized: nn.Module) -> None:
        super().__init__()
        self.own, self.quantized = own, quantized

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.lerp(self.own(x), self.quantized(x), 0.5)
        return found
