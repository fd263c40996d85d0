"""The suite itself: no test without the mark `slow` takes long, and workers get existing files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT, SUPPORT
from side_by_side import FIRST

WORK = """
import os, subprocess, sys, time
import pytest

WASTE = "import time\\nwhile time.process_time() < 0.3: pass"

def work():
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass

@pytest.fixture(scope="module")
def shared(request):
    work()

@pytest.fixture
def own():
    work()

def test_short(): pass
def test_waits(): time.sleep(0.3)
def test_shares(shared): pass
def test_requests(request): request.getfixturevalue("shared")
def test_works(): work()
def test_sets_up(own): pass
def test_starts_a_process(): subprocess.run([sys.executable, "-c", WASTE], check=True)
def test_starts_and_shares(shared): subprocess.run([sys.executable, "-c", WASTE], check=True)
@pytest.mark.slow
def test_is_marked(): work()
"""


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_a_long_test_without_the_mark_fails(tmp_path: Path, workers: str) -> None:
    """The time of children counts; a wait and the setup of a shared fixture do not."""
    if workers != "0":
        pytest.importorskip("xdist")
    (tmp_path / "test_work.py").write_text(WORK)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\nslow_seconds = 0.15\n")
    words = ["-p", "slow_tests", "-p", "no:cacheprovider", "-q", "-rfp", *(["-n", workers] if workers != "0" else [])]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line.split(" - ")[0] for line in done.stdout.splitlines()]
    failed = {line.split("::")[1] for line in lines if line.startswith("FAILED")}
    passed = {line.split("::")[1] for line in lines if line.startswith("PASSED")}
    assert failed == {"test_works", "test_sets_up", "test_starts_a_process", "test_starts_and_shares"}
    assert passed == {"test_short", "test_waits", "test_shares", "test_requests", "test_is_marked"}
    assert "test_works: took 0." in done.stdout
    assert "expected at most 0.15 s without @pytest.mark.slow" in done.stdout


def test_files_that_come_first_exist() -> None:
    assert not [name for name in FIRST if not (ROOT / name).is_file()]
