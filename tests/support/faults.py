"""Faults of the operating system, at the calls by which Python code changes files below a folder.

`install` runs in the child process of a test. It counts the calls and lets one of them fail, or ends the process there
as `kill -9` would. A write that fails, or in which the process ends, leaves half of its bytes. C and Rust code that
writes files by itself is not seen; this project writes through Python streams alone.
"""

import builtins
import dataclasses
import errno
import io
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

KILL = "kill"
# Calls that change files or make changes durable, and "read": opening a file to read it.
CHANGES = ("open", "write", "flush", "close", "fsync", "rename", "link", "mkdir", "unlink", "rmdir", "chmod")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens at which call.

    Attributes:
        at: the number of the call among those that `calls` and `path` select, from 1. 0 means that nothing happens.
        act: "kill", or the name of an error, such as "ENOSPC".
        lasting: whether all later calls that are selected fail too.
        calls: names of calls.
        path: a part of the path of the file.
    """

    at: int = 0
    act: str = KILL
    lasting: bool = False
    calls: tuple[str, ...] = CHANGES
    path: str = ""


class _Layer:
    def __init__(self, folder: Path, journal: Path, fault: Fault) -> None:
        self.root, self.fault = os.path.realpath(folder), fault
        self.journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.lock, self.count = threading.RLock(), 0
        self.paths: dict[int, str] = {}  # of open file descriptors

    def path_of(self, file: Any, dir_fd: int | None = None) -> str | None:
        """Return the path relative to the folder of a file in it, or None for another file."""
        if isinstance(file, int):
            return self.paths.get(file)
        name = os.fsdecode(file)
        if dir_fd is not None:
            if dir_fd not in self.paths:
                return None
            name = os.path.join(self.root, self.paths[dir_fd], name)
        name = os.path.abspath(name)
        return os.path.relpath(name, self.root) if name == self.root or name.startswith(self.root + os.sep) else None

    def call(
        self, name: str, path: str | None, half: Callable[[], object] | None = None, *, counts: bool = True
    ) -> None:
        """Count a call; raise its error or end the process if its turn has come.

        Args:
            half: does a part of the work of the call before it fails.
            counts: False for a call that fails only while a lasting fault lasts.
        """
        if path is None:
            return
        with self.lock:
            fault = self.fault
            if name not in fault.calls or fault.path not in path:
                return
            if counts:
                self.count += 1
                os_write(self.journal, f"{name} {path}\n".encode())
            strikes = self.count == fault.at and counts
            if not fault.at or not (strikes or (fault.lasting and self.count >= fault.at)):
                return
            os_write(self.journal, f"! {name} {path}\n".encode())
            if half is not None:
                half()
            if fault.act == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            self.fail(path)

    def fail(self, path: str) -> NoReturn:
        number = getattr(errno, self.fault.act)
        raise OSError(number, os.strerror(number), path)


class _Stream:
    """A stream that was opened to write."""

    def __init__(self, stream: Any, path: str, layer: _Layer) -> None:
        self._stream, self._path, self._layer, self._writes = stream, path, layer, 0

    def write(self, data: Any) -> int:
        def half() -> None:
            self._stream.write(data[: len(data) // 2])
            self._stream.flush()

        # The 1st, 4th, 16th ... write of a stream count, because `torch.save` writes hundreds of small parts.
        self._writes += 1
        counts = self._writes.bit_count() == 1 and self._writes.bit_length() % 2 == 1
        self._layer.call("write", self._path, half, counts=counts)
        count: int = self._stream.write(data)
        return count

    def flush(self) -> None:
        self._layer.call("flush", self._path)
        self._stream.flush()

    def close(self) -> None:
        if not self._stream.closed:
            self._layer.call("close", self._path, self._stream.close)
            self._stream.close()

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Any:
        return iter(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


os_write, _os_open, _os_close, _io_open = os.write, os.open, os.close, io.open


def install(folder: str, journal: str, fault: dict[str, Any]) -> None:
    """Replace the functions of `os` and `io` in this process.

    Args:
        folder: only files below it count.
        journal: a file elsewhere that gets a line for each call that counts, its name and path, and the same after
            "! " for each call that failed.
        fault: the fields of a `Fault`.
    """
    layer = _Layer(Path(folder), Path(journal), Fault(**{**fault, "calls": tuple(fault.get("calls", CHANGES))}))

    def open_descriptor(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        inside = layer.path_of(path, dir_fd)
        layer.call("open" if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else "read", inside)
        descriptor = _os_open(path, flags, mode, dir_fd=dir_fd)
        layer.paths.pop(descriptor, None)
        if inside is not None:
            layer.paths[descriptor] = inside
        return descriptor

    def close_descriptor(descriptor: int) -> None:
        layer.paths.pop(descriptor, None)
        _os_close(descriptor)

    def open_stream(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        inside, changes = layer.path_of(file), any(letter in mode for letter in "wax+")
        if not isinstance(file, int):
            layer.call("open" if changes else "read", inside)
        stream: Any = _io_open(file, mode, *args, **options)
        if inside is None:
            return stream
        layer.paths[stream.fileno()] = inside
        return _Stream(stream, inside, layer) if changes else stream

    def write_descriptor(descriptor: int, data: Any) -> int:
        layer.call("write", layer.paths.get(descriptor), lambda: os_write(descriptor, data[: len(data) // 2]))
        return os_write(descriptor, data)

    def counted(function: Callable[..., Any], name: str, target: int = 0) -> Callable[..., Any]:
        """Count a function by the argument `target`, a path or a descriptor."""

        def call(*args: Any, **options: Any) -> Any:
            layer.call(name, layer.path_of(args[target], options.get("dir_fd")))
            return function(*args, **options)

        return call

    os.open, os.close, os.write = open_descriptor, close_descriptor, write_descriptor
    io.open = builtins.open = open_stream
    names = {"fsync": "fsync", "fdatasync": "fsync", "mkdir": "mkdir", "unlink": "unlink", "remove": "unlink"}
    names |= {"rmdir": "rmdir", "chmod": "chmod", "fchmod": "chmod", "truncate": "write", "ftruncate": "write"}
    for function, name in names.items():
        setattr(os, function, counted(getattr(os, function), name))
    for function, name in {"replace": "rename", "rename": "rename", "link": "link"}.items():
        setattr(os, function, counted(getattr(os, function), name, target=1))


def limit(kind: int, value: int) -> None:
    """Set a limit of this process; a number of open files counts from those that are open now."""
    if kind == resource.RLIMIT_NOFILE:
        value += max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(kind, (value, value))


def clock(offset: float) -> None:
    """Set the clock of this process forward by so many seconds, or back."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + offset
    time.time_ns = lambda: now_ns() + int(offset * 1e9)


def watch_memory(log: str) -> None:
    """Write the resident memory of this process in KiB to the file `log` after each step of an optimizer."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    pages, file = os.sysconf("SC_PAGE_SIZE") // 1024, os.open(log, os.O_WRONLY | os.O_CREAT)

    def note(*_: Any) -> None:
        with _io_open("/proc/self/statm") as stream:
            os_write(file, f"{int(stream.read().split()[1]) * pages}\n".encode())

    register_optimizer_step_post_hook(note)
