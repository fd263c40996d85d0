"""How far the memory of this process, or of the GPU, rises above where it stands; on Linux."""

import ctypes
from pathlib import Path

import torch


class Rise:
    """Begins when it is made; what libraries take at their first call should have been taken before."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
            return
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not be there to be used again unseen
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
        self.before = _status("VmRSS")

    def mib(self) -> float:
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else _status("VmHWM")
        return peak - self.before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))
