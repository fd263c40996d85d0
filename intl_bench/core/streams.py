"""Standard output and error streams that cannot end a run.

A reader such as `head` may end, a terminal may be closed, a disk may be full. The work continues without its output.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class _Output(io.FileIO):
    """A file descriptor that is replaced by the null device at the first error of a write."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(data)


@contextlib.contextmanager
def unbreakable() -> Iterator[_Output | None]:
    """Protect `sys.stdout` and `sys.stderr` within the block.

    Yields:
        the standard output, whose `error` is the first error of a write; None if it is no file descriptor.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    outputs = [_protect(name) for name in ("stdout", "stderr")]
    try:
        yield outputs[0]
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Open the null device in place of standard streams that are closed, so that no other file gets their numbers."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _protect(name: str) -> _Output | None:
    stream = getattr(sys, name)
    try:
        stream.flush()
        output = _Output(stream.fileno(), "w", closefd=False)
    except (OSError, AttributeError, ValueError):  # a test or a notebook has replaced the stream
        return None
    protected = io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=stream.encoding,
        errors=stream.errors,
        # With PYTHONUNBUFFERED, as in many containers, Python's stream writes through instead.
        line_buffering=stream.line_buffering or getattr(stream, "write_through", False),
    )
    setattr(sys, name, protected)
    return output
