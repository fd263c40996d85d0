"""Signals that ask a run to stop.

A block of `StopRequest` records them, and its work ends at the next safe point. Elsewhere they end the command at once.
"""

import contextlib
import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from intl_bench.core.errors import HUNG_UP, INTERRUPTED, PREEMPTED, Preempted

# SIGUSR1 and SIGUSR2 are the warnings of Slurm and submitit, SIGINT is Ctrl-C, SIGHUP a closed terminal.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
_EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGHUP: HUNG_UP}

# For how many seconds a further signal does not disturb a command that ends because of one.
_UNDISTURBED = 5.0


@dataclasses.dataclass
class _Command:
    """What the signals of the command in the block of `ending` have done.

    Attributes:
        pending: a signal on which no block of `StopRequest` has acted yet; the next block begins with it.
        raised: whether it raised an exception, outside of every block.
        ended_at: since when the command ends because of a signal.
    """

    pending: int | None = None
    raised: bool = False
    ended_at: float = -math.inf


# None outside of the command line, for example in a test or a notebook.
_command: _Command | None = None


class Stopped(BaseException):
    """A signal arrived outside of every block of `StopRequest`. It passes every `except Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def raised() -> int | None:
    """Return the signal that raised an exception, which a library may have replaced by its own."""
    return _command.pending if _command is not None and _command.raised else None


def pending() -> int | None:
    """Return the signal on which no block of `StopRequest` has acted."""
    return _command.pending if _command is not None else None


def how_to_resume() -> str:
    """Return the end of a line that tells of a stop. With `--fresh`, the same command would start over."""
    return f"run the same command again{' without --fresh' if '--fresh' in sys.argv else ''} to resume"


def exit_code(number: int) -> int:
    """Return the exit code of a command that signal `number` stopped."""
    return _EXIT_CODES.get(signal.Signals(number), PREEMPTED)


def _install(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> dict[int, Any]:
    """Install a handler for all signals; return those before. A SIGHUP that `nohup` ignores stays ignored."""
    ours = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in ours}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def ending(*, to_exit: bool) -> Iterator[None]:
    """Raise `Stopped` (KeyboardInterrupt on Ctrl-C) in the block on the first signal outside of `StopRequest`.

    Args:
        to_exit: this process ends after the block. Further signals are then ignored, so that they do not change its
            exit code.
    """
    global _command
    command, owner = _Command(), os.getpid()
    _command = command

    def end(number: int, frame: FrameType | None) -> None:
        undisturbed = number != signal.SIGINT and time.monotonic() - command.ended_at < _UNDISTURBED
        if undisturbed or os.getpid() != owner:  # a forked worker ends with its parent
            return
        # If a destructor swallows the exception, the next block of `StopRequest` acts on the signal.
        command.pending, command.raised, command.ended_at = number, True, time.monotonic()
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)

    before = _install(end)
    try:
        yield
    finally:
        _command = None
        if to_exit:
            _install(signal.SIG_IGN)
        else:
            _restore(before)


class StopRequest:
    """A block in which signals only set `received`. A second Ctrl-C ends the process at once.

    A signal on which the block did not act, for example because its work was done, is the first of the next block.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopRequest":
        self._before = _install(self._note)
        if _command is not None:
            if self.received is None:
                self.received = _command.pending
            _command.pending, _command.raised = None, False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _command is not None:
            if isinstance(error, Preempted | KeyboardInterrupt):
                _command.ended_at = time.monotonic()
            else:
                _command.pending = self.received
        _restore(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.received = number

    def error(self, what: str, number: int | None = None) -> Preempted:
        """Return the exception to raise after everything is saved.

        Args:
            what: the state of the run, for the message.
            number: of the signal. None means the signal received here.
        """
        name = signal.Signals(number or self.received or signal.SIGTERM)
        return Preempted(f"stopped by {name.name} {what}; {how_to_resume()}", exit_code(name))
