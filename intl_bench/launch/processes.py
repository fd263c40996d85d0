"""Starts the processes of a run on this machine, one for each GPU, and stays until they end.

This is `torchrun --standalone` without its restarts, and with what it lacks: every signal reaches the processes, they
have all the time they need to save their state, the exit code is theirs, and one line says what went wrong.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from intl_bench.core.errors import BenchError, InputError, ResourceError
from intl_bench.core.sharing import require_even_batch
from intl_bench.core.signals import StopRequest

_COMMAND = [sys.executable, "-m", "intl_bench"]
_PARENT = "INTL_BENCH_PARENT"
# What the others get to end by themselves once one has failed: they may be writing.
_PATIENCE = 30.0


class UnfinishedError(BenchError):
    """Some commands did not finish; the exit code is that of the first of them, whose own line stands above."""

    def __init__(self, codes: Mapping[str, int]) -> None:
        bad = {name: code for name, code in codes.items() if code}
        self.exit_code = next(iter(bad.values()))
        listed = ", ".join(f"{name} (exit {code})" for name, code in bad.items())
        super().__init__(f"not finished: {listed}; what went wrong is said above; the same command goes on")


def start(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts `intl-bench ARGUMENTS`, which stops as on a signal when this process dies.

    It has a session of its own: a Ctrl-C reaches it through us alone, once.
    """
    environment = {**environment, _PARENT: str(os.getpid())}
    return subprocess.Popen([*_COMMAND, *arguments], env=environment, start_new_session=True)


def stop_with_parent() -> None:
    """In a process that `start` started: from now on a dead parent stops it, so that nothing is left running."""
    parent = os.environ.pop(_PARENT, None)
    if parent is not None:
        threading.Thread(target=_watch_parent, args=(int(parent),), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def threads(processes: int) -> int:
    """Computing threads for each of several processes that share this machine's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def count(requested: int | None, *, device: str, batch_size: int) -> int:
    """How many processes a run gets here: as many as requested, or one for each GPU; 1 means this one.

    Where a launcher has started this process there are as many as there are, and nothing more is started.

    Args:
        device: "auto", "cpu" or "cuda".
        batch_size: over all processes.

    Raises:
        InputError: fewer than one, or the batch does not divide evenly.
        ResourceError: more processes than GPUs.
    """
    if "RANK" in os.environ:
        return 1
    gpus = 0
    if device != "cpu":
        import torch

        gpus = torch.cuda.device_count()
    number = max(1, gpus) if requested is None else requested
    if number < 1:
        raise InputError(f"--processes {number}: expected at least 1")
    if gpus and number > gpus:
        raise ResourceError(f"--processes {number}: {gpus} GPUs are visible here; one process needs one")
    require_even_batch(batch_size, number)
    return number


def run(arguments: Sequence[str], count: int) -> int:
    """Runs `intl-bench ARGUMENTS` in `count` processes together; returns the exit code of the first that failed.

    That process has said why. A signal is passed on to all of them; one that fails ends the others.

    Raises:
        Preempted: a signal came before there was a state to save.
        ResourceError: a process was killed.
    """
    import torch.distributed as dist

    from intl_bench.core import distributed

    # Bound here, on a free port, the store of their rendezvous cannot miss it, and outlives each of them.
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
    if stop.received is not None and code == -stop.received:  # it had not begun to heed signals
        raise stop.error("before there was anything to save")
    if code > 0:
        return code
    raise ResourceError(
        f"process {failed} of {count} was killed by {signal.Signals(-code).name}, perhaps for its memory; "
        "the same command goes on from the last checkpoint"
    )


def _wait(workers: Sequence["subprocess.Popen[bytes]"], stop: StopRequest) -> int | None:
    """Until all have ended, or `_PATIENCE` after the first that failed, which ends the others; returns its number."""
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
