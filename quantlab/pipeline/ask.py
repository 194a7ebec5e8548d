"""What a run is asked for, as words, and the same with every word resolved to its record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from quantlab import catalog
from quantlab.catalog import Found
from quantlab.engines import check
from quantlab.errors import BadInput
from quantlab.places import home
from quantlab.records import EngineConfig, Grid, Model, Policy, Recipe, Suite
from quantlab.records.finished import OTHER, PRESET

STAGES = ("calibrate", "verify", "canary", "fidelity", "accuracy", "throughput")
"""Stages a run may consist of, in order; `calibrate` always runs, because all others stand on it."""

AUTO = "auto"
"""The word for the best engine that takes all recipes; see choice.py."""


@dataclass(frozen=True)
class Ask:
    """A run in words, as typed on the command line or passed in a notebook."""

    model: str
    recipes: tuple[str, ...] = ("fp8", "int4_awq")
    suite: str = "quick"
    grid: str = "quick"
    policy: str = "default"
    engine: str = "torch"
    """Name of an engine, or "auto"."""
    config: EngineConfig = field(default_factory=EngineConfig)
    stages: tuple[str, ...] = STAGES
    calibration_set: str | None = None
    """Another calibration set than the recipes name."""
    layerwise: bool = False
    """Calibrate one decoder block at a time, also where the whole model fits."""
    gpus: int = 0
    """GPUs that hold the model while it is calibrated; 0: as few as it needs."""
    max_drop: float | None = None
    """Another margin than the policy's, in points."""
    scope: Literal["population", "suite"] | None = None
    """Another claim than the policy's."""
    early: bool | None = None
    """Stop scoring as soon as it is decided, or not, whatever the policy says."""
    threads: int = 0
    """0: the number of cores."""
    seed: int = 0
    command: str = ""
    """The command line to reproduce it; made up from the fields when empty."""


@dataclass(frozen=True)
class Resolved:
    """The same with records."""

    ask: Ask
    model: Model
    recipes: tuple[tuple[Found, Recipe], ...]
    """Baseline first; no recipe twice."""
    suite: Found
    grid: Found
    policy: Policy
    policy_name: str
    home: Path
    """Where weights that quantlab itself made ready are kept."""
    notes: tuple[str, ...] = ()
    """What was decided on the way from words to records, for the report."""

    @property
    def suite_record(self) -> Suite:
        record = self.suite.record
        assert isinstance(record, Suite)
        return record

    @property
    def grid_record(self) -> Grid:
        record = self.grid.record
        assert isinstance(record, Grid)
        return record


def resolve(ask: Ask) -> Resolved:
    """Look every word up, before anything is started.

    Raises:
        BadInput: an unknown word or stage, with "did you mean".
    """
    unknown = [stage for stage in ask.stages if stage not in STAGES]
    if unknown:
        raise BadInput(f"no stage {unknown[0]!r}.", cure=f"Stages: {', '.join(STAGES)}.")
    if ask.engine != AUTO:
        check(ask.engine)
    _require_possible(ask)
    policy = catalog.policy(ask.policy)
    record = policy.record
    assert isinstance(record, Policy)
    words = list(dict.fromkeys([record.baseline, *ask.recipes]))
    found = catalog.distinct([catalog.elsewhere(word) or catalog.recipe(word) for word in words])
    model = catalog.model(ask.model)
    return Resolved(
        ask=ask,
        model=model,
        recipes=tuple((each, _with_set(each.record, ask.calibration_set, model)) for each in found),
        suite=catalog.suite(ask.suite),
        grid=catalog.grid(ask.grid),
        policy=_with_claim(_with_margin(record, ask.max_drop), ask),
        policy_name=policy.name,
        home=home(),
    )


def _require_possible(ask: Ask) -> None:
    """Raises BadInput where `gpus` contradicts another word."""
    where, device = f"--gpus {ask.gpus}", ask.config.device
    if ask.gpus > 1 and ask.layerwise:
        cure = "Leave one of the two away."
        raise BadInput("one block at a time (--layerwise) is on one GPU.", place=where, cure=cure)
    if ask.gpus > 1 and (device == "cpu" or ":" in device):
        raise BadInput(f"--device {device} is one device.", place=where, cure="Write --device auto.")


def _with_set(record: object, word: str | None, model: Model) -> Recipe:
    """The set that was asked for; for a model with images the recipe's set with images."""
    import msgspec

    if isinstance(record, Model):  # a finished checkpoint, which nobody has read yet
        return Recipe(summary="made elsewhere, not read yet", preset=PRESET, format=OTHER)
    assert isinstance(record, Recipe)
    if record.calibration is None:
        return record
    if word is None:
        word = record.calibration.image_set if model.modality == "vision" else record.calibration.set
    return msgspec.structs.replace(record, calibration=msgspec.structs.replace(record.calibration, set=word))


def _with_margin(policy: Policy, max_drop: float | None) -> Policy:
    import msgspec

    if max_drop is None:
        return policy
    if not 0 < max_drop < 100:
        raise BadInput(f"a margin of {max_drop:g} points is not between 0 and 100.", place="--max-drop")
    return msgspec.structs.replace(policy, max_drop=max_drop)


def _with_claim(policy: Policy, ask: Ask) -> Policy:
    """The policy with the ask's scope and earliness, its scope spelled out.

    Raises:
        BadInput: an early run that shall claim something beyond the suite, or with nothing to decide.
    """
    import msgspec

    early = policy.early if ask.early is None else ask.early
    found = msgspec.structs.replace(policy, early=early, scope=ask.scope or policy.scope)
    if early and found.scope == "population":
        raise BadInput(
            "an early run decides about the suite in full; it can claim nothing beyond the suite.",
            place="--scope population" if ask.scope else f"policy {ask.policy}, field scope",
            cure="Add --scope suite, or run in full with --no-early.",
        )
    if early and not found.max_drop > 0:
        raise BadInput("a margin of 0 points leaves nothing to decide early.", place="--early", cure="Add --max-drop.")
    return msgspec.structs.replace(found, scope=found.claims)
