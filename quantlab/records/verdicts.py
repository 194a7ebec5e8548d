"""What is concluded from the ledger, and what a report shows."""

from __future__ import annotations

from typing import Literal

import msgspec

from quantlab.records.ask import Grid, Model, Recipe, Suite
from quantlab.records.entries import Host
from quantlab.records.flips import Category, Flip
from quantlab.records.jobs import Failure
from quantlab.records.numbers import Number
from quantlab.records.policies import Policy
from quantlab.records.results import Accuracy, Calibrated, Canary, Fidelity
from quantlab.records.speed import Throughput
from quantlab.records.verification import Verification


class Conclusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of what is derived and never measured."""


class TaskComparison(Conclusion, frozen=True, kw_only=True):
    """Baseline and candidate on the same items of one task (or of the whole suite: task "all")."""

    task: str
    metric: str
    n: int
    baseline: Number
    """Unit "share"."""
    candidate: Number
    difference: Number | None = None
    """Candidate minus baseline, in points, with its paired interval; None when incomparable."""
    recovery: Number | None = None
    """Candidate over baseline, unit "share"."""
    regressed: int = 0
    """Items right before and wrong now."""
    improved: int = 0
    """Items wrong before and right now."""
    churn: int = 0
    """Items wrong both times, with a different answer."""
    detectable_drop: float | None = None
    """Smallest true drop in points that this many items would show with power 0.8."""
    nll_baseline: float | None = None
    """Nats that the right answer cost the baseline, on average; None where answers are not chosen by likelihood."""
    nll_change: Number | None = None
    """How many nats more it costs the candidate, with its paired interval. It explains and never decides."""
    incomparable: str = ""
    """Why no difference is shown: what differs, and the cure. Empty when comparable."""


class Look(Conclusion, frozen=True, kw_only=True):
    """Where the claim about a finite suite stands after a look."""

    status: Literal["accept", "regression", "undecided"]
    difference: Number
    """Of the suite in full, in points: an estimate with the confidence sequence's bounds, which hold at all looks
    together; without bounds when all items are known, because then it is exact."""
    scored: int
    """Items known of both."""
    items: int
    """Items of the suite."""
    looks: int
    """How often was looked, this time included; 0 where the whole suite was run at once."""
    decided_after: int | None = None
    """Items after which it was certain, in order of arrival; the rest of the slice came with it. None when undecided or
    exact."""
    needed: int = 0
    """About how many more items decide it, if the difference stays."""


class Comparison(Conclusion, frozen=True, kw_only=True):
    """All tasks and the suite as a whole."""

    suite: TaskComparison
    tasks: tuple[TaskComparison, ...]
    look: Look | None = None
    """The claim about the suite in full, where the policy's scope is the suite."""
    population: Number | None = None
    """With scope suite, for information: the difference with its interval for items like these beyond the suite; None
    when only a part of the suite is known, because stopping early bends that interval."""
    categories: tuple[Category, ...] = ()
    """Kinds of items within the tasks, the most damaged first; empty where no task names kinds."""


class Verdict(Conclusion, frozen=True, kw_only=True):
    """The answer for one recipe."""

    status: Literal["baseline", "accept", "regression", "anomalous", "infeasible", "insufficient"]
    reason: str
    """One sentence with the figures."""
    items_needed: int | None = None
    """For insufficient: about how many more items would decide it."""
    scope: Literal["population", "suite"] = "population"
    """What is claimed: something about items like these beyond the suite, or about this suite in full."""
    rung: str = ""
    """The stage that decided: verify, canary, fidelity, accuracy."""
    items_used: int | None = None
    """Items scored for it."""
    items_total: int | None = None
    """Items of the suite."""


class Candidate(Conclusion, frozen=True, kw_only=True):
    """Everything known about one recipe in one run; the baseline is one of them."""

    recipe_name: str
    recipe: Recipe
    verdict: Verdict
    calibrated: Calibrated | None = None
    verification: Verification | None = None
    canary: Canary | None = None
    fidelity: Fidelity | None = None
    accuracy: Accuracy | None = None
    throughput: Throughput | None = None
    comparison: Comparison | None = None
    """None for the baseline and for what did not get that far."""
    failure: Failure | None = None
    """Where it stopped."""
    failed_stage: str = ""
    flips: tuple[Flip, ...] = ()
    """Items with another answer than the baseline's, the most surprising first."""
    flipped: int = 0
    """How many there are in all; `flips` may hold fewer."""
    identities: dict[str, str] = {}
    """Stage -> identity in the ledger."""


class Run(Conclusion, frozen=True, kw_only=True):
    """One run as the report sees it."""

    schema: int
    model: Model
    engine: str
    suite_name: str
    suite: Suite | None
    grid_name: str
    grid: Grid | None
    policy_name: str
    policy: Policy
    candidates: tuple[Candidate, ...]
    """Baseline first."""
    host: Host
    created: str
    """UTC, ISO 8601."""
    command: str
    """The command that reproduces it."""
    summary: str
    """The answer in one or two sentences."""
    notes: tuple[str, ...] = ()
    """What the reader must know: emulated speed, synthetic items, baseline weights that were quantized before."""
