"""Energy from the driver's counters: a driver we know, with the names of NVIDIA's own binding."""

from __future__ import annotations

import time
from typing import Any

import pynvml
import pytest

from quantlab.measure import power
from quantlab.measure.power import Meter


class Driver:
    """NVML of two cards that draw 300 W and 100 W; every name it answers to must exist in NVIDIA's binding."""

    NVMLError = pynvml.NVMLError
    NVML_CLOCK_SM = pynvml.NVML_CLOCK_SM

    def __init__(self, reasons: int = 0, processes: int = 1, frozen: bool = False) -> None:
        self.reasons, self.processes, self.began, self.frozen = reasons, processes, time.monotonic(), frozen

    def __getattr__(self, name: str) -> Any:
        return getattr(pynvml, name)

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, place: int) -> int:
        return place

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        return {"GPU-a": 0, "GPU-b": 1}[name]

    def nvmlDeviceGetTotalEnergyConsumption(self, card: int) -> float:
        return 0.0 if self.frozen else 1000 * (time.monotonic() - self.began) * (300, 100)[card]

    def nvmlDeviceGetClockInfo(self, card: int, kind: int) -> int:
        return (1980, 1700)[card]

    def nvmlDeviceGetCurrentClocksEventReasons(self, card: int) -> int:
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, card: int) -> list[int]:
        return list(range(self.processes))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(power, "LEAST_SECONDS", 0.05)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def use(**fields: Any) -> Driver:
        found = Driver(**fields)
        monkeypatch.setattr(power, "_nvml", lambda: found)
        return found

    return use


def measured(count: int = 1, tokens: int = 10) -> Any:
    with Meter(count) as meter:
        time.sleep(0.25)
    return meter, meter.power(tokens)


def test_every_name_of_the_driver_exists_in_nvidias_binding() -> None:
    for name in (*vars(Driver), *(f"nvmlClocksEventReason{one}" for one in ("SwPowerCap", "HwSlowdown"))):
        if name.startswith("nvml"):
            assert hasattr(pynvml, name), name


def test_energy_is_watts_times_seconds_over_tokens_for_as_many_cards_as_are_used(driver: Any) -> None:
    driver()
    one, found = measured()
    assert found.valid
    assert found.watts == pytest.approx(300, rel=0.02)
    assert found.joules_per_token.value == pytest.approx(300 * one.seconds / 10, rel=0.02)
    assert (found.clock_mhz, found.clock_low_mhz, found.throttled) == (1980, 1980, ())
    _, both = measured(count=2)
    assert both.watts == pytest.approx(400, rel=0.02)
    assert both.clock_low_mhz == 1700


def test_the_visible_cards_are_counted(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    assert measured()[1].watts == pytest.approx(100, rel=0.02)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert measured()[1].watts == pytest.approx(100, rel=0.02)


def test_what_holds_the_clock_down_is_named(driver: Any) -> None:
    driver(reasons=pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwThermalSlowdown)
    assert measured()[1].throttled == ("heat", "power cap")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"processes": 2}, "another process"), ({"frozen": True}, "did not move")],
)
def test_energy_that_cannot_be_trusted_is_not_given(driver: Any, fields: dict[str, Any], reason: str) -> None:
    driver(**fields)
    found = measured()[1]
    assert not found.valid
    assert found.joules_per_token is None
    assert reason in found.reason


def test_a_short_measurement_is_not_valid(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver()
    monkeypatch.setattr(power, "LEAST_SECONDS", 60.0)
    assert "too short" in measured()[1].reason


def test_without_a_driver_there_is_no_power_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_nvml", lambda: None)
    assert measured()[1] is None
