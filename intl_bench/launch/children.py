"""Commands that run as processes of their own, and the watch over them.

A child tells several times a second that it lives and which step it has reached (`intl_bench.core.heartbeat`). A child
that is stopped or does not answer is ended, because others may wait for it forever.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from intl_bench.core import heartbeat, owners
from intl_bench.core.errors import ResourceError
from intl_bench.core.signals import StopRequest, how_to_resume

_COMMAND = [sys.executable, "-m", "intl_bench"]
_ROUND = 0.05
# Seconds that a child may be stopped (SIGSTOP), and after a signal.
_STOPPED, _STOPPED_AFTER_SIGNAL = 60.0, 10.0
# Seconds that a child may be silent. Python is silent while a library is loaded or a large file is parsed.
_SILENT, _SILENT_AFTER_SIGNAL = 300.0, 60.0
# Seconds without a step that a child may take after a signal, in which it saves its state.
_SAVING = 120.0


class Child:
    """A running `intl-bench ARGUMENTS`. It stops as on a signal when this process dies.

    It has its own session, so that a Ctrl-C reaches it only once, through this process.

    Attributes:
        heard: whether it has told anything. Until then it would die of a signal, with a traceback.
        asked: the last signal by which it was asked to stop.
        where: the last step that it told.
        fate: why it was killed by `Watch`.
    """

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name, self.where, self.fate = name, "", ""
        self.heard, self.asked = False, 0
        self._silent = self._unmoved = 0.0
        self._pipe, writing = os.pipe()
        os.set_blocking(self._pipe, False)
        os.set_blocking(writing, False)
        try:
            self.process = subprocess.Popen(
                [*_COMMAND, *arguments],
                env={**environment, heartbeat.VARIABLE: str(writing)},
                start_new_session=True,
                pass_fds=[writing],
            )
        finally:
            os.close(writing)

    @property
    def code(self) -> int | None:
        """The exit code; negative if a signal killed the child; None as long as it runs."""
        return self.process.poll()

    def __str__(self) -> str:
        return f"{self.name} (process {self.process.pid}, {self.where or 'before its first step'})"

    def listen(self, seconds: float) -> None:
        """Read what the child told. `seconds` of this process's running time have passed since the last call."""
        self._silent += seconds
        self._unmoved += seconds
        with contextlib.suppress(BlockingIOError):
            lines = os.read(self._pipe, 1 << 16).decode(errors="replace").splitlines()
            if lines:
                self.heard, self._silent = True, 0.0
                if lines[-1] != self.where:
                    self.where, self._unmoved = lines[-1], 0.0

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask the child to save its state and end. A child that is stopped continues for that."""
        if self.code is not None:
            return
        if owners.is_stopped(self.process.pid):
            print(f"intl-bench: {self} was stopped; it continues, to save its state", file=sys.stderr, flush=True)
        self.asked = number
        self.process.send_signal(number)
        self.process.send_signal(signal.SIGCONT)
        self._silent = self._unmoved = 0.0

    def kill_if_lost(self, *, stopping: bool) -> None:
        """End a child for which it makes no sense to wait, sooner if the run is to end (`stopping`)."""
        reason = ""
        if self._silent > (_STOPPED_AFTER_SIGNAL if stopping else _STOPPED) and owners.is_stopped(self.process.pid):
            reason = f"was stopped (SIGSTOP) for {self._silent:.0f} s"
        elif self._silent > (_SILENT_AFTER_SIGNAL if stopping else _SILENT):
            reason = f"did not answer for {self._silent:.0f} s"
        elif self.asked and self._unmoved > _SAVING:
            reason = f"did not end within {self._unmoved:.0f} s after the signal"
        if reason:
            self.fate = f"{self} {reason} and was ended"
            self.process.kill()

    def end(self) -> None:
        """Kill the child if it still runs."""
        self.process.kill()
        self.process.wait()
        os.close(self._pipe)

    def failure(self) -> ResourceError | None:
        """Return the error of a child that was killed, which could not tell it."""
        code = self.process.returncode
        if code is None or code >= 0:
            return None
        fate = self.fate or f"{self} was killed by {signal.Signals(-code).name}, possibly for lack of memory"
        return ResourceError(f"{fate}; {how_to_resume()} from the last saved state")

    def report(self) -> int:
        """Return the exit code of a child that has ended. Print the error of one that could not do so."""
        error = self.failure()
        if error is not None:
            print(f"intl-bench: {error}", file=sys.stderr, flush=True)
        return self.process.returncode if error is None else error.exit_code


class Watch:
    """The watch over running children: it passes signals on and ends children that are lost."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop
        self._at = time.monotonic()

    def look(self, children: Sequence[Child]) -> None:
        """Wait a moment and look after the running ones of `children`."""
        time.sleep(_ROUND)
        # Only the time counts in which this process ran: it may have been stopped together with its children.
        now = time.monotonic()
        seconds, self._at = min(now - self._at, 1.0), now
        running = [child for child in children if child.code is None]
        number = self.stop.received
        for child in running:
            child.listen(seconds)
            if number is not None and child.heard and child.asked != number:
                child.stop(number)
            child.kill_if_lost(stopping=number is not None)
