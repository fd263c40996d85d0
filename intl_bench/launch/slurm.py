"""Commands as jobs of a cluster, through submitit: a pre-training, or one job for each seed of a task."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intl_bench.core.errors import PREEMPTED, InputError, Preempted
from intl_bench.core.signals import StopRequest
from intl_bench.launch import processes
from intl_bench.launch.children import Child, Watch

# How long a job that was asked to stop waits for the signal that queues it again.
_REQUEUE_SECONDS = 60


class Job:
    """One command as a submitit job. When it is preempted, it saves its state, is queued again and resumes."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self.arguments, self.folder = list(arguments), folder

    def __call__(self) -> int:
        """Run the command and return its exit code. Several tasks of a job, one for each GPU, run it together.

        Raises:
            SystemExit: the command was stopped, and this is not the first task, which decides about the job.
        """
        import submitit

        from intl_bench.core import rendezvous

        os.chdir(self.folder)
        task = submitit.JobEnvironment()
        if task.num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
            if task.num_nodes == 1:
                os.environ["MASTER_ADDR"] = "127.0.0.1"
                for name in processes.INTERFACES:
                    os.environ.setdefault(name, rendezvous.loopback())
        self.child = Child(f"task {task.global_rank}", self.arguments, os.environ)
        watch = Watch(StopRequest())  # submitit handles the signals
        try:
            while self.child.code is None:
                watch.look([self.child])
        finally:
            self.child.stop()  # after a cancellation it saves its state
        code = self.child.report()
        if code == PREEMPTED:
            time.sleep(_REQUEUE_SECONDS)  # the end of a task may end the first task, which queues the job again
            if task.global_rank:
                sys.exit(code)
        return code

    def checkpoint(self) -> Any:
        """Queue the job again; submitit calls this in the first task before the job is preempted or times out."""
        import submitit

        self.child.stop()
        with contextlib.suppress(ChildProcessError):  # it has ended already
            os.waitid(os.P_PID, self.child.process.pid, os.WEXITED | os.WNOWAIT)
        again = [word for word in self.arguments if word != "--fresh"]  # the work since the start is kept
        return submitit.helpers.DelayedSubmission(Job(again, self.folder))


def run_on_cluster(commands: Mapping[str, Sequence[str]], options: str, logs: Path) -> None:
    """Submit each command as a job through submitit and wait for all. An interruption cancels them.

    Args:
        commands: a name for messages, such as "seed 0", and the arguments of `intl-bench`.
        options: "name=value,name=value" for submitit's executor, such as "timeout_min=4320,slurm_partition=gpu,
            nodes=2,gpus_per_node=8,tasks_per_node=8". "cluster=local" runs the jobs on this machine. By default several
            nodes have one task for each GPU.
        logs: folder of the jobs' output.

    Raises:
        InputError: submitit is not installed, there is no cluster, or submitit does not know an option.
        processes.UnfinishedError: a job failed.
        Preempted: a signal arrived.
    """
    try:
        import submitit
    except ImportError:
        raise InputError("--slurm: the package submitit is not installed; run pip install submitit") from None
    pairs = [option.partition("=") for option in options.split(",") if option]
    values: dict[str, Any] = {
        name: int(value) if re.fullmatch(r"[0-9]{1,18}", value) else value for name, _, value in pairs
    }
    if values.get("nodes", 1) != 1 and "gpus_per_node" in values:
        values.setdefault("tasks_per_node", values["gpus_per_node"])
    cluster = values.pop("cluster", "slurm")
    try:
        # A long run times out many times and makes progress each time.
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster, **{f"{cluster}_max_num_timeout": 100})
        executor.update_parameters(name="intl-bench", **values)
    except (RuntimeError, ValueError, TypeError, NameError) as error:
        raise InputError(f"--slurm {options}: {' '.join(str(error).split())}") from error
    jobs = {name: executor.submit(Job(command, Path.cwd())) for name, command in commands.items()}
    print(
        "\n".join(f"{name}: job {job.job_id}, output in {job.paths.stdout}" for name, job in jobs.items()), flush=True
    )
    try:
        with StopRequest() as stop:
            while not all(job.done() for job in jobs.values()):
                if stop.received is not None:
                    raise stop.error("with the jobs canceled and their states saved")
                time.sleep(1)
    except Preempted:
        for job in jobs.values():
            job.cancel()
        raise
    codes = {name: _exit_code(name, job) for name, job in jobs.items()}
    if any(codes.values()):
        raise processes.UnfinishedError(codes)


def _exit_code(name: str, job: Any) -> int:
    """Return the exit code of a job that has ended, and print its error."""
    tasks = [job.task(number) for number in range(job.num_tasks)]
    # An exception means a failure of the job, such as a lost machine. An error of the command is its exit code.
    failures = [task.exception() for task in tasks]
    codes = [1 if failure else task.result() for task, failure in zip(tasks, failures, strict=True)]
    if not any(codes):
        return 0
    number, code = max(
        enumerate(codes), key=lambda item: (item[1] > 1, item[1] > 0)
    )  # an exit code of 1 may follow from another task
    path = tasks[number].paths.stderr
    lines = path.read_text().splitlines() if path.exists() else []
    ours = [line for line in lines if line.startswith("intl-bench: ")] or lines or [failures[number]]
    print(f"{name}: {ours[-1]} ({path})", file=sys.stderr)
    return code
