"""Which process owns a lock or a temporary file, and whether a process still runs or is stopped."""

import contextlib
import hashlib
import os
import socket
from pathlib import Path


def read_text(path: str) -> str:
    """Return the text of a file of the system, without surrounding space; empty text if there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _state_and_start(process: int) -> tuple[str, str]:
    """Return fields 3 and 22 of /proc/PID/stat, or empty text. Field 2 may hold spaces and parentheses."""
    fields = read_text(f"/proc/{process}/stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")


def is_stopped(process: int) -> bool:
    """Return whether a process was stopped by SIGSTOP. False if the system does not tell."""
    return _state_and_start(process)[0] == "T"


def started(process: int) -> str:
    """Return when a process started, in clock ticks since boot; empty text if the system does not tell (macOS)."""
    return _state_and_start(process)[1]


def is_running(process: int, start: str) -> bool:
    """Return whether the process with this number and this start (see `started`) runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # the process exists and belongs to another user
    state, now = _state_and_start(process)
    # Z: a process that was killed and whose parent has not collected it. It does nothing more.
    return state not in ("Z", "X") and (start == now or not start or not now)


def pid_namespace() -> str:
    """Return the name of the namespace in which process numbers count; empty text if there are none."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def place() -> str:
    """Return 8 hexadecimal digits, equal for processes that see each other's numbers."""
    return hashlib.sha256(f"{socket.gethostname()} {pid_namespace()}".encode(errors="replace")).hexdigest()[:8]
