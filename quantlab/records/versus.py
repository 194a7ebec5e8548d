"""Two runs held against each other: what is concluded when a model, an engine, a recipe or quantlab itself changed."""

from __future__ import annotations

from typing import Literal

from quantlab.records.numbers import Number
from quantlab.records.policies import Policy
from quantlab.records.verdicts import Comparison, Conclusion, Verdict


class Change(Conclusion, frozen=True, kw_only=True):
    """One thing that can change a number, and did change."""

    part: Literal["weights", "recipe", "suite", "grid", "engine", "device", "versions"]
    name: str
    """Field, package or task."""
    before: str
    after: str


class SpeedPair(Conclusion, frozen=True, kw_only=True):
    """The same cell of the grid in both runs."""

    isl: int
    osl: int
    batch: int
    before: Number | None = None
    """Tokens a second; None where the cell is missing or invalid."""
    after: Number | None = None
    ratio: float | None = None
    """After over before."""
    overlap: bool | None = None
    """Whether the spreads of the repeats overlap; None where there is no spread."""
    finding: Literal["same", "faster", "slower", "not judged"] = "not judged"
    why: str = ""
    """Why it was not judged."""


class RecipePair(Conclusion, frozen=True, kw_only=True):
    """One recipe in both runs."""

    recipe_name: str
    status: Literal["unchanged", "accept", "regression", "insufficient", "not comparable", "gone", "new"]
    reason: str
    """One sentence with the figures."""
    changes: tuple[Change, ...] = ()
    """What differs for this recipe alone."""
    before: Verdict | None = None
    """Against its own baseline; None where the run has no such recipe."""
    after: Verdict | None = None
    comparison: Comparison | None = None
    """After against before on the same items; None where one was not scored or its items are not here."""
    kl_before: Number | None = None
    """Against its own baseline."""
    kl_after: Number | None = None
    bytes_before: int | None = None
    """None for a simulated checkpoint: its size is not the format's."""
    bytes_after: int | None = None
    speed: tuple[SpeedPair, ...] = ()


class Side(Conclusion, frozen=True, kw_only=True):
    """Which run."""

    name: str
    """Id in its ledger, or file."""
    model: str
    engine: str
    device: str
    created: str
    command: str


class Versus(Conclusion, frozen=True, kw_only=True):
    """Run against run."""

    schema: int
    before: Side
    after: Side
    policy: Policy
    """The later run's."""
    max_slower: float
    """Loss of speed in percent above which a cell with separate spreads is a regression."""
    changes: tuple[Change, ...]
    """What differs for all recipes."""
    pairs: tuple[RecipePair, ...]
    summary: str
    notes: tuple[str, ...] = ()
