"""What a GPU's memory can deliver, from its data sheet: the roofline under every decode step.

Decoding one token reads all weights once, so bandwidth bounds its speed: 6.4 GB of weights on 3.35 TB/s
cannot go faster than 1.9 ms a token. The share of that bound which a measurement reaches says whether it is
plausible. A GPU is known by its full driver name only. A laptop's 4090 or a MIG slice of an H100 has a part
of the bandwidth under nearly the same name, and a wrong bound is worse than none: unknown hardware gives
None.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

from quantlab.catalog import strict


class Datasheet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One GPU as its maker describes it."""

    word: str
    """Short name: h100, rtx4090."""
    names: tuple[str, ...]
    """Names the driver reports, without "NVIDIA "."""
    memory_bytes: int
    """Size of the memory, as advertised."""
    bandwidth: float
    """Peak memory bandwidth in bytes per second."""
    compute_capability: str
    """8.9 and above have FP8 units."""
    source: str
    """URL of the figures."""


class Datasheets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """gpus.yaml."""

    gpus: tuple[Datasheet, ...]


@cache
def gpus() -> tuple[Datasheet, ...]:
    """All data sheets, in the order of the file."""
    return strict.load(Path(__file__).with_name("gpus.yaml"), Datasheets).gpus


def gpu(name: str) -> Datasheet | None:
    """The data sheet of a GPU by word ("h100") or driver name ("NVIDIA H100 80GB HBM3"); None if unknown."""
    wanted = name.lower().strip().removeprefix("nvidia ").strip()
    for each in gpus():
        if wanted == each.word or wanted in (known.lower() for known in each.names):
            return each
    return None
