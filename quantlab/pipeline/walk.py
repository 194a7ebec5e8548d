"""What one recipe gave on its way through the rooms; the walker fills it, `assemble` judges it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quantlab.errors import KINDS, QuantlabError
from quantlab.records import (
    Accuracy,
    Artifact,
    Calibrated,
    Canary,
    Comparison,
    Failure,
    Fidelity,
    Recipe,
    Reference,
    Throughput,
    Verification,
)

if TYPE_CHECKING:
    from quantlab.pipeline.assemble import Table


@dataclass
class Walk:
    """What one recipe gave on its way through the rooms."""

    name: str
    recipe: Recipe
    notes: tuple[str, ...] = ()
    refusal: str = ""
    at: str = "plan"
    """The stage it reached last."""
    calibrated: Calibrated | None = None
    verification: Verification | None = None
    canary: Canary | None = None
    reference: Reference | None = None
    fidelity: Fidelity | None = None
    accuracy: Accuracy | None = None
    throughput: Throughput | None = None
    failure: Failure | None = None
    identities: dict[str, str] = field(default_factory=dict)
    artifact: Artifact | None = None
    """What the engine opens."""
    parts: list[Accuracy] = field(default_factory=list)
    """Of an early run: what is known of its accuracy, slice by slice in order of arrival, or the whole suite."""
    comparison: Comparison | None = None
    """Of an early run, as the last look left it."""
    compared: tuple[dict[str, Table], dict[str, Table]] | None = None
    """Of an early run: the items of baseline and candidate that were compared."""

    def require_done(self, place: str = "", why: str = "") -> None:
        """Raise what ended it, as an error of its kind. `place` stands where the failure names none; `why` is added."""
        if self.failure is not None:
            kind = KINDS.get(self.failure.kind, QuantlabError)
            cure = f"{self.failure.cure} {why}".strip()
            raise kind(self.failure.problem, place=self.failure.place or place or self.name, cure=cure)

    @property
    def doubts(self) -> list[str]:
        """Findings of the checks that verify did not pass."""
        return [check.finding for check in self.verification.checks if not check.passed] if self.verification else []
