"""The energy of GPUs, with a driver that counts what the test says."""

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intl_bench.core import energy


class Driver:
    """NVML with one counter in millijoules for each GPU, by its UUID."""

    def __init__(self, **counters: int) -> None:
        self.counters, self.error = counters, 0

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:
        handle._obj.value = list(self.counters).index(name.decode().removeprefix("GPU-")) + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, millijoules: Any) -> int:
        millijoules._obj.value = list(self.counters.values())[handle.value - 1]
        return self.error


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver(a=10**12, b=5 * 10**12)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab"[device]))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1)
    return driver


@pytest.mark.parametrize(("processes", "expected"), [("1", 4.0), ("2", 4.0 + 0.5)])
def test_the_gpus_of_the_job_count(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, processes: str, expected: float
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    meter = energy.Meter()
    driver.counters["a"] += 4000
    driver.counters["b"] += 500
    assert meter.joules() == pytest.approx(expected)


def test_energy_that_is_not_known_is_none(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = energy.Meter()
    driver.error = 3  # not supported
    assert meter.joules() is None
    driver.error = 0
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)  # the run used no GPU
    assert meter.joules() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1)
    assert energy.Meter().joules() is None


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert energy.Meter().joules() is None
