"""Signs of life to the process that started this one: several a second, with the step that was reached.

A pipe carries them, so they need no network and begin before PyTorch is imported. The end of the pipe also shows that
the other process is gone.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from typing import Protocol

# The writing end of the pipe.
VARIABLE = "INTL_BENCH_HEARTBEAT"
# A process whose parent is gone ends at the latest after so many seconds without a step.
_ORPHANED = 120.0
_EVERY = 0.2
_PR_SET_PDEATHSIG = 1


class Work(Protocol):
    """Counted work."""

    label: str
    steps: int
    total: int


_latest: Work | None = None
_started = False


def at(work: Work) -> None:
    """Note what this process works on. The next sign of life tells its step."""
    global _latest
    _latest = work


def is_watched() -> bool:
    """Return whether the process that started this one reads the signs of life."""
    return _started


def start() -> None:
    """Begin to send signs of life if the environment names a pipe. Stop this process when its parent dies."""
    global _started
    pipe = os.environ.pop(VARIABLE, None)
    if pipe is None:
        return
    try:
        os.set_inheritable(int(pipe), False)
    except (ValueError, OSError):  # the variable was inherited through another program, without the pipe
        return
    _started = True
    if sys.platform == "linux":
        # A process that is stopped (SIGSTOP) continues when its parent dies, and then ends as on a signal.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT))
    threading.Thread(target=_beat, args=(int(pipe),), daemon=True).start()


def where() -> str:
    """Return what this process works on and the last step that it reached; empty before the first step."""
    work = _latest
    return "" if work is None else " ".join(f"{work.label}: step {work.steps} of {work.total}".split())


def _beat(pipe: int) -> None:
    try:
        while True:
            with contextlib.suppress(BlockingIOError):  # nobody has read for hours
                os.write(pipe, f"{where()}\n".encode(errors="replace"))
            time.sleep(_EVERY)
    except OSError:
        os.kill(os.getpid(), signal.SIGTERM)
    last, since = where(), time.monotonic()
    while time.monotonic() - since < _ORPHANED:
        time.sleep(_EVERY)
        if where() != last:
            last, since = where(), time.monotonic()
    os.kill(os.getpid(), signal.SIGKILL)
