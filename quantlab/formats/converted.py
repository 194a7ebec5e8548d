"""What lies beside converted weights, read without an SDK: the plan and the parent process ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from quantlab.records import Converted

Layout = Literal["compressed-tensors", "autoawq"]
Choice = Literal["refuse", "average"]
RECORD = "quantlab_conversion.json"


def known(folder: Path) -> Converted | None:
    """The record of a conversion, or None where there is none that can be read. The folder is whole if it is there."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=Converted)
    except (OSError, msgspec.DecodeError):
        return None


def made_from(record: Converted, digest: str, layout: Layout, o_proj: Choice) -> bool:
    """Would converting again give the same?"""
    return (record.source, record.layout, record.choices.get("o_proj")) == (digest, layout, o_proj)
