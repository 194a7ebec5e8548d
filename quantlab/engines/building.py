"""What is asked of an engine before a session is opened: which checkpoints it takes, and to build.

Tasks of quantlab.worker, under the engine's own interpreter. The same functions serve an engine of this Python that
builds nothing: then no child is started, because neither they nor the engine's file import an SDK.
"""

from __future__ import annotations

from pathlib import Path

from quantlab.engines import engine
from quantlab.errors import Refused
from quantlab.records import Artifact
from quantlab.records.engines import Asked, AskJob, BuildJob


def ask(spec: AskJob, reporter: object = None) -> Asked:
    """What the engine says of each checkpoint."""
    made = engine(spec.engine)
    return Asked(refusals=tuple(made.supports(checkpoint, spec.host) or "" for checkpoint in spec.checkpoints))


def build(spec: BuildJob, reporter: object = None) -> Artifact:
    """Make the artifact.

    Raises:
        Refused: the engine does not take this checkpoint on this host, or not with this configuration.
        QuantlabError: what the engine's own `build` raises.
    """
    made = engine(spec.engine)
    why = made.supports(spec.checkpoint, spec.host)
    if why is not None:
        raise Refused(why, place=f"engine {spec.engine}")
    return made.build(spec.checkpoint, Path(spec.into), spec.config, spec.host)
