"""What this machine has: cores, memory, and free space on a disk."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

C = TypeVar("C")

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: "200000 100000" is two cores, "max 100000" is no limit
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container, in bytes; "max" is no limit


def cores() -> int:
    """Return the number of cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, min(allowed, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        return allowed


def cores_of_process() -> int:
    """Return this process's share of the cores: the processes that a run has on this machine share them."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def memory_bytes() -> float:
    """Return the bytes of main memory that this process may use; infinity if they are unknown."""
    memory = float("inf")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):
        memory = min(memory, float(int(_MEMORY_LIMIT.read_text())))
    return memory


def limit_workers(config: C, overrides: Sequence[str]) -> C:
    """Return a configuration with at most one data worker for each core, unless an override sets `workers`.

    More workers than cores only take memory and time from each other.
    """
    workers = getattr(config, "workers", 0)
    most = cores_of_process()
    if workers <= most or any(override.startswith("workers=") for override in overrides):
        return config
    return dataclasses.replace(config, workers=most)  # type: ignore[type-var]


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that holds `path`, or that will hold it."""
    place = path.absolute()
    return shutil.disk_usage(next(each for each in (place, *place.parents) if each.exists())).free
