"""Fixtures that several test files share."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

# The same examples everywhere, however slow the machine.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same")

# One thread: tests share the cores with their own worker processes, and threads that wait for each other spin.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of small real data sets; the test skips where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("INTL_BENCH_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"small real data sets are not at {folder}; set INTL_BENCH_TEST_DATA")
    return folder
