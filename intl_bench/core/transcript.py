"""A copy of what a run prints on stderr, for the file `log.txt` of its folder."""

import contextlib
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

from intl_bench.core.terminal import visible

_MOST = 200  # lines that wait for a file


def note(text: str) -> None:
    """Print a line on stderr, above a progress bar."""
    tqdm.write(text, file=sys.stderr)


class Transcript(contextlib.AbstractContextManager["Transcript"]):
    """A block in which each line of stderr also goes to a function, with its time.

    Of a progress bar, which writes over itself, the last state is one line. Lines before `send_to` wait for it.
    """

    def __init__(self) -> None:
        self._stream: Any = None
        self._line = ""
        self._waiting: list[str] = []
        self._write: Callable[[str], object] | None = None

    def __enter__(self) -> "Transcript":
        self._stream = sys.stderr
        sys.stderr = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if sys.stderr is self:
            sys.stderr = self._stream

    def send_to(self, write: Callable[[str], object]) -> None:
        """Give every line, also those so far, to `write`, which raises no error."""
        self._write = write
        waiting, self._waiting = self._waiting, []
        for line in waiting:
            write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._stream.write(text)
        *lines, rest = (self._line + text).split("\n")
        for line in lines:
            self.keep(line)
        self._line = rest[rest.rfind("\r", 0, -1) + 1 :]  # of a bar, the last state
        return len(text)

    def keep(self, line: str) -> None:
        """Give a line to the function, without printing it."""
        line = visible(line.rstrip("\r").rpartition("\r")[2]).rstrip()
        if not line:
            return
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n"
        if self._write is not None:
            self._write(line)
        elif len(self._waiting) < _MOST:
            self._waiting.append(line)
