"""Mixed precision under a bit budget: what each group of layers costs, and what was made of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from quantlab.records.jobs import CalibrateJob, Spec
from quantlab.records.results import Calibrated, Fidelity, Result
from quantlab.records.verdicts import Run


class Donor(Spec, frozen=True, kw_only=True):
    """A finished export of the same weights in one format for all layers."""

    format: str
    """As in a recipe."""
    calibrated: Calibrated
    path: str
    """Absolute."""
    recipe: CalibrateJob
    """How it was made."""


class SearchPoint(Spec, frozen=True, kw_only=True):
    """A mixture at which groups are scored. As it is by default: all layers in the recipe's own format."""

    kept: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """Format -> layers that have it instead of the recipe's own."""
    halfway: tuple[str, ...] = ()
    """Layers that stand halfway between 16 bit and the recipe's own format. These alone are scored; empty: all are."""


TOGETHER = 4
"""Sequences that the search reads in one pass: reading the layers of the exports costs more than hundreds of tokens."""


class SearchJob(Spec, frozen=True, kw_only=True):
    """Measure what each group of layers costs by itself. Result: Sensitivity."""

    text: CalibrateJob
    """Weights, device and the calibration text that the search reads: `recipe.calibration` says how much of it."""
    donors: tuple[Donor, ...]
    """The formats to compare; the first is the recipe to be repaired."""
    folder: str
    """Where finished sequences are kept between attempts."""
    point: SearchPoint = SearchPoint()
    """Where the model stands while it is scored."""


class GroupCost(Result, frozen=True, kw_only=True):
    """Layers that change their format together, and what each format does to the whole model through them alone."""

    layers: tuple[str, ...]
    weights: int
    bits: dict[str, int]
    """Format -> stored bits of all its weights and scales."""
    kl: dict[str, float]
    """Format -> share of the recipe's KL that the group causes in that format, nats a position
    (calibrate/sensitivity.py); bf16 is 0 and not listed. All groups in the recipe's own format sum to its KL,
    where none was asked again: of a group near the margin it is what the group costs at the mixture of the budget."""
    errors: dict[str, float]
    """Format -> standard error of that over the sequences."""


class Sensitivity(Result, frozen=True, kw_only=True):
    """What every group costs."""

    groups: tuple[GroupCost, ...]
    """In the order of the model."""
    positions: int
    """Predictions on calibration text that were compared."""
    text_digest: str
    """SHA-256 of the token ids of the search."""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


class MixJob(Spec, frozen=True, kw_only=True):
    """Put a checkpoint together out of finished exports. Result: Mixed."""

    base: Donor
    others: tuple[Donor, ...]
    kept: dict[str, tuple[str, ...]]
    """Format -> names of the layers that are taken from its export; bf16: from the weights."""
    into: str
    """Directory to create; written under a temporary name, then renamed."""


class CurvePoint(Result, frozen=True, kw_only=True):
    """One mixture on the curve from the recipe to the format in which layers are kept."""

    name: str
    bits: float
    """Stored bits a weight of the layers that the recipe quantizes, scales included."""
    kept: dict[str, tuple[str, ...]]
    """Format -> layers that have it instead of the recipe's own."""
    predicted: float | None
    """Sum of the shares of its groups, on the search's text: a ranking, not a measurement of this mixture."""
    fidelity: Fidelity | None
    """Measured on the suite's held-out text."""
    made: Literal["recipe", "mixture"]
    """recipe: calibrated and exported by ModelOpt. mixture: put together from finished exports, the same tensors."""
    chosen: bool = False
    """What the new recipe makes."""

    @property
    def layers(self) -> int:
        """Layers that are kept in another format."""
        return sum(len(names) for names in self.kept.values())


class Repair(Result, frozen=True, kw_only=True):
    """What `quantlab repair` found."""

    schema: int
    model: str
    recipe_name: str
    """The recipe that was repaired."""
    repaired_name: str
    """The new recipe."""
    recipe_file: str
    """Its file, as the user calls it."""
    recipe_text: str
    """Its content."""
    budget: float
    """Most bits a weight."""
    sensitivity: Sensitivity
    points: tuple[CurvePoint, ...]
    """By bits."""
    recovered: float | None
    """Share of the recipe's KL that the new one does not have."""
    run: Run
    """Baseline, the recipe and the new one on the suite, with verdicts."""
    created: str
    notes: tuple[str, ...] = ()

    def point(self, name: str) -> CurvePoint | None:
        """The point called `name`."""
        return next((each for each in self.points if each.name == name), None)
