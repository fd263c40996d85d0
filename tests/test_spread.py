"""Seeds spread over processes: side by side, and as jobs of submitit's local executor."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from intl_bench import cli, spread
from intl_bench.core.errors import InputError
from intl_bench.records import RecordStore
from pretrain import train
from pretrain.recipe import load_recipe

TINY = ["data.size=160", "batch_size=32", "epochs=1", "warmup_epochs=0", "projector.hidden=32", "projector.out=32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint after one epoch on 160 generated images."""
    folder = tmp_path_factory.mktemp("spread")
    before = Path.cwd()
    os.chdir(folder)
    try:
        train.run(load_recipe("demo", TINY)).resolve().rename(folder / "checkpoint.pt")
    finally:
        os.chdir(before)
    return folder


def seeds(results: Path) -> list[int]:
    return sorted(record.transfer_seed for record in RecordStore(results / "records").load())


def test_seeds_side_by_side_give_the_records_of_one_after_the_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    command = ["knn", "checkpoint.pt", "--init", "random", "--seeds", "0,2"]
    assert cli.main([*command, "--results", "serial"]) == 0
    assert cli.main([*command, "--results", "parallel", "--parallel"]) == 0
    values = [
        sorted((record.transfer_seed, record.metrics["knn5"]) for record in RecordStore(Path(name) / "records").load())
        for name in ("serial", "parallel")
    ]
    assert values[0] == values[1]
    assert [seed for seed, _ in values[0]] == [0, 2]


def test_a_failing_seed_decides_the_exit_code_and_the_others_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "blocked").mkdir()
    (folder / "blocked" / "records").write_text("a file where a folder has to be")
    command = ["knn", "checkpoint.pt", "--init", "random", "--seeds", "2", "--results", "blocked", "--parallel"]
    assert cli.main(command) == 2
    assert "seed 0 (exit 2), seed 1 (exit 2)" in capsys.readouterr().err


def test_a_signal_is_passed_on(folder: Path) -> None:
    command = [sys.executable, "-m", "intl_bench", "linear", "checkpoint.pt", "--seeds", "2", "--parallel"]
    command += ["epochs=100000", "batch_size=8", "--results", "stopped"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    time.sleep(20)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "the same command goes on from there" in errors


def test_two_processes_score_one_seed_after_the_other(folder: Path) -> None:
    """A second process group must not meet what is left of the first."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "intl_bench", "knn", "checkpoint.pt", "--init", "random", "--seeds", "3", "--results", "together"]
    done = subprocess.run([*launch, *command], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert seeds(folder / "together") == [0, 1, 2]


def test_jobs_of_the_local_executor(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(folder)
    command = ["knn", "checkpoint.pt", "--init", "random", "--seeds", "2", "--results", "jobs"]
    assert cli.main([*command, "--slurm", "cluster=local,timeout_min=5"]) == 0
    assert seeds(folder / "jobs") == [0, 1]
    assert "seed 1: job" in capsys.readouterr().out


@pytest.mark.parametrize("options", ["cluster=moon", "colour=red,cluster=local"])
def test_bad_options_are_one_line(folder: Path, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=f"--slurm {options}"):
        spread.on_cluster(["knn", "checkpoint.pt"], [0], options, folder / "logs")
