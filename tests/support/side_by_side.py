"""A pytest plugin: how pytest-xdist divides the tests among its workers.

A worker gets the tests of a whole file, so that fixtures of a module are built once. The tests of reliability come one
by one, because they share little. Files that share what takes long to build go to one worker together. The files that
take longest come first, so that the workers end at the same time.
"""

import os
from typing import Any

import pytest

# Files whose tests share processes that `distributed_worker` starts.
TOGETHER = ("tests/methods/test_intl.py", "tests/pretrain/test_gram.py", "tests/pretrain/test_sync_batch_norm.py")
# In this order before all others: what a worker has to begin with, and what takes longest.
FIRST = (
    "tests/reliability/test_write_faults.py",
    "tests/reliability/test_kill.py",
    "tests/launch/test_seeds.py",
    "tests/end_to_end/test_gpu_day.py",
    "tests/launch/test_launch.py",
    "tests/pretrain/test_pretrain.py",
    "tests/methods/test_methods.py",
    "tests/core/test_distribution.py",
    "tests/results/test_add_a_dataset.py",
    "tests/transfer/test_add_a_task.py",
    "tests/methods/test_add_a_method.py",
    "tests/detection/test_detection_tasks.py",
    "tests/pretrain/test_accelerate.py",
    "tests/end_to_end/test_fake_cuda.py",
    "tests/transfer/test_linear.py",
    "tests/detection/test_detection_train.py",
    "tests/end_to_end/test_real_data.py",
    "tests/results/test_ablations.py",
    *TOGETHER,
    "tests/pretrain/test_plan.py",
)


def file_of(nodeid: str) -> str:
    return nodeid.split("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more worker than cores, because some tests wait for other processes most of their time."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        rank = {name: number for number, name in enumerate(FIRST)}
        items.sort(key=lambda item: rank.get(file_of(item.nodeid), len(FIRST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            name = file_of(nodeid)
            if name.startswith("tests/reliability/"):
                return nodeid  # they share only what each worker builds in a few seconds
            return TOGETHER[0] if name in TOGETHER else name

    config.option.loadscopereorder = False  # it would put the files with most tests first
    return ByFile(config, log)
