"""ModelOpt's int4 export, written again in the layout of another program.

Codes are moved, not made again: what is read back is the same number, except where folding.py says otherwise. One
shard of the source becomes one shard of the target, so memory holds one shard at a time; the folder appears under
its name when it is whole. quantlab_conversion.json beside the weights says what was chosen and what it cost.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from quantlab import weights
from quantlab.errors import BadInput, Broken, Refused
from quantlab.formats import autoawq, compressed, names
from quantlab.formats.converted import RECORD, Choice, Layout, known, made_from
from quantlab.formats.folding import Folds, Heads, fold
from quantlab.formats.modelopt import read_quantization
from quantlab.formats.packing import pack_int4, unpack_codes, unpack_int4
from quantlab.formats.tensors import Tensors
from quantlab.records import Converted, ConvertJob, encode

if TYPE_CHECKING:
    from quantlab.worker import Reporter

__all__ = ["Converted", "convert"]

LAYOUTS: dict[str, Any] = {module.LAYOUT: module for module in (compressed, autoawq)}
"""layout -> the module that knows it."""
CPU = torch.device("cpu")
_OWN = ("config.json", "hf_quant_config.json", "quant_cfg.json")
"""Of the small files, those that describe the old layout."""
_LICENCES = ("LICENSE*", "NOTICE*", "USE_POLICY*")


def run(spec: ConvertJob, reporter: Reporter) -> Converted:
    """The task "convert" of a child process."""

    def progress(done: int, total: int) -> None:
        reporter.progress("convert", done, total, "shards")

    return convert(Path(spec.source), Path(spec.into), spec.layout, spec.o_proj, digest=spec.digest, progress=progress)


def convert(
    source: Path,
    target: Path,
    layout: Layout,
    o_proj: Choice = "refuse",
    *,
    digest: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Write the int4 checkpoint `source` as `target`; one that is there already and fits is taken as it is.

    Args:
        source: ModelOpt export with quant_algo W4A16_AWQ or W4A16.
        target: folder to make. A conversion that does not fit is replaced, anything else is left alone.
        layout: of the target.
        o_proj: see folding.py.
        digest: of the source, where it is known.
        progress: called with (shards done, shards).

    Raises:
        BadInput: the source is no int4 checkpoint, or the target is something else's folder.
        Refused: a pre_quant_scale without a place, a width that the layout cannot pack, an FP8 key/value cache.
        Broken: a checkpoint that is not whole.
    """
    digest = digest or weights.digest_folder(source)
    found = known(target)
    if found is not None and made_from(found, digest, layout, o_proj):
        return found
    if found is None and target.exists():
        raise BadInput("there is something already.", place=str(target), cure="Name a folder that does not exist.")
    _require_int4(source)
    _require_text(source)
    work = _Work(source, LAYOUTS[layout], average=o_proj == "average")
    with weights.written_whole(target) as folder:
        work.write(folder, progress)
        record = work.record(digest, o_proj, weights.weight_bytes(folder))
        (folder / RECORD).write_bytes(msgspec.json.format(encode(record), indent=1))
    return record


def _require_int4(source: Path) -> None:
    quantization = read_quantization(source)
    if quantization.algorithm not in ("W4A16_AWQ", "W4A16"):
        what = quantization.algorithm or "16 bit"
        raise BadInput(f"this is {what}, not int4.", place=str(source), cure="Convert what recipe int4_awq exported.")
    if quantization.kv_cache is not None:
        raise Refused(
            "its FP8 key/value cache was calibrated before v_proj takes a scale.",
            place=str(source),
            cure="Calibrate without kv_cache, or use engine torch.",
        )


def _require_text(source: Path) -> None:
    """Cross-attention's keys and values are made of the picture's states, and one projector makes those for all layers:
    a `pre_quant_scale` of theirs has no place. And nobody would read the folder."""
    if names.of(source) == names.MLLAMA:
        raise Refused(
            "it is a Llama with images: scales of its cross-attention's keys and values fold into nothing, and who "
            "would read it? vLLM dropped the family after 0.10.2, and AutoAWQ never had it.",
            place=str(source),
            cure="Score it with engine torch; its vision encoder is built by `quantlab build --part vision`.",
        )


