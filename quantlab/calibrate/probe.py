"""What the calibrated model computes on a few tokens, kept beside the export so that the reopened one can be held
against it.

Two pictures, because each is blind where the other sees:

layers   Four rows of real input to every quantized layer, and its output. Rounding differs by one step here and there,
         so the outputs agree within a percent or two. This is sharp and cannot be chaotic: no error travels on.
logits   Of the whole model. For INT4 they agree closely, and show what no layer does alone: a norm in which a scale was
         folded wrongly, swapped layers. FP8 with static activation scales is chaotic on small models (a relative
         change of 1e-6 in the embeddings moves SmolLM2's logits by 0.5), so for FP8 they are kept as information.

The file is `quantlab/probe.safetensors` inside the checkpoint's folder: engines read only the top of a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from quantlab.calibrate.feed import placed
from quantlab.calibrate.pictures import Pictures
from quantlab.calibrate.samples import Samples
from quantlab.errors import Broken

FILE = "quantlab/probe.safetensors"
SHAPE = (2, 64)
"""Sequences and tokens of the probe."""
ROWS = ((0, 0), (0, 31), (1, 13), (1, 63))
"""(sequence, position) of the kept rows. The first position carries the largest activations of all."""
STRIDE = 4
"""Every fourth position's logits are kept."""
UNSEEN = "Calibrate a model with images on pictures; text alone does not reach its cross-attention layers."


def inputs(data: Samples | Pictures | None, vocabulary: int) -> dict[str, Tensor]:
    """What the model is given: two pictures with their questions; or int64 [2, 64], the beginnings of two samples,
    random ids where nothing was calibrated."""
    if isinstance(data, Pictures):
        return data.probe()
    if data is not None and data.ids.shape[1] >= SHAPE[1]:
        return {"input_ids": data.ids[[0, -1], : SHAPE[1]].clone()}
    return {"input_ids": torch.randint(vocabulary, SHAPE, generator=torch.Generator().manual_seed(0))}


def record(model: nn.Module, layers: Sequence[str], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs and outputs of each layer, and logits.

    Returns:
        "in.<name>" for each of `given`, "logits" float32 [positions, vocabulary], and for each layer "x.<name>" [4,
        inputs] in the model's type and "y.<name>" float32 [4, outputs].
    """
    kept, found = watched(model, layers, lambda: logits(model, given))
    return kept | {f"in.{name}": tensor for name, tensor in given.items()} | {"logits": found}


def watched(model: nn.Module, layers: Sequence[str], compute: Callable[[], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs and outputs of each layer while `compute` runs the model, and what it returns.

    Raises:
        Broken: a layer that never ran.
    """
    kept: dict[str, Tensor] = {}
    with torch.inference_mode(), _watched(model, layers, kept):
        found = compute()
    if blind := [name for name in layers if f"x.{name}" not in kept]:
        raise Broken(f"{len(blind)} quantized layers never ran, e.g. {blind[0]}.", place="calibrate", cure=UNSEEN)
    return kept, found


def given(kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model was given, out of a probe."""
    return {name.removeprefix("in."): tensor for name, tensor in kept.items() if name.startswith("in.")}


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """float32 [positions, vocabulary] on the CPU: every fourth position, all of a short question."""
    with torch.inference_mode():
        found: Tensor = model(**placed(batch, model), use_cache=False).logits[:, :: stride(batch["input_ids"])]
        return found.float().flatten(0, 1).cpu()


def stride(sequences: Tensor) -> int:
    """Between positions whose logits are kept, of [sequences, positions, ...]."""
    return STRIDE if sequences.shape[1] >= SHAPE[1] else 1


def output(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """What one layer makes of the rows `x`; float32 on the CPU.

    The rows come as the one sequence of a batch, as in the model: ModelOpt's ranges of single tokens remember how many
    axes they saw, and with one axis less they are ranges of single numbers, which round nothing.
    """
    layer = model.get_submodule(name)
    tensors = [*layer.parameters(), *layer.buffers()]
    with torch.inference_mode():
        found: Tensor = layer(x.to(tensors[0].device).unsqueeze(0))
        return found.squeeze(0).float().cpu()


@contextmanager
def _watched(model: nn.Module, layers: Sequence[str], kept: dict[str, Tensor]) -> Iterator[None]:
    """Each layer makes its output of the kept rows right after it ran, while its rounded weight is still at hand: to
    round all weights a second time took as long as the model's own pass."""
    handles = [handle for name in layers for handle in _hooked(model, name, kept)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooked(model: nn.Module, name: str, kept: dict[str, Tensor]) -> Iterator[RemovableHandle]:
    layer = model.get_submodule(name)
    quantizer = getattr(layer, "weight_quantizer", None)
    rounded: list[Tensor] = []
    again: list[bool] = []

    def keep(_: nn.Module, __: tuple[Any, ...], weight: Tensor) -> None:
        rounded[:] = [weight]

    def rows(_: nn.Module, args: tuple[Any, ...]) -> None:
        if not again:
            x = args[0] if args[0].dim() == 3 else args[0].flatten(0, -3)
            sequences = [min(sequence, x.shape[0] - 1) for sequence, _ in ROWS]
            positions = [min(position, x.shape[1] - 1) for _, position in ROWS]
            kept[f"x.{name}"] = x[sequences, positions].detach().cpu()

    def repeat(_: nn.Module, __: tuple[Any, ...], ___: Tensor) -> None:
        if not again:
            again.append(True)
            with _answering(quantizer, rounded):
                kept[f"y.{name}"] = output(model, name, kept[f"x.{name}"])
            again.clear()
            rounded.clear()

    yield layer.register_forward_pre_hook(rows)
    yield layer.register_forward_hook(repeat)
    if quantizer is not None:
        yield quantizer.register_forward_hook(keep)


@contextmanager
def _answering(quantizer: nn.Module | None, rounded: Sequence[Tensor]) -> Iterator[None]:
    """The quantizer gives what it gave a moment ago for the same weight."""
    if quantizer is None or not rounded:
        yield
        return
    answer = rounded[0]
    vars(quantizer)["forward"] = lambda *_: answer
    try:
        yield
    finally:
        del vars(quantizer)["forward"]


def save(kept: dict[str, Tensor], folder: Path) -> str:
    """Write the probe into a checkpoint's folder; returns its path relative to it."""
    from safetensors.torch import save_file

    (folder / FILE).parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in kept.items()}, folder / FILE)
    return FILE


def load(folder: Path) -> dict[str, Tensor]:
    """The probe of a checkpoint's folder. Raises Broken when it is gone."""
    from safetensors.torch import load_file

    if not (folder / FILE).is_file():
        raise Broken(
            "the probe is gone, so nothing can be compared.", place=str(folder / FILE), cure="Calibrate again."
        )
    loaded: dict[str, Tensor] = load_file(folder / FILE)
    return loaded


def distance(kept: Tensor, found: Tensor) -> float:
    """|found - kept| / |kept|, Euclidean, over all elements; infinite when something is not finite."""
    value = float((found - kept).norm() / kept.norm().clamp_min(1e-30))
    return value if value == value else float("inf")
