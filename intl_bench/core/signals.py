"""Signals that ask a run to stop. They are recorded at once and handled at the next safe point."""

import signal
from types import FrameType, TracebackType

from intl_bench.core.errors import Preempted

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class StopRequest:
    """A block in which signals only set `received`: SIGTERM, the warnings of Slurm and submitit, and Ctrl-C.

    A second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
        return Preempted(
            f"stopped by {name.name} {what}; run the same command again to resume", interrupted=name == signal.SIGINT
        )
