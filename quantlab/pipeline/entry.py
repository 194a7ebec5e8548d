"""What goes into an entry beside its result: when it was, how long it took, the spec without places of this machine."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import Any


class Clock:
    """Wall time since the last entry, and when that was."""

    def __init__(self) -> None:
        self.started = now()
        self._since = time.monotonic()

    def lap(self) -> float:
        here = time.monotonic()
        seconds, self._since = here - self._since, here
        self.started = now()
        return round(seconds, 3)


def now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def without_paths(spec: Any) -> Any:
    """The spec without places of this machine: they change no number and are nobody else's business."""
    if isinstance(spec, dict):
        return {key: without_paths(value) for key, value in spec.items() if not _is_place(value)}
    if isinstance(spec, list | tuple):
        return [without_paths(value) for value in spec]
    return spec


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute()
