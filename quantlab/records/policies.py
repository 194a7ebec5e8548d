"""What a person accepts: margin, confidence, and when to stop looking."""

from __future__ import annotations

from typing import Literal

from quantlab.records.ask import Ask


class Policy(Ask, frozen=True, kw_only=True):
    """What is accepted."""

    summary: str
    """One line for `quantlab ls`."""
    baseline: str = "bf16"
    """Recipe against which the others are judged."""
    max_drop: float = 2.0
    """Largest accepted drop of the suite score, in points."""
    confidence: float = 0.95
    """Two-sided confidence of the intervals the verdict rests on."""
    max_gain: float = 3.0
    """A gain that is surely larger than this many points is anomalous, not a success."""
    collapse_kl: float = 3.0
    """Mean KL in nats above which a checkpoint has collapsed."""
    collapse_top1: float = 0.25
    """Top-1 agreement below which a checkpoint has collapsed."""
    max_broken_items: float = 0.01
    """Share of items without a finite score above which a result is anomalous."""
    scope: Literal["population", "suite"] | None = None
    """What a verdict claims (docs/verdicts.md). population: something about all items like these, beyond the suite.
    suite: something about this suite, had it been run in full. null: suite where `early`, else population."""
    early: bool = False
    """Score the items in a random order and stop as soon as every verdict on the suite is decided."""
    first_look: int = 200
    """Items scored before an early run looks for the first time. About what loading a model costs in time."""
    look_growth: float = 2.0
    """Each look knows this many times the items of the one before, and the last all of them."""

    @property
    def claims(self) -> Literal["population", "suite"]:
        """`scope` with its null resolved."""
        return self.scope or ("suite" if self.early else "population")
