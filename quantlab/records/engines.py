"""What is asked of an engine where it runs, and what it is told to build."""

from __future__ import annotations

from quantlab.records.entries import Host
from quantlab.records.jobs import EngineConfig, Spec
from quantlab.records.results import Checkpoint, Result


class AskJob(Spec, frozen=True, kw_only=True):
    """Ask an engine, under its own interpreter, which checkpoints it takes. Result: Asked."""

    engine: str
    checkpoints: tuple[Checkpoint, ...]
    """They need not exist yet: format, architecture and cache decide."""
    host: Host


class Asked(Result, frozen=True, kw_only=True):
    """What the engine said."""

    refusals: tuple[str, ...]
    """For each checkpoint why not, one sentence; empty: it takes it."""


class BuildJob(Spec, frozen=True, kw_only=True):
    """Make what an engine opens. Result: Artifact."""

    engine: str
    checkpoint: Checkpoint
    """With an absolute path."""
    into: str
    """Directory that the engine may make."""
    config: EngineConfig
    host: Host


__all__ = ["AskJob", "Asked", "BuildJob"]
