"""Seeds spread over processes: side by side, and as jobs of submitit's local executor."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stopped_run import wait

from intl_bench import cli
from intl_bench.core.errors import InputError
from intl_bench.launch.slurm import run_on_cluster
from intl_bench.records import RecordStore
from pretrain import states, train
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_seed_gets_the_arguments_as_the_user_typed_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option, in the user's order, also options that are added to a command later."""
    started: list[dict[str, list[str]]] = []
    monkeypatch.setattr("intl_bench.launch.seeds.run_in_parallel", started.append)
    monkeypatch.setattr("intl_bench.launch.slurm.run_on_cluster", lambda commands, *rest: started.append(commands))
    monkeypatch.chdir(folder)
    task = ["checkpoint.pt", "--init", "random", "k=3", "--method", "A B", "--seeds", "0,2", "--debug"]
    assert cli.main(["knn", *task, "--parallel"]) == 0
    assert started.pop() == {f"seed {n}": ["knn", "--only-seed", str(n), *task, "--parallel"] for n in (0, 2)}
    assert cli.main(["knn", *task, "--slurm"]) == 0
    assert started.pop() == {f"seed {n}": ["knn", "--only-seed", str(n), *task, "--slurm"] for n in (0, 2)}
    words = ["beta_reduced", "--seeds", "1", "--parallel", "data.kind=shapes", "data.name=s"]
    assert cli.main(["ablation", *words]) == 0
    assert started.pop() == {"seed 0": ["ablation", "--only-seed", "0", *words]}
    assert cli.main(["pretrain", "demo", "--fresh", "--slurm=timeout_min=5", "epochs=1"]) == 0
    assert started.pop() == {
        "pretrain": ["pretrain", "--in-job", "demo", "--fresh", "--slurm=timeout_min=5", "epochs=1"]
    }
    # The started command runs its one seed itself.
    assert cli.main(["knn", "--only-seed", "2", *task, "--parallel", "--results", "one"]) == 0
    assert not started
    assert seeds(Path("one")) == [2]


@pytest.mark.slow
def test_a_failing_seed_decides_the_exit_code_and_the_others_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "blocked").mkdir()
    (folder / "blocked" / "records").write_text("a file where a folder has to be")
    command = ["knn", "checkpoint.pt", "--init", "random", "--seeds", "2", "--results", "blocked", "--parallel"]
    assert cli.main(command) == 2
    assert "seed 0 (exit 2), seed 1 (exit 2)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "files"),
    [
        (["augment=true", "crop=28", "resize=32"], ["linear/*/state.pt"] * 2),
        pytest.param([], ["features/*.npy"], marks=pytest.mark.long),
    ],
)
def test_a_signal_is_passed_on(folder: Path, tmp_path: Path, settings: list[str], files: list[str]) -> None:
    """Classifiers on images save their state; those on fixed features, which take minutes, have none."""
    command = ["linear", str(folder / "checkpoint.pt"), "--seeds", "2", "--parallel", *settings]
    process = subprocess.Popen(
        [sys.executable, "-m", "intl_bench", *command, "epochs=100000", "batch_size=8"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait(lambda: len(list((tmp_path / "runs").glob(files[0]))) >= len(files))
    process.send_signal(signal.SIGTERM)
    *_, last = process.communicate(timeout=300)[1].splitlines()
    assert process.returncode == 75
    said = "stopped by SIGTERM after every seed had saved what it had; run the same command again to resume"
    assert last == f"intl-bench: {said}"


@pytest.mark.slow
def test_two_processes_score_one_seed_after_the_other(folder: Path) -> None:
    """A second process group must not meet what is left of the first."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "intl_bench", "knn", "checkpoint.pt", "--init", "random", "--seeds", "3", "--results", "together"]
    done = subprocess.run([*launch, *command], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert seeds(folder / "together") == [0, 1, 2]


@pytest.mark.slow
def test_jobs_of_the_local_executor(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(folder)
    command = ["knn", "checkpoint.pt", "--init", "random", "--seeds", "2", "--results", "jobs"]
    assert cli.main([*command, "--slurm", "cluster=local,timeout_min=5"]) == 0
    assert seeds(folder / "jobs") == [0, 1]
    assert "seed 1: job" in capsys.readouterr().out


@pytest.mark.parametrize("options", ["cluster=moon", "color=red,cluster=local"])
def test_bad_options_are_one_line(folder: Path, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=f"--slurm {options}"):
        run_on_cluster({"seed 0": ["knn", "checkpoint.pt"]}, options, folder / "logs")


@pytest.mark.slow
def test_a_failed_job_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(folder)
    words = ["pretrain", "demo", *TINY, "batch_size=4096", "device=cpu"]
    assert cli.main([*words, "--slurm", "cluster=local,timeout_min=5"]) == 2
    first, last = capsys.readouterr().err.strip().splitlines()
    assert first.startswith("pretrain: intl-bench: batch_size=4096")
    assert "not finished: pretrain (exit 2)" in last


def tasks_of_jobs(folder: Path) -> list[int]:
    """The processes that submitit has started for the jobs whose logs are in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if b"submitit.core._submit" in words and os.fsencode(folder) in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_a_preempted_job_is_queued_again_and_ends_in_the_same_weights(tmp_path: Path) -> None:
    """Two tasks, warned as a cluster warns them: the first process saves, the job starts anew and goes on."""
    pytest.importorskip("submitit")
    command = [sys.executable, "-m", "intl_bench", "pretrain", "demo", *TINY, "epochs=8", "log_every=1", "device=cpu"]
    whole = [*command, "name=whole", "--processes", "2"]
    done = subprocess.run(whole, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    options = "cluster=local,timeout_min=60,tasks_per_node=2"
    job = subprocess.Popen(
        [*command, "name=broken", "--fresh", "--slurm", options],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    runs = tmp_path / "runs"
    log = runs / "pretrain/broken/seed0/metrics.jsonl"
    wait(lambda: log.exists() and len(log.read_text().splitlines()) >= 4)
    tasks = tasks_of_jobs(runs / "jobs")
    assert len(tasks) == 2
    for task in tasks:
        os.kill(task, signal.SIGUSR2)
    errors = job.communicate(timeout=600)[1]
    assert job.returncode == 0, errors
    said = "".join(path.read_text() for path in (runs / "jobs").glob("*_log.*"))
    assert said.count("stopped by SIGTERM after step") == 2  # each in its own log
    assert said.count("Requeued job") == 1
    assert re.search(r"stopped by SIGTERM after step ([4-9]|[1-3]\d) of 40", said)
    broken, whole_state = (
        states.load(runs / f"pretrain/{name}/seed0/checkpoint.pt")[0] for name in ("broken", "whole")
    )
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 41))
    for name, value in whole_state["method"].items():
        assert torch.equal(broken["method"][name], value), name
