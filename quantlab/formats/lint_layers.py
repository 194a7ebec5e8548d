"""What TensorRT-LLM's loader asks of one layer, by quant_algo: types and shapes of its weight and its scales.

Read in `_torch/modules/linear.py`. q, k, v and gate, up are fused on loading, so some of their scales must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FUSED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_PLAIN = ("BF16", "F16", "F32")

Tensors = dict[str, dict[str, Any]]


def _fp8(name: str, tensors: Tensors, group: int) -> Iterator[str]:
    yield from _eight(name, tensors)
    yield from _single(name, tensors, "weight_scale", "input_scale")


def _fp8_rowwise(name: str, tensors: Tensors, group: int) -> Iterator[str]:
    """A scale an output; the input's are found while serving."""
    yield from _eight(name, tensors)
    found, rows = tensors.get(f"{name}.weight_scale"), tensors[f"{name}.weight"]["shape"][0]
    if found is None or found["dtype"] != "F32" or _count(found) != rows:
        what = "missing" if found is None else f"{found['dtype']} {found['shape']}"
        yield f"{name}.weight_scale is {what}, not {rows} of F32"


def _eight(name: str, tensors: Tensors) -> Iterator[str]:
    if tensors[f"{name}.weight"]["dtype"] != "F8_E4M3":
        yield f"{name}.weight is {tensors[f'{name}.weight']['dtype']}, not F8_E4M3"


def _single(name: str, tensors: Tensors, *scales: str) -> Iterator[str]:
    for scale in scales:
        found = tensors.get(f"{name}.{scale}")
        if found is None:
            yield f"{name}.{scale} is missing"
        elif found["dtype"] != "F32" or _count(found) != 1:
            yield f"{name}.{scale} is {found['dtype']} {found['shape']}, not one F32"


def _w4a8(name: str, tensors: Tensors, group: int) -> Iterator[str]:
    """As int4, and the two scales of a product in FP8."""
    yield from _int4(name, tensors, group)
    yield from _single(name, tensors, "weight_scale_2", "input_scale")


def _nvfp4(name: str, tensors: Tensors, group: int) -> Iterator[str]:
    """Packed [out, in / 2], block scales [out, in / 16] in E4M3, and the two scales of a product."""
    weight, scale = tensors[f"{name}.weight"], tensors.get(f"{name}.weight_scale")
    if weight["dtype"] != "U8" or len(weight["shape"]) != 2:
        yield f"{name}.weight is {weight['dtype']} {weight['shape']}, not U8 [out, in / 2]"
        return
    wanted = [weight["shape"][0], 2 * weight["shape"][1] // 16]
    if scale is None or scale["shape"] != wanted or scale["dtype"] != "F8_E4M3":
        found = "missing" if scale is None else f"{scale['dtype']} {scale['shape']}"
        yield f"{name}.weight_scale is {found}, not F8_E4M3 {wanted}"
    yield from _single(name, tensors, "weight_scale_2", "input_scale")


def unequal(names: list[str], tensors: Tensors, folder: Path) -> list[str]:
    """Layers that are fused on loading share these two scales, or the loader stops with an assertion."""
    from safetensors import safe_open

    seen: dict[tuple[str, str], float] = {}
    faults = []
    for name in names:
        block, _, kind = name.rpartition(".")
        for part in ("weight_scale_2", "input_scale") if kind in FUSED else ():
            if (held := tensors.get(f"{name}.{part}")) is None:
                continue
            with safe_open(folder / held["file"], framework="np") as file:
                value = float(file.get_tensor(f"{name}.{part}").reshape(-1)[0])
            if seen.setdefault((block, part), value) != value:
                faults.append(f"{name}.{part} differs from that of the layers it is fused with")
    return faults


def _int4(name: str, tensors: Tensors, group: int) -> Iterator[str]:
    """Packed [out / 2, in] and scales [out, in / group]."""
    weight, scale = tensors[f"{name}.weight"], tensors.get(f"{name}.weight_scale")
    if weight["dtype"] != "U8" or len(weight["shape"]) != 2:
        yield f"{name}.weight is {weight['dtype']} {weight['shape']}, not U8 [out / 2, in]"
        return
    rows, inputs = 2 * weight["shape"][0], weight["shape"][1]
    if inputs % group:
        yield f"{name}: {inputs} inputs do not divide by groups of {group}"
    elif scale is None or scale["shape"] != [rows, inputs // group] or scale["dtype"] not in _PLAIN:
        found = "missing" if scale is None else f"{scale['dtype']} {scale['shape']}"
        yield f"{name}.weight_scale is {found}, not {[rows, inputs // group]}"
    before = tensors.get(f"{name}.pre_quant_scale")
    fused = name.rpartition(".")[2] in FUSED
    if fused and before is not None:
        yield f"{name}.pre_quant_scale would be dropped: the loader fuses this layer"
    elif not fused and (before is None or _count(before) != inputs):
        yield f"{name}.pre_quant_scale is {'missing' if before is None else before['shape']}, not [{inputs}]"


def _count(tensor: dict[str, Any]) -> int:
    total = 1
    for side in tensor["shape"]:
        total *= side
    return total


LAYERS: dict[str, Callable[[str, Tensors, int], Iterator[str]]] = {
    "FP8": _fp8,
    "FP8_PER_CHANNEL_PER_TOKEN": _fp8_rowwise,
    "W4A16_AWQ": _int4,
    "W4A8_AWQ": _w4a8,
    "NVFP4": _nvfp4,
}
"""quant_algo -> the faults of one layer."""
