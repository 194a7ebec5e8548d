"""What the ledger keeps: one document a finished or failed stage."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from quantlab.records.jobs import Failure

SCHEMA = 1
"""Version of every document in a ledger; raised with a numbered migration in ledger.py."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One NVIDIA GPU as the driver reports it."""

    name: str
    memory_bytes: int
    compute_capability: str = ""
    """"9.0"."""
    driver: str = ""
    power_limit_watts: float | None = None


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """The machine a number was measured on. No host name, no user name, no path."""

    system: str
    """"Linux 6.1 x86_64"."""
    python: str
    cpu: str
    cores: int
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    versions: dict[str, str] = {}
    """Package -> version, for the packages that can change a number."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One stage, done or failed, with all that is needed to trust and to repeat it."""

    schema: int
    """SCHEMA of the quantlab that wrote it."""
    stage: Literal[
        "calibrate", "verify", "build", "canary", "reference", "fidelity", "accuracy", "throughput", "search", "mix"
    ]
    identity: str
    """Digest of everything that can change the stage's number."""
    model: str
    """Model word."""
    recipe: str
    """Recipe name."""
    status: Literal["done", "failed"]
    spec: Any
    """The job's spec, without paths of the machine."""
    host: Host
    started: str
    """UTC, ISO 8601."""
    seconds: float
    result: Any = None
    """The stage's record as plain data; read it with `ledger.result(entry)`."""
    failure: Failure | None = None
    files: dict[str, str] = {}
    """Files beside the entry, name -> path relative to the ledger."""
