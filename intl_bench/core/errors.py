"""The exit codes of the command line, as exceptions.

An error that a user can cause ends in one line on stderr: what is wrong, in which file and field, what was expected,
and what to do.
"""

import contextlib
import errno
from pathlib import Path

from intl_bench.core.machine import free_bytes

OK = 0
BUG = 1
PREEMPTED = 75
HUNG_UP = 129
INTERRUPTED = 130


class BenchError(Exception):
    """An error that ends the program with `exit_code` and its message as one line."""

    exit_code = BUG


class InputError(BenchError, ValueError):
    """Bad input or configuration, which the user can correct (exit 2)."""

    exit_code = 2


class DamagedError(InputError):
    """A file that this project wrote is damaged. An earlier file may be in its place (exit 2)."""


class NotFiniteError(InputError):
    """The features of a checkpoint are not finite: its weights are damaged, or its training diverged (exit 2)."""


class DivergedError(BenchError):
    """Training produced a number that is not finite. The saved weights are of before that step (exit 3)."""

    exit_code = 3


class ResourceError(BenchError):
    """Disk, memory or device is missing or exhausted (exit 4)."""

    exit_code = 4


class LostProcessError(ResourceError):
    """Another process of the run is gone. The process that started both knows which one, and why."""


class Preempted(BenchError):
    """A signal stopped the run after its state was saved. The same command resumes.

    Args:
        exit_code: `intl_bench.core.signals.exit_code` of the signal: 75, 130 after Ctrl-C, 129 after a hangup.
    """

    def __init__(self, message: str, exit_code: int = PREEMPTED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Faults of the machine, not of the command that the user typed: {error number: what to do}.
_FAULTS = {
    **dict.fromkeys(_SPACE, "free some space"),
    **dict.fromkeys((errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT), "check the disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "check the permissions of the file and its folder"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n), or use fewer workers"),
    **dict.fromkeys((errno.ENOMEM, errno.EAGAIN), "free some memory"),
}


def from_os_error(error: OSError, doing: str, *, path: Path | None = None, written: int = 0) -> BenchError:
    """Translate an error of the operating system, which occurred while `doing` something.

    A fault of the machine (disk, permissions, limits) becomes a `ResourceError`, every other error an `InputError`.

    Args:
        path: the file that was to be written, and is unchanged.
        written: number of bytes that were written to its temporary file.
    """
    reason = error.strerror or str(error)
    if error.errno not in _FAULTS:
        return InputError(f"{doing}: {reason}")
    if path is not None:
        reason += f" after {written} bytes; nothing was overwritten"
        with contextlib.suppress(OSError):
            if error.errno in _SPACE:
                reason += f"; {free_bytes(path.parent)} bytes are free"
    return ResourceError(f"{doing}: {reason}; {_FAULTS[error.errno]} and run the command again")


# Parts of the messages of PyTorch's allocators on a CPU, for memory and for sizes that no memory has.
_ALLOCATORS = ("DefaultCPUAllocator", "alloc_cpu", "not enough memory", "Storage size calculation overflowed")


# Parts of the messages of the dynamic linker when a library does not fit into the memory.
_LINKER = ("failed to map segment", "cannot allocate memory", "cannot map zero-fill pages")


def translate(error: Exception) -> BenchError | None:
    """Translate an error of a library that has its own exit code. Return None for a bug."""
    if isinstance(error, BenchError):
        return error
    no_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if isinstance(error, ImportError) and any(text in str(error) for text in _LINKER):
        return ResourceError(f"out of memory: {error}; allow more memory (ulimit -v) and run the command again")
    if no_memory or (isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATORS)):
        return ResourceError(
            f"out of memory: {str(error).splitlines()[0] if str(error) else 'no more memory'}; "
            "use smaller batches, or more GPUs, each with a part of the batch"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        # The main process notices a dead worker at any line.
        return ResourceError(f"a data worker died: {error}; use fewer workers, or check memory and /dev/shm")
    if isinstance(error, RuntimeError) and ("gloo/" in str(error) or type(error).__name__.startswith("Dist")):
        reason = " ".join(str(error).split())[:200]
        return LostProcessError(
            f"lost another process, which ended or was killed, possibly for lack of memory: {reason}"
        )
    if isinstance(error, OSError):
        return from_os_error(error, f"cannot use {error.filename or 'a file'}")
    return None
