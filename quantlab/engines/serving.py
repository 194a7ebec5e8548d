"""An engine's own HTTP server, for measurements from outside (quantlab/measure/served.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from quantlab.records import Artifact, EngineConfig

LOCAL = "127.0.0.1"
"""Servers listen here and nowhere else."""


@dataclass(frozen=True, slots=True)
class Server:
    """How one is started, and what it is called."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    """On top of the process's own."""
    model: str
    """What requests must name."""


@runtime_checkable
class Serving(Protocol):
    """An engine whose SDK brings an OpenAI-compatible server with /health, /v1/models and /v1/completions."""

    def server(self, artifact: Artifact, config: EngineConfig, *, name: str, port: int, folder: Path) -> Server:
        """The server of what a session would open, with the same settings.

        Args:
            name: what the model shall be called, where the server lets us choose.
            folder: for files that the command names.
        """
        ...
