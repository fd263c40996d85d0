"""A pytest plugin: a test that takes long without the mark `slow` fails.

`make check` runs all tests without the mark, so each of them has to be short. Its CPU time is measured, that of ended
child processes included, because a busy machine stretches the time on the clock. What fixtures of a module or session
take is not counted: only the first test that needs one builds it.
"""

import os
from collections.abc import Generator
from typing import Any

import pytest

USED = pytest.StashKey[float]()


class SlowTests:
    """Measures the CPU time of each test, in seconds.

    Attributes:
        limit: what a test without the mark may take.
        shared: what fixtures shared by tests have taken since the setup of the current test began.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.shared = 0.0
        self.in_shared = False

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        if fixturedef.scope == "function" or self.in_shared:  # a shared fixture may request another one
            return (yield)
        self.in_shared, start = True, cpu_seconds()
        try:
            return (yield)
        finally:
            self.in_shared = False
            self.shared += cpu_seconds() - start

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        item.stash[USED] = cpu_seconds()
        self.shared = 0.0
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        report: pytest.TestReport = yield
        used = cpu_seconds() - item.stash[USED] - self.shared
        marked = any(item.get_closest_marker(mark) for mark in ("slow", "gpu"))
        if call.when == "call" and report.passed and not marked and used > self.limit:
            report.outcome = "failed"
            report.longrepr = (
                f"{item.nodeid}: took {used:.1f} s of CPU time; expected at most {self.limit:g} s without "
                "@pytest.mark.slow; make it cheaper or mark it (-o slow_seconds=N for a slow machine)"
            )
        return report


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its child processes that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("slow_seconds", "CPU time that a test without the mark slow may take, in seconds", default="10")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SlowTests(float(config.getini("slow_seconds"))), "slow-tests")
