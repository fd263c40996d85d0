"""The energy of GPUs, from the counters of NVIDIA's driver (NVML: `nvmlDeviceGetTotalEnergyConsumption`)."""

import ctypes
import os
from collections.abc import Sequence

import torch

_LIBRARY = "libnvidia-ml.so.1"  # a part of the driver


class Meter:
    """The energy that the GPUs of a job have used since the meter was made, also for other programs on these GPUs."""

    def __init__(self) -> None:
        self._devices = _devices()
        self._before = _joules(self._devices)

    def joules(self) -> float | None:
        """Return the energy in joules; None if no GPU was used, on several machines, or if no driver counts it."""
        if self._before is None or torch.cuda.max_memory_allocated() == 0:
            return None
        now = _joules(self._devices)
        return None if now is None else now - self._before


def _devices() -> list[int]:
    """Return the GPUs of all processes, by PyTorch's numbers; [] if there is none or other machines have some."""
    processes = os.environ.get("WORLD_SIZE", "1")
    here = torch.cuda.is_available() and os.environ.get("LOCAL_WORLD_SIZE", "1") == processes
    return list(range(min(int(processes), torch.cuda.device_count()))) if here else []


def _joules(devices: Sequence[int]) -> float | None:
    """Return the sum of the counters of the devices, which started with the driver; None if one cannot be read."""
    if not devices:
        return None
    try:
        library = ctypes.CDLL(_LIBRARY)
        if library.nvmlInit_v2():
            return None
        total = 0.0
        for device in devices:
            handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
            name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
            if library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
                return None
            if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
                return None
            total += millijoules.value / 1000
        return total
    except (OSError, AttributeError):  # there is no driver, or an old one
        return None
