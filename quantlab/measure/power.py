"""What the GPUs draw while something is timed, from the driver's own counters through NVML.

Since Volta the driver counts each GPU's energy in millijoules; the difference of two readings needs no sampling and
misses no peak. Two things make it lie, and both are looked for. The counter moves every 20 to 100 ms, so a short
measurement is mostly rounding: below LEAST_SECONDS it is not valid. And it counts the card, not the process: when
another process works on the same card its energy would be charged to this cell.

Beside it a thread looks at the clock and at what holds it down, because a card at its power cap or too hot gives a
speed that another day's card does not.

nvidia-ml-py is NVIDIA's own binding, a single file. Where there is no driver nothing is measured and nothing fails.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from dataclasses import dataclass, field
from importlib import import_module
from types import TracebackType
from typing import Any

from quantlab.records import Number, Power

LEAST_SECONDS = 1.0
"""Ten steps of the counter at least: an error of a tenth at most."""
EVERY_SECONDS = 0.1
"""Between two looks at the clock."""
HOLDS = {
    "power cap": ("SwPowerCap", "HwPowerBrakeSlowdown"),
    "heat": ("SwThermalSlowdown", "HwThermalSlowdown"),
    "hardware slowdown": ("HwSlowdown",),
}
"""What is reported -> names of NVML's reasons that mean it."""


@dataclass
class Meter:
    """Energy, clock and throttling of the first `count` visible GPUs between entering and leaving."""

    count: int
    seconds: float = 0.0
    joules: float = 0.0
    clocks: list[float] = field(default_factory=list)
    throttled: set[str] = field(default_factory=set)
    shared: bool = False
    """Another process held memory on one of the GPUs."""

    def __enter__(self) -> Meter:
        self._nvml: Any = _nvml()
        self._cards = _cards(self._nvml, self.count) if self._nvml else []
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._before, self._began = self._energy(), time.monotonic()
        if self._cards:
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._began
        if not self._cards:
            return
        self.joules = self._energy() - self._before
        self._stop.set()
        self._watcher.join()
        self.shared = any(self._others(card) for card in self._cards)

    def power(self, tokens: int) -> Power | None:
        """The record for `tokens` output tokens; None where the driver keeps no counters."""
        if not self._cards:
            return None
        reason = self._doubt()
        energy = self.joules / tokens
        return Power(
            joules_per_token=None if reason else Number(value=energy, unit="joules", n=tokens, better="lower"),
            watts=round(self.joules / self.seconds, 1) if self.seconds else 0.0,
            clock_mhz=statistics.median(self.clocks) if self.clocks else None,
            clock_low_mhz=min(self.clocks, default=None),
            throttled=tuple(sorted(self.throttled)),
            seconds=round(self.seconds, 3),
            valid=not reason,
            reason=reason,
        )

    def _doubt(self) -> str:
        if self.shared:
            return "another process worked on the same GPU"
        if self.seconds < LEAST_SECONDS:
            return f"{self.seconds:.2f} s are too short for the driver's counter; it needs {LEAST_SECONDS:g} s"
        return "" if self.joules > 0 else "the driver's counter did not move"

    def _energy(self) -> float:
        return float(sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(card) for card in self._cards)) / 1000

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            for card in self._cards:
                self.clocks.append(self._nvml.nvmlDeviceGetClockInfo(card, self._nvml.NVML_CLOCK_SM))
                self.throttled |= _held(self._nvml, self._nvml.nvmlDeviceGetCurrentClocksEventReasons(card))

    def _others(self, card: Any) -> bool:
        """In a container the driver may name no process at all, or ours by another number: one is ours."""
        return len(self._nvml.nvmlDeviceGetComputeRunningProcesses(card)) > 1


def _held(nvml: Any, reasons: int) -> set[str]:
    return {
        what
        for what, names in HOLDS.items()
        for name in names
        if reasons & getattr(nvml, f"nvmlClocksEventReason{name}", getattr(nvml, f"nvmlClocksThrottleReason{name}", 0))
    }


def _nvml() -> Any:
    """NVIDIA's binding, initialized; None where there is no driver or no binding."""
    try:
        nvml: Any = import_module("pynvml")
    except ModuleNotFoundError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def _cards(nvml: Any, count: int) -> list[Any]:
    """Handles of the first `count` GPUs that CUDA_VISIBLE_DEVICES leaves us; none where one keeps no counter."""
    words = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    names = words or [str(place) for place in range(nvml.nvmlDeviceGetCount())]
    try:
        cards = [_card(nvml, name) for name in names[:count]]
        for card in cards:
            nvml.nvmlDeviceGetTotalEnergyConsumption(card)
    except nvml.NVMLError:
        return []
    return cards


def _card(nvml: Any, name: str) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
