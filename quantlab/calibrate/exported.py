"""An export and its source, side by side, as `verify` reads them: by headers, and tensor by tensor."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from quantlab import weights as folders
from quantlab.calibrate.accounting import bits_of
from quantlab.errors import Broken
from quantlab.formats import names
from quantlab.records import FORMATS, Format, VerifyJob

if TYPE_CHECKING:
    from torch import Tensor

Header = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Exported:
    """Both sides."""

    spec: VerifyJob
    folder: Path
    source_folder: Path
    made: Header
    """Tensors of the export."""
    source: Header
    """Tensors of the weights it was made from."""
    _open: dict[Path, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, spec: VerifyJob) -> Exported:
        """Read the headers. Raises as `quantlab.weights.check_folder` for files that are not whole."""
        folder, source = Path(spec.checkpoint_path), Path(spec.weights.path)
        folders.check_folder(folder)
        return cls(spec, folder, source, names.headers(folder), names.headers(source))

    @property
    def format(self) -> str:
        return self.spec.recipe.format

    @property
    def rules(self) -> Format:
        """What the format stores."""
        return FORMATS[self.format]

    def rules_of(self, layer: str) -> Format:
        """What the format of one layer stores."""
        return FORMATS[self.spec.recipe.format_of(layer)]

    def views(self) -> tuple[Exported, ...]:
        """The layers of each format by themselves, as exports of one format; one where all have the same."""
        found: dict[str, list[str]] = {}
        for name in self.layers:
            found.setdefault(self.spec.recipe.format_of(name), []).append(name)
        return tuple(self._view(word, tuple(layers)) for word, layers in found.items()) if len(found) > 1 else (self,)

    def _view(self, word: str, layers: tuple[str, ...]) -> Exported:
        recipe = msgspec.structs.replace(self.spec.recipe, format=word, keep=())
        calibrated = msgspec.structs.replace(self.spec.calibrated, layers=layers)
        return replace(self, spec=msgspec.structs.replace(self.spec, recipe=recipe, calibrated=calibrated))

    @property
    def simulated(self) -> bool:
        return self.spec.calibrated.checkpoint.simulated

    @property
    def quantized(self) -> bool:
        return self.spec.recipe.preset is not None and not self.simulated

    @property
    def layers(self) -> tuple[str, ...]:
        return self.spec.calibrated.layers

    @property
    def sees(self) -> bool:
        """The model takes images."""
        return any(names.SIGHT.search(name) for name in self.source)

    @property
    def group_size(self) -> int | None:
        """As really used: of the record, else what the shape of a scale says."""
        used = self.spec.calibrated.checkpoint.group_size
        if used is not None or not self.layers:
            return used if self.rules.grouped else None
        scale = self.made.get(f"{self.layers[0]}.weight_scale", {"shape": []})["shape"]
        return self.source[f"{self.layers[0]}.weight"]["shape"][1] // scale[1] if len(scale) == 2 else None

    def layers_with(self, dtype: str) -> set[str]:
        """Layers whose weight has this type in the export."""
        return {name for name in _weights(self.made) if self.made[f"{name}.weight"]["dtype"] == dtype}

    def matrices(self) -> set[str]:
        """Layers of the export whose weight is two-dimensional."""
        return {name for name in _weights(self.made) if len(self.made[f"{name}.weight"]["shape"]) == 2}

    def forgotten(self) -> set[str]:
        """Layers of a kind (q_proj, ...) that is quantized elsewhere, and that no override switched off. The vision
        tower is another matter: it stays in 16 bit, though its layers have the same names."""
        kinds = {name.rpartition(".")[2] for name in self.layers}
        same = {name for name in _weights(self.source) if not names.SIGHT.search(name)}
        off = [o.quantizer for o in self.spec.recipe.overrides if o.enable is False]
        return {
            name
            for name in same - set(self.layers)
            if name.rpartition(".")[2] in kinds
            and not any(fnmatch.fnmatchcase(f"{name}.weight_quantizer", wildcard) for wildcard in off)
            and self.spec.recipe.format_of(name) != "bf16"
        }

    def missing(self) -> set[str]:
        """Tensors of the source that the export lacks. A tied head is stored once, as the embedding."""
        return {name for name in self.source if name not in self.made and not name.startswith("lm_head.")}

    def expected_bytes(self) -> int:
        """From the source's shapes and the recipe: codes and scales; the rest as there."""
        quantized = {f"{name}.weight" for name in self.layers} if self.quantized else set()
        bits = sum(bits_of(one) for name, one in self.source.items() if name not in quantized and name in self.made)
        for name in quantized:
            rows, columns = self.source[name]["shape"]
            rules = self.rules_of(name.removesuffix(".weight"))
            bits += rules.layer_bits(rows, columns, self.group_size if rules.grouped else None)
        return bits // 8

    def tensor_bytes(self) -> int:
        return sum(bits_of(one) for one in self.made.values()) // 8

    def source_bytes(self) -> int:
        return sum(bits_of(one) for one in self.source.values()) // 8

    def read(self, name: str) -> Tensor:
        """A tensor of the export."""
        return self._tensor(self.folder, self.made, name)

    def read_source(self, name: str) -> Tensor:
        """A tensor of the source."""
        return self._tensor(self.source_folder, self.source, name)

    def same(self, name: str) -> bool:
        """The export has the source's values, in its type or another."""
        import torch

        made, source = self.read(name), self.read_source(name)
        return bool(torch.equal(made.to(source.dtype), source)) if made.shape == source.shape else False

    def _tensor(self, folder: Path, header: Header, name: str) -> Tensor:
        from safetensors import safe_open

        if name not in header:
            raise Broken("is missing.", place=name, cure="Calibrate again.")
        file = folder / header[name]["file"]
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        tensor: Tensor = self._open[file].get_tensor(header[name]["stored"])
        return tensor

    def each_layer(self, value: Callable[[str], float]) -> dict[str, float]:
        """`value` of every quantized layer."""
        return {name: value(name) for name in self.layers}


def _weights(header: Header) -> set[str]:
    return {name.removesuffix(".weight") for name in header if name.endswith(".weight")}
