"""Times on a GPU, and the rates that it reaches: what the benchmarks of the GPU day share.

    python benchmarks/gpu_timing.py                       the rates (see plan.py) as one line of JSON
    python benchmarks/gpu_timing.py --device cpu --small

On a CPU the same code runs, to see that it does.
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
from plan import machine

STARTED = time.monotonic()


def left(seconds: float) -> float:
    """What is left of `seconds` since the start of the script."""
    return seconds - (time.monotonic() - STARTED)


def device_options(description: str | None) -> argparse.ArgumentParser:
    """A parser with the two options that every one of these scripts has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true", help="tiny sizes: whether it runs, not how fast")
    return parser


def wait(device: str) -> None:
    """Returns when the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of a call, after three (on a CPU one) that set kernels up."""
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
    """Gives back the memory of what is not used any more, and begins a new peak."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mib(device: str) -> float | None:
    """The most memory that tensors took on the GPU since `forget`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None


def name(device: str) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


def main() -> None:
    options = device_options(__doc__).parse_args()
    found = machine(options.device)
    about = {"device": name(options.device), "torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps(about | found.flops | {"bandwidth": found.bandwidth}))


if __name__ == "__main__":
    main()
