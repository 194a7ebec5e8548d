"""Where a model's modules lie while it is calibrated: the map that transformers' loader and accelerate's hooks take.

Each module that is a decoder block, or holds none, is named with its GPU (quantlab/spread.py deals the blocks out); a
block is never split, because q, k and v share what AWQ folds into the norm before them. What is outside the blocks is
on the first GPU, the last norm too, so that ids go in and hidden states come out there, and a tied head lies where the
embedding is. accelerate hangs a hook on every module that moves what goes in; ModelOpt's quantizers come after that and
work where their layer's weights lie.

Nothing is given to the machine's memory or to the disk. On a CPU the same hooks are hung on a model in one memory
(`rehearse`): so the path is tested where there is no GPU, but for what only two memories can show.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from quantlab import sight
from quantlab.calibrate.blocks import Blocks
from quantlab.errors import BadInput, Refused
from quantlab.formats.blocks import prefix_of
from quantlab.formats.names import BLOCKS
from quantlab.records import CalibrateJob
from quantlab.sizes import sizes as sizes_of
from quantlab.spread import Spread, fewest, parts

DeviceMap = dict[str, int | str]
LAYERWISE = "Calibrate one block at a time (--layerwise), which asks for a fraction of one GPU."


def on_gpu(spec: CalibrateJob) -> bool:
    """The calibration computes on GPUs."""
    return spec.device.startswith("cuda") or (spec.device == "auto" and torch.cuda.is_available())


def placement(spec: CalibrateJob) -> DeviceMap:
    """`device_map` for the whole model: one GPU where it fits there, several where it must be or `gpus` says so.

    Raises:
        BadInput: more GPUs than there are.
        Refused: the GPUs together are too small, or an architecture whose blocks are not known.
    """
    if not on_gpu(spec):
        return {"": "cpu"}
    torch.cuda.init()
    torch.cuda.empty_cache()  # what a recipe before this one left counts as taken
    if ":" in spec.device:
        return {"": spec.device}
    free = [int(torch.cuda.mem_get_info(index)[0]) for index in range(torch.cuda.device_count())]
    found = chosen(spec, free)
    return {"": 0} if found is None else _named(spec, found)


def chosen(spec: CalibrateJob, free: Sequence[int]) -> Spread | None:
    """How the model lies on GPUs with `free` bytes; None: on the first one.

    Raises:
        BadInput, Refused: as `placement`.
    """
    asked, count = spec.gpus, len(free)
    if asked > count:
        raise BadInput(f"{asked} GPUs are asked for and {count} are visible.", place="--gpus", cure="Ask for fewer.")
    if asked == 1 or (count == 1 and not _too_large(spec, free)):
        return None
    path = Path(spec.weights.path)
    sizes, eye = sizes_of(spec.model, path, spec.recipe), sight.eye(spec.model, path)
    dealt = parts(sizes, path)
    if spec.weights.architecture not in BLOCKS:
        _require_one(spec, free)
        return None
    among = free[:asked] if asked else free
    found = fewest(spec.recipe, sizes, eye, dealt, among, asked)
    if found is None:
        raise Refused(
            f"{len(among)} x {min(among) / 1e9:,.1f} GB of free GPU memory do not hold its "
            f"{(dealt.outside + sum(dealt.blocks)) / 1e9:,.1f} GB of weights and what calibrating makes beside them.",
            place=f"recipe {spec.recipe_name}",
            cure=LAYERWISE + (f" Or ask for more of the {count} GPUs." if len(among) < count else ""),
        )
    return found if found.gpus > 1 else None


def _too_large(spec: CalibrateJob, free: Sequence[int]) -> bool:
    """Not even the weights fit. What only the estimate of the peak says is tried on one GPU, as the plan has it."""
    return spec.weights.bytes > sum(free)


def _require_one(spec: CalibrateJob, free: Sequence[int]) -> None:
    """An architecture whose blocks have no name here stays on the first GPU."""
    if spec.gpus > 1 or _too_large(spec, free[:1]):
        problem = "its decoder blocks are not known here, so it cannot be dealt out to several GPUs."
        raise Refused(problem, place=spec.weights.architecture, cure=f"Known: {', '.join(BLOCKS)}. Ask for one GPU.")


def _named(spec: CalibrateJob, found: Spread) -> DeviceMap:
    """Every module with its GPU."""
    empty = Blocks(spec.weights.path, spec.weights.architecture, torch.bfloat16, torch.device("cpu"))
    return modules(empty.skeleton, empty.prefix, [found.device_of(index) for index in range(empty.count)], 0)


def rehearse(model: Any, spec: CalibrateJob) -> None:
    """Hang the hooks on a model in the machine's memory that `gpus` GPUs would have, as many blocks on each."""
    from accelerate import dispatch_model

    prefix = prefix_of(spec.weights.architecture)
    count = len(model.get_submodule(prefix))
    where = [f"cpu:{index * spec.gpus // count}" for index in range(count)]
    named = modules(model, prefix, where, "cpu:0")
    dispatch_model(model, dict.fromkeys(named, "cpu"), main_device="cpu", skip_keys="past_key_values", force_hooks=True)
    model.hf_device_map = named


def modules(model: Any, prefix: str, blocks: Sequence[int | str], rest: int | str, name: str = "") -> DeviceMap:
    """Modules, as coarse as can be, with their devices.

    Args:
        model: that holds the blocks, or what is left of it below `name`.
        prefix: what the blocks' list is called.
        blocks: each block's device.
        rest: the device of all else.
        name: of `model` in the whole.
    """
    found: DeviceMap = {}
    for child, module in model.named_children():
        full = f"{name}.{child}" if name else child
        if full == prefix:
            found |= {f"{full}.{index}": where for index, where in enumerate(blocks)}
        elif prefix.startswith(f"{full}."):
            found |= modules(module, prefix, blocks, rest, full)
        else:
            found[full] = rest
    return found


def notes(model: Any) -> list[str]:
    """For the record: how many blocks each device held, where there were several."""
    placed = getattr(model, "hf_device_map", None) or {}
    blocks = [str(where) for name, where in placed.items() if name.rpartition(".")[2].isdigit()]
    if len(set(map(str, placed.values()))) < 2:
        return []
    counted = {where: blocks.count(where) for where in dict.fromkeys(map(str, placed.values()))}
    said = ", ".join(f"{count} blocks on {_word(where)}" for where, count in counted.items())
    return [f"spread through accelerate's device map: {said}"]


def _word(where: str) -> str:
    return f"GPU {where}" if where.isdigit() else where
