"""The largest input of each linear layer of the tower: what the scales of INT8 and FP8 stand on.

ModelOpt's calibration method `max`, with nothing else around it: a hook a layer. Percentiles and mean squared errors
are for towers with outliers that max does not survive; this one's answers do not move (docs/vision.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from quantlab.encoder.towers import TorchTower

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""pixel_values, aspect_ratio_ids, aspect_ratio_mask."""


@torch.inference_mode()  # type: ignore[untyped-decorator]
def input_ranges(tower: TorchTower, names: Sequence[str], batches: Iterable[Batch]) -> dict[str, float]:
    """Layer -> largest magnitude of its inputs over all batches; padding tiles count, they are computed too."""
    found: dict[str, torch.Tensor] = {}
    hooks = [_watch(tower, name, found) for name in names]
    try:
        for batch in batches:
            tower(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: float(one) for name, one in found.items()}


def _watch(tower: TorchTower, name: str, found: dict[str, torch.Tensor]) -> torch.utils.hooks.RemovableHandle:
    def see(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        largest = inputs[0].detach().abs().amax().float()
        found[name] = torch.maximum(found[name], largest) if name in found else largest

    return tower.get_submodule(name).register_forward_pre_hook(see)
