"""Times on a GPU, and the rates that it reaches: what the benchmarks of the GPU day share.

    python benchmarks/gpu_timing.py                       the rates as one line of JSON
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


def rates(device: str, small: bool) -> dict[str, float]:
    """Floating-point operations a second of large products, and bytes a second of a large copy, read and written.

    Random numbers: on zeros a GPU needs less power and is quicker than it will be on real ones.
    """

    def product(n: int, dtype: torch.dtype) -> float:
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        return 2 * n**3 / seconds(lambda: a @ b, device, 3 if small else 20)

    n = 256 if small else 8192
    found = {"half": product(n, torch.bfloat16), "matmul32": product(n // 2, torch.float32)}
    # What PyTorch lets a float32 convolution use.
    torch.backends.cuda.matmul.allow_tf32 = True
    found["conv32"] = product(n // 2, torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.randn(2**20 if small else 2**30, device=device)
    target = torch.empty_like(source)
    found["bandwidth"] = 2 * source.nbytes / seconds(lambda: target.copy_(source), device, 3 if small else 20)
    return found


def main() -> None:
    options = device_options(__doc__).parse_args()
    found = {"device": name(options.device), "torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps(found | rates(options.device, options.small)))


if __name__ == "__main__":
    main()
