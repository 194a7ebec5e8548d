"""What `verify` hands back: its checks, and where the precision hurts, measured on the exported weights."""

from __future__ import annotations

import re

from quantlab.records.results import Result


class LayerDamage(Result, frozen=True, kw_only=True):
    """One quantized linear layer of an export, held against its 16-bit weights."""

    layer: str
    """Name of the module, e.g. "model.layers.3.mlp.down_proj"."""
    weights: int
    """Number of its weights."""
    bits: float
    """Stored bits per weight, scales included."""
    weight_error: float
    """|Wq - W| / |W|, Frobenius, after undoing what AWQ moved between layers."""
    output_error: float | None = None
    """|Wq x - W x| / |W x| on the probe's inputs, rounding of the activations included; None without a probe."""
    outlier: float | None = None
    """Largest over median range of its input channels on the probe; None without a probe or where half are zero."""
    outlier_channel: int | None = None
    """That channel."""

    @property
    def error(self) -> float:
        """What layers are ranked by: the error of the output, of the weights where no output is known."""
        return self.weight_error if self.output_error is None else self.output_error

    @property
    def kind(self) -> str:
        """ "down_proj" """
        return self.layer.rpartition(".")[2]

    @property
    def depth(self) -> int | None:
        """Number of the decoder layer; None for a module outside of them."""
        found = re.search(r"\.(\d+)\.", self.layer)
        return int(found[1]) if found else None


class Check(Result, frozen=True, kw_only=True):
    """One finding of `verify`."""

    name: str
    """Short name: size, coverage, amax, input_scale, scales, metadata, reopened."""
    passed: bool
    """False stops the run."""
    finding: str
    """One sentence with the figures."""


class Verification(Result, frozen=True, kw_only=True):
    """The export held against what was meant and against the calibrated model."""

    checks: tuple[Check, ...]
    """All checks, passed or not."""
    damage: tuple[LayerDamage, ...] = ()
    """What quantizing did to each layer, in the order of the model."""
    seconds: float = 0.0
    """Wall time."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)
