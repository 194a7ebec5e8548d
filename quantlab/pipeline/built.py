"""The stages that run where an engine lives: building what it opens, and measuring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from quantlab.ledgers import Ledger
from quantlab.pipeline import identity
from quantlab.pipeline.stage import Stages, Watcher
from quantlab.pipeline.station import Station
from quantlab.pipeline.walk import Walk
from quantlab.records import Artifact, Checkpoint, EngineConfig
from quantlab.records.engines import BuildJob


class EngineStages(Stages):
    """Stages under an engine's interpreter."""

    def __init__(self, station: Station, ledger: Ledger, model: str, watcher: Watcher, threads: int = 0) -> None:
        """Raises: NoAccess, Refused, BadInput: the engine cannot be used, see `Station.host`."""
        super().__init__(ledger, station.host, model, watcher, threads, station.command)
        self.station = station

    def artifact(self, walk: Walk, checkpoint: Checkpoint, config: EngineConfig) -> Artifact:
        """What the engine opens: made here where that costs nothing, else in a child, once."""
        station = self.station
        absolute = msgspec.structs.replace(checkpoint, path=str(self.ledger.path(checkpoint.path)))
        shaped = station.shaped_by(absolute, config)
        known = identity.build(checkpoint, station.name, station.version, shaped or {}, station.host, config.device)
        job = BuildJob(
            engine=station.name,
            checkpoint=absolute,
            into=str(self.ledger.checkpoint_folder(known)),  # never beside the user's own weights
            config=config,
            host=station.host,
        )
        if shaped is None:
            return station.build_here(job)
        walk.at = "build"
        walk.identities["build"] = known
        return self.build(known, walk.name, job)

    def build(self, identity: str, recipe: str, job: BuildJob) -> Artifact:
        """Build what the engine opens, or take what the ledger has; it must still lie where it was."""

        def work(folder: Path) -> Artifact:
            made: Artifact = self._child("build", recipe, job, folder)
            return _moved(made, self._kept)

        def usable(made: Artifact) -> bool:
            return self.ledger.path(made.path).exists()

        built = self._once("build", identity, recipe, job, work, usable)
        return _moved(built, lambda path: str(self.ledger.path(path)))

    def _kept(self, path: str) -> str:
        """A path as an entry keeps it."""
        root = self.ledger.root
        inside = any(Path(path).is_relative_to(place) for place in (root, root.resolve()))
        return self.ledger.relative(path) if inside else path


def _moved(made: Artifact, where: Callable[[str], str]) -> Artifact:
    """The artifact with its two paths put through `where`."""
    checkpoint = msgspec.structs.replace(made.checkpoint, path=where(made.checkpoint.path))
    return msgspec.structs.replace(made, path=where(made.path), checkpoint=checkpoint)
