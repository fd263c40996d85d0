"""Spreads the seeds of a task: over the GPUs of this machine, or over the jobs of a cluster.

Each seed is a process of its own that runs the same command with that seed alone, so that finished seeds are kept and
a stopped one resumes, however it was started.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intl_bench.core.errors import BenchError, InputError, Preempted
from intl_bench.core.signals import StopRequest

_COMMAND = [sys.executable, "-m", "intl_bench"]


class SeedError(BenchError):
    """Some seeds did not finish; the exit code is that of the first of them, whose own line stands above."""

    def __init__(self, codes: dict[int, int]) -> None:
        bad = {seed: code for seed, code in codes.items() if code}
        self.exit_code = next(iter(bad.values()))
        listed = ", ".join(f"seed {seed} (exit {code})" for seed, code in bad.items())
        super().__init__(f"not finished: {listed}; their own lines are above; the same command goes on")


def in_parallel(arguments: Sequence[str], seeds: Sequence[int]) -> None:
    """Runs `intl-bench ARGUMENTS --seeds SEED,` for each seed, as many at once as there are GPUs, one on each.

    Without a GPU all run at once and share the cores. A signal is passed on, and each seed saves its state.

    Raises:
        SeedError: a seed failed; the others were run to their end.
        Preempted: a signal came.
    """
    import torch

    gpus = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    free: list[str | None] = list(visible[:gpus]) if gpus else [None] * len(seeds)
    threads = max(1, (os.cpu_count() or 1) // max(1, min(len(free), len(seeds))))
    waiting, running, codes = list(seeds), dict[int, tuple[subprocess.Popen[bytes], str | None]](), dict[int, int]()
    with StopRequest() as stop:
        while running or (waiting and stop.received is None):
            while waiting and free and stop.received is None:
                seed, slot = waiting.pop(0), free.pop(0)
                environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
                if slot is not None:
                    environment["CUDA_VISIBLE_DEVICES"] = slot
                command = [*_COMMAND, *arguments, "--seeds", f"{seed},"]
                # A session of its own: a Ctrl-C reaches it through us alone, once.
                running[seed] = subprocess.Popen(command, env=environment, start_new_session=True), slot
            time.sleep(0.2)
            if stop.received is not None:
                for process, _ in running.values():
                    process.send_signal(signal.SIGTERM)
                for process, _ in running.values():
                    process.wait()
            for seed, (process, slot) in list(running.items()):
                if process.poll() is not None:
                    codes[seed] = process.returncode
                    free.append(slot)
                    del running[seed]
        if stop.received is not None and (waiting or any(codes.values())):
            raise stop.error("; every seed saved its state")
    if any(codes.values()):
        raise SeedError(codes)


class SeedJob:
    """One seed as a submitit job; preempted, it is queued again and resumes."""

    def __init__(self, arguments: Sequence[str], seed: int, folder: Path) -> None:
        self.arguments, self.seed, self.folder = list(arguments), seed, folder

    def __call__(self) -> int:
        """Runs the seed, all tasks of the job together where there are several (one a GPU); returns the exit code."""
        import submitit

        os.chdir(self.folder)
        if submitit.JobEnvironment().num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        return subprocess.run([*_COMMAND, *self.arguments, "--seeds", f"{self.seed},"]).returncode

    def checkpoint(self) -> Any:
        """Called by submitit when the job is about to be preempted or timed out."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def on_cluster(arguments: Sequence[str], seeds: Sequence[int], options: str, logs: Path) -> None:
    """Submits each seed as a job through submitit and waits for all; interrupted, it cancels them.

    Args:
        options: "name=value,name=value" of submitit's executor, such as "timeout_min=4320,slurm_partition=gpu,
            gpus_per_node=8,tasks_per_node=8"; "cluster=local" runs the jobs on this machine.
        logs: folder for the jobs' output.

    Raises:
        InputError: submitit is not installed, no cluster here, or an option that it does not know.
        SeedError: a seed failed.
        Preempted: interrupted.
    """
    try:
        import submitit
    except ImportError:
        raise InputError("--slurm: submitit is not installed; pip install 'intl-bench[slurm]'") from None
    pairs = [option.partition("=") for option in options.split(",") if option]
    values: dict[str, Any] = {name: int(value) if value.isdigit() else value for name, _, value in pairs}
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=values.pop("cluster", "slurm"))
        executor.update_parameters(name="intl-bench", **values)
    except (RuntimeError, ValueError, TypeError, NameError) as error:
        raise InputError(f"--slurm {options}: {' '.join(str(error).split())}") from error
    jobs = {seed: executor.submit(SeedJob(arguments, seed, Path.cwd())) for seed in seeds}
    print("\n".join(f"seed {seed}: job {job.job_id}, output in {job.paths.stdout}" for seed, job in jobs.items()))
    codes = {}
    try:
        with StopRequest() as stop:
            while not all(job.done() for job in jobs.values()):
                if stop.received is not None:
                    raise stop.error("; the jobs were cancelled and saved their states")
                time.sleep(1)
    except Preempted:
        for job in jobs.values():
            job.cancel()
        raise
    for seed, job in jobs.items():
        failure = job.exception()  # the job's own, such as a lost machine; the command's is its exit code
        codes[seed] = 1 if failure is not None else next((code for code in job.results() if code), 0)
        if codes[seed]:
            lines = job.paths.stderr.read_text().splitlines() if job.paths.stderr.exists() else []
            print(f"seed {seed}: {lines[-1] if lines else failure} ({job.paths.stderr})", file=sys.stderr)
    if any(codes.values()):
        raise SeedError(codes)
