"""A number that says what it is, and the digest by which everything is named."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

Provenance = Literal["measured", "emulated", "predicted", "published"]
"""measured: this numerics ran here. emulated: the numbers are right, the speed is not that of the real format.
predicted: from a model of the hardware, always an interval. published: somebody else's, with a source."""


class Number(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A value with its unit, size of sample, uncertainty, direction and provenance."""

    value: float
    """The point estimate, in `unit`."""
    unit: str
    """"points" (hundredths of accuracy), "nats", "ratio", "share", "tokens/s", "seconds", "bytes", "bits"."""
    n: int = 1
    """How many independent observations stand behind it (items, positions, repeats)."""
    standard_error: float | None = None
    """Standard error of `value`, where one exists."""
    low: float | None = None
    """Lower end of the interval at `confidence`, or the lowest repeat when confidence is None."""
    high: float | None = None
    """Upper end of that interval."""
    confidence: float | None = None
    """Two-sided confidence of [low, high]; None when they are the spread of repeats."""
    better: Literal["higher", "lower", "neither"] = "higher"
    """Which direction is good."""
    provenance: Provenance = "measured"
    """Where the value comes from."""


def encode(record: Any) -> bytes:
    """JSON with sorted keys: the same record gives the same bytes on every machine."""
    return msgspec.json.encode(record, order="deterministic")


def digest(*parts: Any) -> str:
    """SHA-256 over the deterministic JSON of `parts`, 64 hexadecimal digits.

    This is the identity of a stage: give it everything that can change the stage's number.
    """
    return hashlib.sha256(encode(list(parts))).hexdigest()
