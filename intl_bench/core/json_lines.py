"""A log with one JSON object a line."""

import contextlib
import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from intl_bench.core import files, inputs
from intl_bench.core.errors import InputError

_MOST_DIGITS = 18
_TAIL = 2**16  # bytes of a log that hold its last line


class JsonLines:
    """A log with one JSON object a line. Each gets the seconds that its run has taken, over all of its sessions.

    Args:
        path: the file. It and its folder are created if missing.
        keep: returns whether a line of an earlier session stays. A line that a crash cut short is removed. Other lines
            that cannot be read are removed with one warning.
        mark: a value of `mark`, which the state of the run stored. A log that has changed since then causes a warning.
    """

    def __init__(
        self, path: Path, keep: Callable[[dict[str, Any]], bool], mark: Mapping[str, int] | None = None
    ) -> None:
        self.path = path
        self._before, self._started = seconds(path), time.perf_counter()
        content = inputs.read_bytes(path) if path.exists() else b""
        kept: list[bytes] = []
        damaged = 0
        for line in content.splitlines(keepends=True):
            try:
                if keep(json.loads(line)):
                    kept.append(line)
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                damaged += line.endswith(b"\n")  # else the line was cut short
        if damaged or (mark is not None and zlib.crc32(content[: mark["bytes"]]) != mark["crc32"]):
            removed = f"; removed {damaged} lines that cannot be read" if damaged else ""
            print(f"{path}: its lines have changed since the state of this run was saved{removed}", file=sys.stderr)
        content = b"".join(kept)
        files.write_bytes(path, content)
        self._length, self._crc32 = len(content), zlib.crc32(content)

    def append(self, row: dict[str, Any]) -> None:
        """Append one line; raises the errors of `files.append_bytes`."""
        taken = round(self._before + time.perf_counter() - self._started, 2)
        line = json.dumps({**row, "seconds": taken}, allow_nan=False).encode() + b"\n"
        files.append_bytes(self.path, line)
        self._length, self._crc32 = self._length + len(line), zlib.crc32(line, self._crc32)

    def mark(self) -> dict[str, int]:
        """Return the length and the CRC-32 of the lines so far, for the state of the run."""
        return {"bytes": self._length, "crc32": self._crc32}


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log without those that cannot be read, such as one that is being written."""
    found = (_row(line) for line in inputs.read_bytes(path).splitlines())
    return [row for row in found if row is not None]


def last(path: Path) -> dict[str, Any]:
    """Return the last line of a log that can be read; {} if there is none. Only the end of the log is read."""
    with contextlib.suppress(OSError, InputError), inputs.open_file(path) as stream:
        stream.seek(max(0, stream.seek(0, 2) - _TAIL))
        found = (_row(line) for line in reversed(stream.read().splitlines()))
        return next((row for row in found if row is not None), {})
    return {}


def seconds(path: Path) -> float:
    """Return the seconds that the run of a log has taken up to its last line, 0.0 if it has none."""
    found = [0.0]
    for row in rows(path) if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError, LookupError):
            found.append(float(row["seconds"]))
    return max(value for value in found if math.isfinite(value))


def _row(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line, parse_int=_integer)
        return found if isinstance(found, dict) else None
    return None


def _integer(text: str) -> int:
    """Parse an integer; one that is longer than any count of steps or images is damage."""
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)
