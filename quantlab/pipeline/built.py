"""The stages that run where an engine lives: building what it opens, and measuring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from quantlab.pipeline.stage import Stages
from quantlab.records import Artifact
from quantlab.records.engines import BuildJob


class EngineStages(Stages):
    """Stages under an engine's interpreter."""

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
