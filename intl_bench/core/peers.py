"""Signs of life between the processes of several machines.

A network that is cut sends no error. The processes would wait for each other until the timeout of the group, an hour,
in which one of them may be scoring. So each process counts upward in the store of the run, and ends if another one has
stopped counting. A process that scores still counts.
"""

import contextlib
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from intl_bench.core import heartbeat
from intl_bench.core.errors import ResourceError
from intl_bench.core.terminal import visible

_HOST = socket.gethostname()
_NO_STEP = "no step yet"
_EVERY = 5.0
# Seconds without a sign of life after which a process counts as lost. While some libraries work, Python runs no thread.
SILENT = 120.0


class _Peers:
    """The other processes: their last signs of life, and when these were heard."""

    def __init__(self, group: str, rank: int, world_size: int) -> None:
        self.group, self.rank = group, rank
        self.heard = {other: time.monotonic() for other in range(world_size) if other != rank}
        self.told = dict.fromkeys(self.heard, "")
        self.ended = threading.Event()

    def exchange(self) -> None:
        """Tell and hear signs of life. A store that cannot be reached looks as if the others were silent."""
        with contextlib.suppress(RuntimeError, OSError):
            # A connection of its own, because the one of the group may wait for another process.
            where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = dist.TCPStore(*where, is_master=False, timeout=timedelta(seconds=SILENT))
            for count in itertools.count():
                store.set(f"{self.group}/{self.rank}", f"{count} {_HOST}, {heartbeat.where() or _NO_STEP}")
                for other, told in self.told.items():
                    key = f"{self.group}/{other}"
                    if store.check([key]) and (now := store.get(key).decode(errors="replace")) != told:
                        self.told[other], self.heard[other] = now, time.monotonic()
                if self.ended.wait(_EVERY):
                    return

    def guard(self) -> None:
        """End this process if another one is silent for too long. Its main thread may wait and handle no signal."""
        while not self.ended.wait(1.0):
            silent = [other for other, heard in self.heard.items() if time.monotonic() - heard > SILENT]
            if silent:
                names = [f"rank {other} ({self.told[other].partition(' ')[2] or 'unknown'})" for other in silent]
                print(
                    f"intl-bench: rank {self.rank} ({heartbeat.where() or _NO_STEP}): no sign of life for "
                    f"{SILENT:.0f} s from {visible('; '.join(names))}; check the network and the other machines, and "
                    "run the command again, which resumes",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(ResourceError.exit_code)


@contextlib.contextmanager
def watching(group: str, rank: int, world_size: int) -> Iterator[None]:
    """Exchange signs of life within the block, if the processes are on several machines.

    A process of the same machine is watched by the program that started it (`intl_bench.launch.children`).

    Args:
        group: name of the process group in the store.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", world_size)) == world_size:
        yield
        return
    peers = _Peers(group, rank, world_size)
    for work in (peers.exchange, peers.guard):
        threading.Thread(target=work, daemon=True).start()
    try:
        yield
    finally:
        peers.ended.set()
