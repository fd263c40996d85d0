"""A signal at a random moment: the state is saved within a step, and the resumed run ends as one without a signal.

The short form is among the tests of each command, such as `tests/pretrain/test_pretrain.py`.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny_command import Run, assert_same_result

from intl_bench.cli import main
from intl_bench.core.errors import InputError
from intl_bench.core.signals import StopRequest

SEED = int(os.environ.get("INTL_BENCH_TORTURE_SEED", random.SystemRandom().randrange(10**6)))
CODES = {
    signal.SIGTERM: 75,
    signal.SIGUSR1: 75,
    signal.SIGUSR2: 75,
    signal.SIGINT: 130,
    signal.SIGHUP: 129,
    signal.SIGPIPE: 0,  # ignored
}
EPOCHS = "epochs=10"  # of five steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run without a signal."""
    run = Run(tmp_path_factory.mktemp("whole"), EPOCHS)
    run.finish()
    return run


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("number", CODES)
def test_a_signal_at_a_random_moment(
    tmp_path: Path, whole: Run, number: signal.Signals, workers: int, times: int
) -> None:
    print(f"INTL_BENCH_TORTURE_SEED={SEED}")
    chance = random.Random(f"{SEED} {number} {workers} {times}")
    run = Run(tmp_path, EPOCHS, f"workers={workers}")
    process = run.start()
    run.reach(chance.randrange(1, 25), process)
    time.sleep(chance.uniform(0, 0.1))
    logged = run.steps()
    for _ in range(times):
        process.send_signal(number)
        time.sleep(chance.uniform(0, 0.2))
    errors = process.communicate(timeout=300)[1].strip()
    assert process.returncode == CODES[number], errors
    if CODES[number]:
        assert len(errors.splitlines()) == 1, errors
        assert errors.startswith(f"intl-bench: stopped by {number.name}")
        # Ctrl-C twice ends the process at once; otherwise the state of the step is saved.
        after = re.search(r"after step (\d+) of 50, saved in", errors)
        assert after or (number, times) == (signal.SIGINT, 2), errors
        if after:
            assert logged <= run.saved_step() == int(after[1]) == run.steps()
    run.finish()
    assert_same_result(run, whole)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("number", [number for number, code in CODES.items() if code])
def test_a_signal_before_the_first_step(tmp_path: Path, number: signal.Signals) -> None:
    """During imports and while data are read there is nothing to save; the exit code and the line are the same."""
    chance = random.Random(f"{SEED} {number}")
    for _ in range(20):
        run = Run(tmp_path, "epochs=400")
        process = run.start()
        time.sleep(chance.uniform(0.3, 3.0))
        process.send_signal(number)
        errors = process.communicate(timeout=300)[1].strip()
        assert process.returncode == CODES[number], f"{SEED}: {errors}"
        assert re.fullmatch(rf"intl-bench: stopped by {number.name}[^\n]*", errors), f"{SEED}: {errors}"


@pytest.mark.long
@pytest.mark.slow
def test_nohup_is_respected(tmp_path: Path, whole: Run) -> None:
    run = Run(tmp_path, EPOCHS)
    process = run.start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    run.reach(3, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=300) == 0
    assert_same_result(run, whole)


@pytest.mark.long
@pytest.mark.slow
def test_a_run_survives_the_loss_of_its_output(tmp_path: Path, whole: Run) -> None:
    """The readers of both streams have ended, as in `2>&1 | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    run = Run(tmp_path, EPOCHS)
    process = run.start(stdout=writing, stderr=writing)
    os.close(writing)
    assert process.wait(timeout=300) == 0
    assert_same_result(run, whole)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_an_error_only_at_the_end(tmp_path: Path, whole: Run) -> None:
    run = Run(tmp_path, EPOCHS)
    with open("/dev/full", "w") as full:
        process = run.start(stdout=full)
        errors = process.communicate(timeout=300)[1]
    assert process.returncode == 4
    assert errors.splitlines()[-1].startswith("intl-bench: cannot write the standard output: No space left on device")
    assert_same_result(run, whole)


@pytest.mark.long
@pytest.mark.slow
def test_streams_that_are_closed_are_no_files_of_the_run(tmp_path: Path, whole: Run) -> None:
    run = Run(tmp_path, EPOCHS)
    process = run.start(stdin=None, stderr=subprocess.DEVNULL, preexec_fn=lambda: os.closerange(0, 3))
    assert process.wait(timeout=300) == 0
    assert_same_result(run, whole)


@pytest.mark.parametrize("known", [False, True])
def test_a_signal_within_an_import_is_no_bug(
    known: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A library may swallow the exception of the signal while it is imported, and then lacks a part of itself."""

    def load(*_: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with StopRequest():
            raise (InputError("no such recipe") if known else AttributeError("a part of numpy"))

    monkeypatch.setattr("pretrain.recipe.load_recipe", load)
    assert main(["pretrain", "demo", "--dry-run"]) == (2 if known else 130)
    expected = "no such recipe" if known else "stopped by SIGINT; what was finished is saved"
    assert capsys.readouterr().err.startswith(f"intl-bench: {expected}")
