"""GPUs from their data sheets: what memory, matrix units and an hour of them can give.

Decoding one token reads all weights once, so bandwidth bounds its speed: 6.4 GB of weights on 3.35 TB/s
cannot go faster than 1.9 ms a token. The share of that bound which a measurement reaches says whether it is
plausible. A GPU is known by its full driver name only. A laptop's 4090 or a MIG slice of an H100 has a part
of the bandwidth under nearly the same name, and a wrong bound is worse than none: unknown hardware gives
None.

Two traps of data sheets: their operations count zeros that are skipped (2:4 sparsity), which no language model of
ours has, so half of them is written here; and GeForce cards halve their speed when they add in 32 bit, as they must.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec

from quantlab.catalog import strict
from quantlab.catalog.strict import Complaint
from quantlab.errors import BadInput

LINKS = ("nvlink", "pcie")
FORMATS = ("bf16", "fp8", "int8", "fp4")
"""Formats that `tflops` may name."""


class Datasheet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One GPU as its maker describes it."""

    word: str
    """Short name: h100, rtx4090."""
    names: tuple[str, ...] = ()
    """Names the driver reports, without "NVIDIA "."""
    memory_bytes: int
    """Size of the memory, as advertised."""
    bandwidth: float
    """Peak memory bandwidth in bytes per second."""
    compute_capability: str
    """8.9 and above have FP8 units."""
    source: str
    """URL of the figures above."""
    tflops: dict[str, float] = {}
    """Format (bf16, fp8, int8, fp4) -> dense tensor operations, 10^12 a second."""
    tflops_source: str = ""
    """URL of the operations."""
    power_watts: float | None = None
    """Power limit of the board, or of the module where the GPU has none of its own."""
    price_per_hour: float | None = None
    """US dollars to rent one for an hour: an assumption, to be changed."""
    price_source: str = ""
    """URL of the price."""
    price_date: str = ""
    """When the price was read: 2026, 2026-05."""
    link: str | None = None
    """How GPUs of one machine speak to each other: "nvlink" or "pcie"; None where there is one only, or it is not
    known."""
    link_bandwidth: float | None = None
    """Of one GPU's link in one direction, bytes per second."""
    link_source: str = ""
    """URL of it."""
    unified: bool = False
    """The memory is the host's too: the operating system and other programs take their part."""
    notes: str = ""
    """What the reader must know of these figures."""

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability as numbers: "12.0" -> (12, 0)."""
        major, _, minor = self.compute_capability.partition(".")
        return int(major), int(minor or 0)

    @property
    def summary(self) -> str:
        """One line for `quantlab ls gpus`."""
        speeds = ", ".join(f"{name} {self.tflops[name]:,.0f}" for name in FORMATS if name in self.tflops)
        return (
            f"{self.memory_bytes / 1e9:.0f} GB at {self.bandwidth / 1e9:,.0f} GB/s, compute {self.compute_capability}, "
            f"dense TFLOP/s: {speeds or 'not known'}"
        )


class Datasheets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """gpus.yaml."""

    gpus: tuple[Datasheet, ...]


@cache
def gpus() -> tuple[Datasheet, ...]:
    """All data sheets, in the order of the file."""
    return strict.load(Path(__file__).with_name("gpus.yaml"), Datasheets, _sane).gpus


def gpu(name: str) -> Datasheet | None:
    """The data sheet of a GPU by word ("h100") or driver name ("NVIDIA H100 80GB HBM3"); None if unknown."""
    wanted = name.lower().strip().removeprefix("nvidia ").strip()
    for each in gpus():
        if wanted == each.word or wanted in (known.lower() for known in each.names):
            return each
    return None


def target(word: str) -> Datasheet:
    """The GPU that a person means: a word, a driver name, or a YAML file with one GPU of their own.

    The file holds either the fields of one data sheet or a list under `gpus:` with one entry.

    Raises:
        BadInput: unknown, with "did you mean" and the list; or a fault in the file, with its line.
    """
    if word.endswith((".yaml", ".yml")) or "/" in word:
        return _own(Path(word).expanduser())
    if (found := gpu(word)) is not None:
        return found
    known = [each.word for each in gpus()]
    cure = f"{strict.nearest(word, known)} Known: {', '.join(known)}. A YAML file of your own works too.".strip()
    raise BadInput(f"no GPU is called {word!r}.", place="--gpu", cure=cure)


def _own(path: Path) -> Datasheet:
    data, place = strict.read(path), strict.show(path)
    if b"gpus:" not in data:
        return strict.parse(data, place, Datasheet, lambda sheet: _faults(sheet, ()))
    found = strict.parse(data, place, Datasheets, _sane).gpus
    if len(found) != 1:
        raise BadInput(f"holds {len(found)} GPUs.", place=place, cure="Keep the one that is meant.")
    return found[0]


def _sane(sheets: Datasheets) -> Iterator[Complaint]:
    for index, each in enumerate(sheets.gpus):
        yield from _faults(each, ("gpus", index))


def _faults(sheet: Datasheet, at: tuple[str | int, ...]) -> Iterator[Complaint]:
    """What no GPU could mean: a size of 0, an unknown format, a figure that is not finite."""
    sizes = {"memory_bytes": float(sheet.memory_bytes), "bandwidth": sheet.bandwidth}
    sizes |= {
        name: value
        for name in ("power_watts", "price_per_hour", "link_bandwidth")
        if (value := getattr(sheet, name)) is not None
    }
    for name, value in sizes.items():
        if not (math.isfinite(value) and value > 0):
            yield (*at, name), f"{value} is not a size.", "Write a number above 0."
    if not sheet.word or not all(part.isdigit() for part in sheet.compute_capability.split(".")):
        yield (*at, "compute_capability"), f"{sheet.compute_capability!r} is no compute capability.", 'Write "8.9".'
    if sheet.link not in (None, *LINKS) or (sheet.link is None) != (sheet.link_bandwidth is None):
        yield (
            (*at, "link"),
            f"{sheet.link!r} with {sheet.link_bandwidth} bytes a second.",
            'Write "nvlink" or "pcie", and both.',
        )
    for name, value in sheet.tflops.items():
        if name not in FORMATS:
            yield (*at, "tflops", name), f"{name!r} is no format.", f"Formats: {', '.join(FORMATS)}."
        elif not (math.isfinite(value) and value > 0):
            yield (*at, "tflops", name), f"{value} is not a speed.", "Write 10^12 dense operations a second."
