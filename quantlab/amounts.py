"""Amounts as people type them: "200ms", "1..64", "8k". A wrong one is an error that shows a right one."""

from __future__ import annotations

import math
import re

from quantlab.errors import BadInput

SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}
"""Unit -> seconds; a bare number is in seconds."""
MOST_SEQUENCES = 4096
"""Largest batch that is taken seriously; the published tables end at 1,024."""


def seconds(text: str | float, place: str = "") -> float:
    """ "200ms" -> 0.2; "1.5s" and 1.5 -> 1.5.

    Raises:
        BadInput: not a duration, not finite, or not above 0.
    """
    found = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(us|ms|s|)\s*", str(text))
    try:
        value = float(found[1]) * SECONDS[found[2]] if found else math.nan
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"{text!r} is not a duration.", place=place, cure="Write for instance 200ms or 1.5s.")
    return value


def tokens(text: str | int, place: str = "") -> int:
    """ "8192" and "8k" -> 8192.

    Raises:
        BadInput: not a number of tokens.
    """
    found = re.fullmatch(r"\s*(\d{1,9})\s*(k?)\s*", str(text), re.I)
    value = int(found[1]) * (1024 if found[2] else 1) if found else 0
    if value < 1:
        raise BadInput(f"{text!r} is not a number of tokens.", place=place, cure="Write for instance 8192 or 8k.")
    return value


def batches(text: str | int, place: str = "--batch") -> tuple[int, ...]:
    """ "8" -> (8,); "1..64" -> (1, 2, 4, 8, 16, 32, 64): the ends and the powers of two between.

    Raises:
        BadInput: not a batch or a range of them.
    """
    found = re.fullmatch(r"\s*(\d{1,6})\s*(?:(?:\.\.|-)\s*(\d{1,6}))?\s*", str(text))
    low = int(found[1]) if found else 0
    high = int(found[2]) if found and found[2] else low
    if not 1 <= low <= high <= MOST_SEQUENCES:
        cure = f"Write one batch (8) or a range (1..64), from 1 to {MOST_SEQUENCES}."
        raise BadInput(f"{text!r} is not a batch.", place=place, cure=cure)
    powers = [2**power for power in range(13) if low < 2**power < high]
    return tuple(dict.fromkeys((low, *powers, high)))
