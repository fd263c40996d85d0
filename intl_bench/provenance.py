"""The provenance of a result: code, libraries, hardware and memory."""

import importlib.metadata
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch

import intl_bench
from intl_bench.core import machine

_LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "omegaconf", "pycocotools", "fvcore", "detectron2")


def code() -> dict[str, Any]:
    """Return the version, and in a git checkout the commit and whether files were modified since.

    Both are None outside a git checkout, or if git fails.
    """
    found: dict[str, Any] = {"version": intl_bench.__version__, "commit": None, "modified": None}
    root = Path(__file__).resolve().parents[1]
    if (root / ".git").exists():
        found["commit"] = _git(root, "rev-parse", "HEAD")
        # Runs write results into the checkout. This does not change the code.
        status = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        found["modified"] = None if status is None else bool(status)
    return found


def _git(root: Path, *arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def libraries() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return the processor, the usable cores, torch's threads, the memory in GiB and the GPUs."""
    return {
        "cpu": _cpu_name(),
        "cores": machine.cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(machine.memory_bytes() / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory_mib() -> float:
    """Return the peak memory of this process in MiB: GPU memory if a GPU was used, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if platform.system() == "Darwin" else peak / 2**10
