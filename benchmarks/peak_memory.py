"""Measure the rise of the memory of this process or of the GPU; needs Linux."""

import ctypes
from pathlib import Path

import torch


class Rise:
    """Rise of the memory since the object was created; call libraries once before, because the first call allocates."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
            return
        ctypes.CDLL(None).malloc_trim(0)  # otherwise freed memory is reused and does not count
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
        self.before = _status("VmRSS")

    def mib(self) -> float:
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else _status("VmHWM")
        return peak - self.before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))
