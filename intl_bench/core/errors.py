"""The exit codes of the command line, as exceptions.

An error that a user can cause ends in one line on stderr: what is wrong, in which file and field, what was expected,
and what to do.
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
    """Bad input or configuration, which the user can correct (exit 2)."""

    exit_code = 2


class DivergedError(BenchError):
    """Training produced a loss that is not finite. The saved weights are of before that step (exit 3)."""

    exit_code = 3


class ResourceError(BenchError):
    """Disk, memory or device is missing or exhausted (exit 4)."""

    exit_code = 4


class Preempted(BenchError):
    """A signal stopped the run after its state was saved. The same command resumes (exit 75, or 130 after Ctrl-C)."""

    exit_code = PREEMPTED

    def __init__(self, message: str, *, interrupted: bool = False) -> None:
        super().__init__(message)
        if interrupted:
            self.exit_code = INTERRUPTED


def from_os_error(error: OSError, doing: str) -> BenchError:
    """Translate an error of the operating system, which occurred while `doing` something.

    A full disk or quota becomes a `ResourceError`, every other error an `InputError`.
    """
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(f"{doing}: {reason}; nothing was overwritten; free some space and run the command again")
    return InputError(f"{doing}: {reason}")


def translate(error: Exception) -> BenchError | None:
    """Translate an error of a library that has its own exit code. Return None for a bug."""
    if isinstance(error, BenchError):
        return error
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return ResourceError(
            f"out of memory: {str(error).splitlines()[0] if str(error) else 'no more memory'}; "
            "use smaller batches, or more GPUs, each with a part of the batch"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        # The main process notices a dead worker at any line.
        return ResourceError(f"a data worker died: {error}; use fewer workers, or check memory and /dev/shm")
    if isinstance(error, RuntimeError) and ("gloo/" in str(error) or type(error).__name__.startswith("Dist")):
        reason = " ".join(str(error).split())[:200]
        return ResourceError(f"lost another process, which ended or was killed, possibly for lack of memory: {reason}")
    if isinstance(error, OSError):
        return from_os_error(error, f"cannot use {error.filename or 'a file'}")
    return None
