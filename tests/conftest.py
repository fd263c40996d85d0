"""Fixtures that several test files share."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch
import torture

pytest_plugins = ["slow_tests", "side_by_side"]

# The same examples everywhere, however slow the machine.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same")

# One thread: tests share the cores with their own worker processes, and threads that wait for each other spin.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Hides the GPUs from all tests and the processes that they start, so that results are a CPU's, bit for bit.

    `pytest -m gpu` runs those that need a GPU, which see it. PyTorch looks for GPUs once, so one run cannot do both.
    """
    if config.getoption("-m") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Read at the first matrix product on a GPU, of whatever test; deterministic ones are refused without it.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests of the long form, and tests that need a GPU where none is seen, unless a CPU can stand in."""
    if item.get_closest_marker("long") and not torture.LONG:
        pytest.skip("INTL_BENCH_TORTURE=1 runs it")
    stands_in = getattr(getattr(item, "module", None), "STAND_IN", False)
    if item.get_closest_marker("gpu") and not stands_in and not torch.cuda.is_available():
        pytest.skip("needs a GPU and pytest -m gpu")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of small real data sets; the test skips where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("INTL_BENCH_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"small real data sets are not at {folder}; set INTL_BENCH_TEST_DATA")
    return folder
