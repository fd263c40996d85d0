"""Start the processes of a run on this machine, one for each GPU, and wait for their end.

This is `torchrun --standalone` without restarts. In addition, every signal reaches the processes, they have all the
time that they need to save their state, the exit code is that of the process that failed, and the error is one line.
"""

import os
import time
from collections.abc import Mapping, Sequence

from intl_bench.core.errors import BenchError, InputError, ResourceError
from intl_bench.core.machine import cores
from intl_bench.core.sharing import require_even_batch
from intl_bench.core.signals import StopRequest, how_to_resume
from intl_bench.launch.children import Child, Watch

# Seconds for the other processes to end after one has failed, because they may be writing.
_PATIENCE = 12.0
_MOST = 1024
# Which network interface the processes of a group use.
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class UnfinishedError(BenchError):
    """Some commands did not finish. The exit code is that of the first of them, which has printed its own error."""

    def __init__(self, codes: Mapping[str, int]) -> None:
        bad = {name: code for name, code in codes.items() if code}
        self.exit_code = next(iter(bad.values()))
        listed = ", ".join(f"{name} (exit {code})" for name, code in bad.items())
        super().__init__(f"not finished: {listed}; see the errors above; {how_to_resume()}")


def threads(processes: int) -> int:
    """Return the number of computing threads for each of several processes that share the cores of this machine."""
    return max(1, cores() // processes)


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
    if number > _MOST:
        raise InputError(f"--processes {number}: expected at most {_MOST} on one machine; lower --processes")
    require_even_batch(batch_size, number)
    return number


def run(arguments: Sequence[str], count: int) -> int:
    """Run `intl-bench ARGUMENTS` in `count` processes together; return the exit code of the first that failed.

    That process has printed its error. A signal is passed on to all processes. A failure ends the others.

    Raises:
        Preempted: a signal arrived before there was a state to save, or a process could not save it.
        ResourceError: a process was killed or did not answer.
    """
    from intl_bench.core import distributed, rendezvous

    # The store of the rendezvous is opened here. It outlives each of the processes.
    store = rendezvous.local_store()
    environment = {
        "OMP_NUM_THREADS": str(threads(count)),
        # The processes talk to each other on this machine only.
        **dict.fromkeys(INTERFACES, rendezvous.loopback()),
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        **distributed.LAUNCHER,
    }
    with StopRequest() as stop:
        ranks: list[Child] = []
        try:
            for rank in range(count):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                ranks.append(Child(f"rank {rank} of {count}", arguments, environment | own))
            failed = _wait(ranks, stop)
        finally:
            for child in ranks:
                child.end()
    if failed is None:
        return 0
    error, number = failed.failure(), stop.received
    reported = distributed.reported_exit_code(store)
    if reported is not None and not failed.fate:
        return reported
    if number is not None and (error is None or failed.code == -number):
        raise stop.error("before there was anything to save")
    if number is not None:
        raise stop.error(f"without a new state, because {failed.fate or error}")
    raise error or ResourceError(
        f"{failed} ended or lost another rank (exit {failed.code}); {how_to_resume()} from the last saved state"
    )


def _wait(ranks: Sequence[Child], stop: StopRequest) -> Child | None:
    """Wait until all have ended, or `_PATIENCE` after the first failure. Return the first that failed."""
    watch, failed, deadline = Watch(stop), None, float("inf")
    while any(child.code is None for child in ranks) and time.monotonic() < deadline:
        watch.look(ranks)
        if failed is None:
            failed = _first_failed(ranks)
            if failed is not None:
                deadline = time.monotonic() + _PATIENCE
                for child in ranks:
                    child.stop()
    return failed


def _first_failed(ranks: Sequence[Child]) -> Child | None:
    """Return a rank that failed. One that was killed comes first, because others fail for lack of it."""
    bad = [child for child in ranks if child.code]
    return min(bad, key=lambda child: child.code or 0, default=None)
