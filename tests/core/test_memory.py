"""The allocator's settings, each in a process of its own."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FAULTS = """
import resource
import numpy as np
from intl_bench.core.memory import keep_freed_memory
KEEP
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)  # 64 MiB
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator has these settings")
def test_freed_memory_is_used_again() -> None:
    def faults(keep: str) -> list[int]:
        command = [sys.executable, "-c", FAULTS.replace("KEEP", keep)]
        found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        return [int(line) for line in found.stdout.split()]

    given_back, kept = faults(""), faults("keep_freed_memory()")
    assert kept[0] > 0
    assert max(kept[1:]) < 0.1 * min(given_back)
