"""What the measuring child is told, and the identities of what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from quantlab import catalog
from quantlab.pipeline import identity
from quantlab.pipeline.ask import Resolved
from quantlab.pipeline.station import Station
from quantlab.records import Artifact, MeasureJob, Suite

Part = tuple[int, int]
"""From which to before which item of a suite, in its random order."""


@dataclass(frozen=True)
class Specs:
    """The same words for every recipe of a run."""

    resolved: Resolved
    station: Station

    def identities(
        self, artifact: Artifact, wanted: Sequence[str], part: Part | None, reference: str
    ) -> dict[str, str]:
        """Stage -> identity. `reference`: that of the baseline's distribution, which only fidelity depends on."""
        resolved = self.resolved
        return {
            stage: identity.measure(
                stage,
                artifact,
                resolved.ask.config,
                self.station.host,
                suite=self._suite(),
                suite_digest=self._suite_digest(stage),
                grid=resolved.grid_record,
                reference=reference if stage == "fidelity" else "",
                seed=resolved.ask.seed,
                part=part,
            )
            for stage in wanted
        }

    def job(
        self, artifact: Artifact, missing: Sequence[str], folder: Path, part: Part | None, reference: str | None
    ) -> MeasureJob:
        """The child's spec. `reference`: absolute path of the baseline's distribution."""
        resolved = self.resolved
        return MeasureJob(
            engine=self.station.engine.name,
            artifact=artifact,
            config=resolved.ask.config,
            stages=tuple(missing),  # type: ignore[arg-type]
            folder=str(folder),
            suite=self._suite(),
            suite_name=resolved.suite.name,
            suite_folder=str(catalog.base(resolved.suite)),
            tasks_folder=str(catalog.folder("tasks")),
            grid=resolved.grid_record,
            grid_name=resolved.grid.name,
            reference=reference,
            bandwidth=self.station.bandwidth(resolved.ask.config),
            compute=self.station.compute(resolved.ask.config, artifact.checkpoint),
            client=self.station.client(resolved.grid_record),
            seed=resolved.ask.seed,
            part=part,
            collapse=(resolved.policy.collapse_kl, resolved.policy.collapse_top1),
        )

    def _suite(self) -> Suite:
        """The suite; of an early run with so much of its held-out text as a screen needs."""
        suite = self.resolved.suite_record
        if not self.resolved.policy.early or suite.fidelity is None:
            return suite
        return msgspec.structs.replace(suite, fidelity=suite.fidelity.screen())

    def _suite_digest(self, stage: str) -> str:
        """Only the part of the suite that the stage reads: adding a task must not make a fidelity worthless."""
        suite = self.resolved.suite
        if stage == "accuracy":
            return catalog.suite_digest(suite, "accuracy")
        if stage == "canary":
            return catalog.sights_digest(suite)
        return catalog.suite_digest(suite, "fidelity") if stage in ("reference", "fidelity") else ""
