"""Start the processes of a run on this machine, one for each GPU, and wait for their end.

This is `torchrun --standalone` without restarts. In addition, every signal reaches the processes, they have all the
time that they need to save their state, the exit code is that of the process that failed, and the error is one line.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from intl_bench.core.errors import BenchError, ResourceError
from intl_bench.core.sharing import require_even_batch
from intl_bench.core.signals import StopRequest

_COMMAND = [sys.executable, "-m", "intl_bench"]
_PARENT = "INTL_BENCH_PARENT"
# Seconds for the other processes to end after one has failed, because they may be writing.
_PATIENCE = 30.0


class UnfinishedError(BenchError):
    """Some commands did not finish. The exit code is that of the first of them, which has printed its own error."""

    def __init__(self, codes: Mapping[str, int]) -> None:
        bad = {name: code for name, code in codes.items() if code}
        self.exit_code = next(iter(bad.values()))
        listed = ", ".join(f"{name} (exit {code})" for name, code in bad.items())
        super().__init__(f"not finished: {listed}; see the errors above; run the same command again to resume")


def start(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `intl-bench ARGUMENTS`. It stops as on a signal when this process dies.

    It has its own session, so that a Ctrl-C reaches it only once, through this process.
    """
    environment = {**environment, _PARENT: str(os.getpid())}
    return subprocess.Popen([*_COMMAND, *arguments], env=environment, start_new_session=True)


def stop_with_parent() -> None:
    """Stop this process when the parent that started it by `start` dies, so that nothing is left running."""
    parent = os.environ.pop(_PARENT, None)
    if parent is not None:
        threading.Thread(target=_watch_parent, args=(int(parent),), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def threads(processes: int) -> int:
    """Return the number of computing threads for each of several processes that share the cores of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def count(requested: int | None, *, device: str, batch_size: int) -> int:
    """Return the number of processes to start: as many as requested, or one for each GPU. 1 means this process.

    A process of a launcher starts no others.

    Args:
        device: "auto", "cpu" or "cuda".
        batch_size: over all processes.

    Raises:
        InputError: fewer than one process is requested, or the batch does not divide evenly.
        ResourceError: there are fewer GPUs than processes.
    """
    if "RANK" in os.environ:
        return 1
    gpus = 0
    if device != "cpu":
        import torch

        gpus = torch.cuda.device_count()
    number = max(1, gpus) if requested is None else requested
    if gpus and number > gpus:
        raise ResourceError(
            f"--processes {number}: found {gpus} GPUs; expected at most {gpus} processes, because each needs a GPU; "
            "lower --processes"
        )
    require_even_batch(batch_size, number)
    return number


def run(arguments: Sequence[str], count: int) -> int:
    """Run `intl-bench ARGUMENTS` in `count` processes together; return the exit code of the first that failed.

    That process has printed its error. A signal is passed on to all processes. A failure ends the others.

    Raises:
        Preempted: a signal arrived before there was a state to save.
        ResourceError: a process was killed.
    """
    import torch.distributed as dist

    from intl_bench.core import distributed

    # The store of the rendezvous is opened here on a free port. It outlives each of the processes.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "OMP_NUM_THREADS": str(threads(count)),
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        **distributed.LAUNCHER,
    }
    with StopRequest() as stop:
        workers: list[subprocess.Popen[bytes]] = []
        try:
            ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
            workers.extend(start(arguments, environment | rank) for rank in ranks)
            failed = _wait(workers, stop)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    if failed is None:
        return 0
    reported = distributed.reported_exit_code(store)
    if reported is not None:
        return reported
    code = workers[failed].returncode
    if stop.received is not None and code == -stop.received:  # it had not installed its signal handlers
        raise stop.error("before there was anything to save")
    if code > 0:
        return code
    raise ResourceError(
        f"process {failed} of {count} was killed by {signal.Signals(-code).name}, possibly for lack of memory; "
        "run the same command again to resume from the last checkpoint"
    )


def _wait(workers: Sequence["subprocess.Popen[bytes]"], stop: StopRequest) -> int | None:
    """Wait until all have ended, or `_PATIENCE` after the first failure. Return the number of the first that failed."""
    passed_on: int | None = None
    failed: int | None = None
    deadline = float("inf")
    while True:
        codes = [worker.poll() for worker in workers]
        if failed is None:
            failed = next((number for number, code in enumerate(codes) if code), None)
        if None not in codes or time.monotonic() > deadline:
            return failed
        if stop.received is not None and stop.received != passed_on:
            passed_on = stop.received
            for worker in workers:
                worker.send_signal(passed_on)
        elif failed is not None and deadline == float("inf"):
            deadline = time.monotonic() + _PATIENCE
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
        time.sleep(0.05)
