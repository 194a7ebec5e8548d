"""A mixed checkpoint out of finished exports: some layers from one, the others from another, nothing calibrated anew.

A layer comes out of ModelOpt the same whether its neighbours are quantized or not (mixed.py), so a mixture can be put
together from tensors, in seconds where AWQ's search takes minutes: tests hold it against ModelOpt's own export of the
same mixture, bit for bit. What AWQ folded into a norm goes back where the layers behind that norm are taken from
elsewhere, and the norm comes along from an export that folded its own; they share one, so all of them change together
(kept.py).

Only the curve of a repair is measured on such mixtures. What it chooses is calibrated and exported by ModelOpt.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from quantlab import disk, kept
from quantlab import weights as folders
from quantlab.calibrate import accounting, damage
from quantlab.calibrate.exported import Exported
from quantlab.calibrate.sensitivity import exported
from quantlab.formats.declared import MIXED
from quantlab.records import FORMATS, Calibrated, Keep
from quantlab.records.repair import MixJob

if TYPE_CHECKING:
    from torch import Tensor

    from quantlab.worker import Reporter

PARTS = ("weight", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "bias")
LEFT_OUT = ("hf_quant_config.json", "quant_cfg.json", "config.json")


def run(spec: MixJob, reporter: Reporter) -> Calibrated:
    """Put it together.

    Raises:
        Broken: an export that is not whole.
    """
    from safetensors.torch import save_file

    started = time.monotonic()
    base = exported(spec.base)
    others = {donor.format: exported(donor) for donor in spec.others}
    reporter.progress("mix", 0, 1, "reading")
    tensors = _tensors(base, others, spec.kept)
    recipe = mixture(spec)
    made = msgspec.structs.replace(spec.base.recipe, recipe=recipe, into=spec.into)
    layers = tuple(name for name in base.layers if recipe.format_of(name) != "bf16")
    with folders.written_whole(Path(spec.into)) as folder:
        for file in base.folder.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name not in LEFT_OUT:
                shutil.copyfile(file, folder / file.name)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        _say(spec, layers, folder)
        checkpoint = accounting.checkpoint(made, folder, layers)
    reporter.progress("mix", 1, 1, "")
    return Calibrated(
        checkpoint=msgspec.structs.replace(checkpoint, group_size=spec.base.calibrated.checkpoint.group_size),
        layers=layers,
        seconds=round(time.monotonic() - started, 3),
        peak_bytes=accounting.peak_bytes(),
        notes=("put together from finished exports",),
    )


def mixture(spec: MixJob) -> Any:
    """The recipe that would make the same."""
    keep = tuple(Keep(format=word, layers=names) for word, names in spec.kept.items() if names)  # type: ignore[arg-type]
    return msgspec.structs.replace(spec.base.recipe.recipe, keep=keep)


def _tensors(base: Exported, others: dict[str, Exported], wanted: dict[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """Name in the file -> tensor."""
    elsewhere = {name: word for word, names in wanted.items() for name in names}
    norms = _norms(base, {name: others.get(word) for name, word in elsewhere.items()})
    found: dict[str, Tensor] = {}
    for name, header in base.made.items():
        if name.rpartition(".")[0] not in elsewhere:
            found[header["stored"]] = norms.get(name, base.read)(name)
    for word, names in wanted.items():
        for layer in names:
            found |= _layer(base, others.get(word), layer)
    return found


def _norms(base: Exported, elsewhere: dict[str, Exported | None]) -> dict[str | None, Callable[[str], Tensor]]:
    """Norm that AWQ changed and whose layers come from elsewhere -> how it is read: from the weights, or from an export
    that folded scales of its own into it."""
    found: dict[str | None, Callable[[str], Tensor]] = {}
    for first in (first for first, *_ in kept.groups(base.layers) if first in elsewhere):
        if base.rules.moves_scales and (norm := damage.norm_of(base, first)):
            found[norm] = base.read_source
        other = elsewhere[first]
        if other is not None and other.rules.moves_scales and (norm := damage.norm_of(other, first)):
            found[norm] = other.read
    return found


def _layer(base: Exported, other: Exported | None, layer: str) -> dict[str, Tensor]:
    """The tensors of one layer out of another export, or out of the weights."""
    side = base.source if other is None else other.made
    read = base.read_source if other is None else other.read
    return {side[f"{layer}.{part}"]["stored"]: read(f"{layer}.{part}") for part in PARTS if f"{layer}.{part}" in side}


def _say(spec: MixJob, layers: tuple[str, ...], folder: Path) -> None:
    """config.json and hf_quant_config.json, as ModelOpt writes them where that matters to a reader."""
    own = Path(spec.base.path)
    words = json.loads((own / "hf_quant_config.json").read_text(encoding="utf-8"))["quantization"]
    config = folders.config(own)
    recipe = mixture(spec)
    if kept.others(recipe):
        words = {
            "quant_algo": MIXED,
            "kv_cache_quant_algo": words.get("kv_cache_quant_algo"),
            "quantized_layers": {layer: _words(spec, recipe.format_of(layer)) for layer in layers},
        }
    else:
        words = words | {"exclude_modules": [*(words.get("exclude_modules") or ()), *spec.kept.get("bf16", ())]}
    disk.write(folder / "hf_quant_config.json", json.dumps({"quantization": words}, indent=2).encode())
    config["quantization_config"] = {"quant_method": "modelopt", **words}
    disk.write(folder / "config.json", json.dumps(config, indent=2).encode())


def _words(spec: MixJob, word: str) -> dict[str, Any]:
    rules = FORMATS[word]
    size = rules.group or spec.base.calibrated.checkpoint.group_size
    return {"quant_algo": rules.algorithms[0], **({"group_size": size} if rules.scales == "group" else {})}
