"""Shared functions of the GPU benchmarks: times, memory, and the rates that a GPU reaches.

    python benchmarks/gpu_timing.py                       print the rates (see plan.py) as one line of JSON
    python benchmarks/gpu_timing.py --device cpu --small

On a CPU the same code runs, only to test it.
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from pretrain.dry_run.machine import measure

STARTED = time.monotonic()


def left(seconds: float) -> float:
    """Return the time left of `seconds` since the start of the script."""
    return seconds - (time.monotonic() - STARTED)


def device_options(description: str | None) -> argparse.ArgumentParser:
    """Create a parser with the two options that all GPU benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true", help="tiny sizes, only to test that the script runs")
    return parser


def wait(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Return the median time of a call, after three warm-up calls (one on a CPU)."""
    times = []
    warm = 3 if device == "cuda" else 1
    for number in range(repeats + warm):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        if number >= warm:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def forget(device: str) -> None:
    """Release unused memory and reset the peak."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mib(device: str) -> float | None:
    """Return the peak memory of tensors on the GPU in MiB since `forget`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None


def name(device: str) -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


def main() -> None:
    options = device_options(__doc__).parse_args()
    found = measure(options.device).device
    about = {"device": name(options.device), "torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps(about | found.flops | {"bandwidth": found.bandwidth}))


if __name__ == "__main__":
    main()
