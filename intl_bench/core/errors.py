"""The exit codes of the command line, as exceptions.

Every error a user can cause ends in one line on stderr: what, which file, which field, what was expected, what to do.
"""

import errno

OK = 0
BUG = 1
PREEMPTED = 75
INTERRUPTED = 130


class BenchError(Exception):
    """An error that ends the program with `exit_code` and its message as one line."""

    exit_code = BUG


class InputError(BenchError, ValueError):
    """Bad input or configuration; the user can mend it (exit 2)."""

    exit_code = 2


class DivergedError(BenchError):
    """Training produced a non-finite loss; the weights were left as they were before that step (exit 3)."""

    exit_code = 3


class ResourceError(BenchError):
    """Disk, memory or device is missing or exhausted (exit 4)."""

    exit_code = 4


class Preempted(BenchError):
    """Stopped by a signal after writing a checkpoint; the same command resumes (exit 75, or 130 after Ctrl-C)."""

    exit_code = PREEMPTED

    def __init__(self, message: str, *, interrupted: bool = False) -> None:
        super().__init__(message)
        if interrupted:
            self.exit_code = INTERRUPTED


def from_os_error(error: OSError, doing: str) -> BenchError:
    """Translates an operating-system error met while `doing` something into one of ours.

    A full disk or quota is a resource (exit 4), everything else is input (exit 2).
    """
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(f"{doing}: {reason}; nothing was overwritten; free some space and run the command again")
    return InputError(f"{doing}: {reason}")


def translate(error: Exception) -> BenchError | None:
    """Errors of libraries that have an exit code of their own."""
    if isinstance(error, BenchError):
        return error
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return ResourceError(
            f"out of memory: {str(error).splitlines()[0] if str(error) else 'no more to give'}; "
            "smaller batches need less; so do more GPUs, each with its part of a batch"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        # A worker that dies is noticed wherever the main process happens to be.
        return ResourceError(f"a data worker died: {error}; use fewer workers, or check memory and /dev/shm")
    if isinstance(error, RuntimeError) and ("gloo/" in str(error) or type(error).__name__.startswith("Dist")):
        reason = " ".join(str(error).split())[:200]
        return ResourceError(f"lost another process, which ended or was killed, perhaps for its memory: {reason}")
    if isinstance(error, OSError):
        return from_os_error(error, f"cannot use {error.filename or 'a file'}")
    return None