@dataclass
class _Work:
    """One conversion under way."""

    source: Path
    to: Any
    """Module of the target's layout."""
    average: bool
    layers: list[str] = field(default_factory=list)
    group_size: int = 0
    requantized: dict[str, float] = field(default_factory=dict)
    folds: Folds = field(init=False)

    def __post_init__(self) -> None:
        self.headers = weights.headers(self.source)
        self.tensors = Tensors(self.source)
        scaled = [name.removesuffix(".pre_quant_scale") for name in self.headers if name.endswith(".pre_quant_scale")]
        scales = {name: self.tensors.scale(f"{name}.pre_quant_scale", CPU) for name in scaled}
        self.folds = fold(scales, self._heads(), average=self.average)
        lost = [layer for layer in self.folds.rows if not self._is_int4(layer)]
        if lost:
            raise Refused(
                "is not int4 and would have to take a scale.",
                place=lost[0],
                cure="Quantize it too, or use engine torch.",
            )

    def write(self, folder: Path, progress: Callable[[int, int], None]) -> None:
        """Weights, index, configuration and the small files into `folder`."""
        from safetensors.torch import save_file

        shards = sorted({one["file"] for one in self.headers.values()})
        places: dict[str, str] = {}
        for count, shard in enumerate(shards):
            progress(count, len(shards))
            made = self._shard(shard)
            save_file(made, folder / shard, metadata={"format": "pt"})
            places |= dict.fromkeys(made, shard)
        if len(shards) > 1 or shards[0] != "model.safetensors":
            total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            index = {"metadata": {"total_size": total}, "weight_map": places}
            (folder / weights.INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        if left := self.tensors.left():
            raise Broken("belongs to no layer that is known.", place=left[0], cure="Export it again.")
        self._describe(folder)
        progress(len(shards), len(shards))

    def record(self, digest: str, o_proj: Choice, size: int) -> Converted:
        return Converted(
            layout=self.to.LAYOUT,
            source=digest,
            layers=tuple(sorted(self.layers)),
            group_size=self.group_size,
            choices={"o_proj": o_proj},
            requantized=self.requantized,
            bytes=size,
            notes=tuple(self._notes()),
        )

    def _notes(self) -> list[str]:
        """Sentences for the report."""
        exact = len(self.folds.rows) - len(self.requantized)
        notes = [f"{exact} pre_quant_scale folded into the layer before, exactly."] if exact else []
        if self.requantized:
            mean = sum(self.requantized.values()) / len(self.requantized)
            notes.append(
                f"{len(self.requantized)} o_proj: scale averaged over the query heads of a value head, and the weight "
                f"rounded to int4 a second time, which moved it by {100 * mean:.1f} % (root mean square)."
            )
        if self.to is autoawq:
            notes.append("scales rounded to float16, as the layout has it (up to 0.05 % each).")
        return notes

    def _shard(self, shard: str) -> dict[str, torch.Tensor]:
        made: dict[str, torch.Tensor] = {}
        for name in sorted(name for name, one in self.headers.items() if one["file"] == shard):
            layer, _, part = name.rpartition(".")
            if self._is_int4(layer) and part == "weight":
                made |= self._layer(layer)
            elif part == "bias" and layer in self.folds.rows:
                bias = self.tensors.take(name, CPU)
                made[name] = (bias.float() * self.folds.rows[layer]).to(bias.dtype)
            elif part in ("weight", "bias"):
                made[name] = self.tensors.take(name, CPU).contiguous()
        return made

    def _layer(self, layer: str) -> dict[str, torch.Tensor]:
        packed = self.tensors.take(f"{layer}.weight", CPU)
        scale = self.tensors.scale(f"{layer}.weight_scale", CPU)
        outputs, inputs = 2 * packed.shape[0], packed.shape[1]
        self._check_widths(layer, outputs, inputs, scale)
        if layer in self.folds.columns:
            packed, scale = self._rounded_again(layer, packed, scale)
        if layer in self.folds.rows:
            scale = scale * self.folds.rows[layer].unsqueeze(1)
        self.layers.append(layer)
        made: dict[str, torch.Tensor] = self.to.tensors(layer, unpack_codes(packed), scale)
        return made

    def _rounded_again(
        self, layer: str, packed: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = unpack_int4(packed, scale) * self.folds.columns[layer]
        packed, scale = pack_int4(wanted, self.group_size)
        moved = (unpack_int4(packed, scale) - wanted).square().mean() / wanted.square().mean()
        self.requantized[layer] = round(float(moved.sqrt()), 5)
        return packed, scale

    def _check_widths(self, layer: str, outputs: int, inputs: int, scale: torch.Tensor) -> None:
        groups = scale.shape[1] if scale.dim() == 2 else 0
        factor = self.folds.rows.get(layer)
        if (
            scale.shape[0] != outputs
            or not groups
            or inputs % groups
            or (factor is not None and len(factor) != outputs)
        ):
            raise Broken(
                f"its scales do not fit a weight of {[outputs, inputs]}.", place=layer, cure="Export it again."
            )
        self.group_size = self.group_size or inputs // groups
        if inputs // groups != self.group_size:
            raise Refused(f"groups of {inputs // groups} and of {self.group_size} in one file.", place=layer)
        if inputs % 8 or outputs % 8:
            raise Refused(f"{outputs} x {inputs} cannot be packed by eights.", place=layer, cure="Use engine torch.")

    def _is_int4(self, layer: str) -> bool:
        return bool(self.headers.get(f"{layer}.weight", {}).get("dtype") == "U8")

    def _heads(self) -> Heads:
        shape = weights.config(self.source)
        query = int(shape["num_attention_heads"])
        return Heads(query, int(shape.get("num_key_value_heads") or query))

    def _describe(self, folder: Path) -> None:
        """config.json in the target's words; tokenizer, generation defaults and licence as they are."""
        shape = weights.config(self.source)
        matrices = [n.removesuffix(".weight") for n, one in self.headers.items() if len(one["shape"]) == 2]
        plain = sorted({"lm_head", *(name for name in matrices if f"{name}.weight" in self.headers)} - set(self.layers))
        shape["quantization_config"] = self.to.config(self.group_size, plain)
        (folder / "config.json").write_text(json.dumps(shape, indent=1), encoding="utf-8")
        small = [self.source / name for name in weights.IDENTITY if name not in _OWN]
        for file in (*small, *(file for word in _LICENCES for file in self.source.glob(word))):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
