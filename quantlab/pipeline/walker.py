"""The walk of one recipe through the rooms: calibrate, verify, then one child that measures on one opened engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlab import catalog, judge
from quantlab.catalog import Found
from quantlab.engines import Ability, Engine, sdks
from quantlab.errors import QuantlabError, Refused
from quantlab.ledgers import Ledger
from quantlab.pipeline import identity
from quantlab.pipeline.ask import STAGES, Resolved
from quantlab.pipeline.built import EngineStages
from quantlab.pipeline.specs import Part, Specs
from quantlab.pipeline.stage import Stages, Watcher
from quantlab.pipeline.station import Station
from quantlab.pipeline.walk import Walk
from quantlab.plans import Plan
from quantlab.records import (
    Accuracy,
    Artifact,
    Calibrated,
    CalibrateJob,
    CalibrationSet,
    Failure,
    FinishedJob,
    Host,
    MeasureJob,
    Model,
    Recipe,
    Verification,
    VerifyJob,
    Weights,
)

if TYPE_CHECKING:
    from quantlab.pipeline.finished import Adopted


@dataclass
class Walker:
    """Walks one recipe after the other through the stages; keeps the baseline's reference for the later ones."""

    resolved: Resolved
    weights: Weights
    host: Host
    ledger: Ledger
    watch: Watcher
    reference: tuple[str, str] | None = None
    """Identity and absolute path of the baseline's distribution."""
    adopted: Mapping[str, Adopted] = field(default_factory=dict)
    """Name -> checkpoint, of the candidates that were made elsewhere."""
    stages: Stages = field(init=False)
    station: Station = field(init=False)
    engine: Engine = field(init=False)
    specs: Specs = field(init=False)

    def __post_init__(self) -> None:
        ask = self.resolved.ask
        timed_only = not set(ask.stages) & {"canary", "fidelity", "accuracy"}
        self.station = Station(ask.engine, self.host, sdks.TIMING if timed_only else sdks.MEASURING)
        self.engine = self.station.engine
        self.specs = Specs(self.resolved, self.station)
        self.stages = Stages(self.ledger, self.host, name_of(self.resolved.model), self.watch, ask.threads)

    @cached_property
    def measuring(self) -> EngineStages:
        """Runs children where the engine lives."""
        name, threads = name_of(self.resolved.model), self.resolved.ask.threads
        return EngineStages(self.station, self.ledger, name, self.watch, threads)

    def require_engine(self) -> None:
        """Refuse in seconds, before anything is calibrated, when measuring is asked for and cannot be done.

        Raises:
            NoAccess, Refused, BadInput: the engine, or the load generator that the grid wants, is absent, of another
                version, or does not start.
        """
        if self._wanted() and self.station.host and self.station.command:
            self.watch.say(f"engine {self.station.name}: {self.station.version}, in {self.station.place}")
        if "throughput" in self._wanted():
            self.station.client(self.resolved.grid_record)

    def walk(self, found: Found, recipe: Recipe, planned: Plan) -> Walk:
        """One recipe from weights to measurements. An error of ours ends the walk and is kept in it."""
        walk = Walk(name=found.name, recipe=recipe, notes=tuple(planned.notes))
        if planned.refusals:
            walk.refusal = " ".join(planned.refusals)
            walk.failure = Failure(kind="Refused", problem=walk.refusal)
            return walk
        self.attempt(walk, lambda: self._through(walk, found, planned))
        return walk

    def attempt(self, walk: Walk, work: Callable[[], None]) -> None:
        """Do a part of the walk. An error of ours is kept in it."""
        try:
            work()
        except QuantlabError as error:
            if error.exit_code in (7, 130):  # the ledger itself, or Ctrl-C: no record can be kept of that
                raise
            walk.failure = Failure(kind=type(error).__name__, problem=error.problem, place=error.place, cure=error.cure)
            self.watch.say(f"{walk.name}: {walk.at} failed. {error}")

    def _through(self, walk: Walk, found: Found, planned: Plan) -> None:
        if found.name in self.adopted:
            self._adopt(walk)
        else:
            self._calibrate(walk, found, planned)
            self._verify(walk, self._by_blocks(walk.recipe, planned) or planned.gpus > 1)
        if walk.verification is None or walk.verification.passed:
            self.open(walk)

    def _adopt(self, walk: Walk) -> None:
        walk.calibrated = self.adopted[walk.name].calibrated
        if "verify" in self.resolved.ask.stages:
            walk.at = "verify"
            walk.verification = self.inspect(walk.name)
            walk.identities["verify"] = self._inspection(walk.name)

    def inspect(self, name: str) -> Verification:
        """Hold a checkpoint that was made elsewhere against the model's weights."""
        made = self.adopted[name]
        job = FinishedJob(
            weights=self.weights,
            recipe=next(recipe for found, recipe in self.resolved.recipes if found.name == name),
            calibrated=made.calibrated,
            checkpoint_path=made.here.path,
        )
        return self.stages.verify(self._inspection(name), name, job)

    def _inspection(self, name: str) -> str:
        return identity.inspect(self.adopted[name].calibrated.checkpoint, self.weights, self.host)

    def _calibrate(self, walk: Walk, found: Found, planned: Plan) -> None:
        walk.at = "calibrate"
        known, job = self.calibration(found, walk.recipe, planned)
        walk.calibrated = self.stages.calibrate(known, walk.name, job)
        walk.identities["calibrate"] = known

    def calibration(self, found: Found, recipe: Recipe, planned: Plan) -> tuple[str, CalibrateJob]:
        """Identity and job of a calibration. Raises: BadInput: no such calibration set."""
        ask = self.resolved.ask
        data = catalog.calibration_set(recipe.calibration.set, found.path.parent) if recipe.calibration else None
        record = data.record if data else None
        assert record is None or isinstance(record, CalibrationSet)
        content = catalog.set_digest(data) if data else ""
        known = identity.calibrate(self.weights, recipe, planned.group_size, content, self.host, ask.config.device)
        job = CalibrateJob(
            weights=self.weights,
            model=self.resolved.model,
            recipe=recipe,
            recipe_name=found.name,
            group_size=planned.group_size,
            set=record,
            set_folder=str(catalog.base(data)) if data else None,
            into=str(self.ledger.checkpoint_folder(known)),
            device=ask.config.device,
            threads=ask.threads,
            layerwise=self._by_blocks(recipe, planned),
            gpus=planned.gpus if planned.gpus > 1 else ask.gpus,
        )
        return known, job

    def _by_blocks(self, recipe: Recipe, planned: Plan) -> bool:
        return recipe.preset is not None and (self.resolved.ask.layerwise or planned.layerwise)

    def _verify(self, walk: Walk, layerwise: bool) -> None:
        if "verify" not in self.resolved.ask.stages:
            return
        walk.at = "verify"
        calibrated = _known(walk.calibrated)
        known = identity.verify(calibrated, walk.recipe, self.host)
        job = VerifyJob(
            weights=self.weights,
            recipe=walk.recipe,
            calibrated=calibrated,
            checkpoint_path=str(self.ledger.path(calibrated.checkpoint.path)),
            device=self.resolved.ask.config.device,
            layerwise=layerwise,
        )
        walk.verification = self.stages.verify(known, walk.name, job)
        walk.identities["verify"] = known

    def open(self, walk: Walk) -> None:
        """Build the artifact and measure on it what comes first: all stages, or those that an early run begins with."""
        wanted = self._wanted()
        if "fidelity" in self.resolved.ask.stages and self._blind():
            self.note(walk, f"no fidelity: engine {self.engine.name} hands out no distributions; engine torch does.")
        if not wanted:
            return
        walk.at = wanted[0]
        if self.resolved.suite_record.modality == "vision" and Ability.IMAGES not in self.engine.abilities:
            why = "the suite asks about pictures, and this engine takes none here; engine torch does."
            raise Refused(why, place=f"engine {self.engine.name}")
        walk.artifact = self.measuring.artifact(walk, _known(walk.calibrated).checkpoint, self.resolved.ask.config)
        for text in walk.artifact.notes:
            self.note(walk, text)
        if not self.resolved.policy.early:
            self.measure(walk, wanted)
            return
        if self._whole(walk):
            wanted.remove("accuracy")
        self.measure(walk, [stage for stage in wanted if stage != "throughput"], (0, self.resolved.policy.first_look))

    def measure(self, walk: Walk, wanted: Sequence[str], part: Part | None = None) -> None:
        """Measure stages on one opened engine. `part`: the slice of the suite that the accuracy stage scores."""
        if not wanted:
            return
        walk.at = wanted[0]
        known = self._identities(walk, wanted, part)
        sliced = {} if part is None or "accuracy" not in known else {f"accuracy {part[0]}-{part[1]}": known["accuracy"]}
        walk.identities |= {stage: its for stage, its in known.items() if not sliced or stage != "accuracy"} | sliced
        try:
            results = self.measuring.measure(
                known, walk.name, lambda missing, folder: self._job(walk, missing, folder, part), self._collapsed
            )
        except QuantlabError:
            # What was finished before stays in the walk, and the stage that failed is named.
            results = {stage: self.measuring.found(stage, its) for stage, its in known.items()}
            walk.at = next((stage for stage, result in results.items() if result is None), walk.at)
            self._take(walk, results, known)
            raise
        self._take(walk, results, known)

    def knows(self, walk: Walk, part: Part) -> bool:
        """The ledger has this slice."""
        return self.stages.found("accuracy", self._identities(walk, ["accuracy"], part)["accuracy"]) is not None

    def _whole(self, walk: Walk) -> bool:
        """Take a whole suite that the ledger already has: it is as good as all of its slices."""
        if "accuracy" not in self.resolved.ask.stages:
            return False
        known = self._identities(walk, ["accuracy"], None)
        found = self.stages.found("accuracy", known["accuracy"])
        if found is not None:
            walk.identities |= known
            walk.parts = [found]
            self.watch.stage(walk.name, "accuracy", cached=True)
        return found is not None

    def _collapsed(self, results: dict[str, Any]) -> bool:
        return judge.collapsed(results.get("canary"), results.get("fidelity"), self.resolved.policy)

    def _take(self, walk: Walk, results: dict[str, Any], known: dict[str, str]) -> None:
        walk.canary = results.get("canary") or walk.canary
        walk.reference = results.get("reference") or walk.reference
        walk.fidelity = results.get("fidelity") or walk.fidelity
        walk.throughput = results.get("throughput") or walk.throughput
        accuracy: Accuracy | None = results.get("accuracy")
        if accuracy is not None and accuracy.part is not None:
            walk.parts.append(accuracy)
        else:
            walk.accuracy = accuracy or walk.accuracy
        if results.get("reference") is not None:
            self.reference = (known["reference"], str(self.ledger.path(results["reference"].path)))

    def note(self, walk: Walk, text: str) -> None:
        """For whoever looks on, and for the report."""
        walk.notes += (text,)
        self.watch.say(f"{walk.name}: {text}")

    def _wanted(self) -> list[str]:
        """Stages of the measuring child. The first recipe leaves the reference that the others are held against."""
        asked = self.resolved.ask.stages
        wanted: list[str] = [stage for stage in STAGES[2:] if stage in asked]
        if "fidelity" in wanted and (self.resolved.suite_record.fidelity is None or self._blind()):
            wanted.remove("fidelity")
        if self.reference is None:
            wanted = ["reference" if stage == "fidelity" else stage for stage in wanted]
        return wanted

    def _blind(self) -> bool:
        """The engine hands out no distributions, so there is no fidelity to measure."""
        return Ability.FULL_LOGITS not in self.engine.abilities

    def _identities(self, walk: Walk, wanted: Sequence[str], part: Part | None) -> dict[str, str]:
        return self.specs.identities(_built(walk), wanted, part, self.reference[0] if self.reference else "")

    def _job(self, walk: Walk, missing: Sequence[str], folder: Path, part: Part | None) -> MeasureJob:
        return self.specs.job(_built(walk), missing, folder, part, self.reference[1] if self.reference else None)


def name_of(model: Model) -> str:
    """The model in an entry: its word, or a local folder's own name without the place it lies in."""
    return Path(model.location).name if model.source == "path" else model.word


def _built(walk: Walk) -> Artifact:
    assert walk.artifact is not None, "an artifact is built before it is measured"
    return walk.artifact


def _known(calibrated: Calibrated | None) -> Calibrated:
    assert calibrated is not None, "calibrate comes first"
    return calibrated
