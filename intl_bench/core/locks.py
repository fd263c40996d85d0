"""A lock on a run's folder: one process tree at a time writes there.

The lock is a file beside the folder, so that `--fresh` may remove the folder while the lock is held. It needs nothing
but an atomic create and works on a network file system. It names its process, so that a lock whose process is gone
stops nobody; of processes that cannot be seen from here (another machine, another container) nobody can tell.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from intl_bench.core import files
from intl_bench.core.errors import InputError, from_os_error

_PATIENCE_S = 2.0  # where hard links are missing, a lock is empty between its creation and its writing


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Holder:
    """The content of a lock file. Text that the system does not tell (macOS has no /proc) is empty."""

    host: str
    process: int
    process_start: str  # clock ticks since boot; a number is given to another process later, but not at the same tick
    boot_id: str
    pid_namespace: str
    machine_id: str
    since: str
    command: str
    token: str  # tells two locks of one process apart

    def is_gone(self, me: "_Holder") -> bool:
        """Whether it was a process of this machine that runs no more; False where that cannot be known."""
        if self.host != me.host:
            return False
        if self.boot_id != me.boot_id:
            return bool(self.boot_id and me.boot_id and me.machine_id) and self.machine_id == me.machine_id
        return self.pid_namespace == me.pid_namespace and not _is_running(self.process, self.process_start)


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _state_and_start(process: int) -> tuple[str, str]:
    """Fields 3 and 22 of /proc/PID/stat, empty where they cannot be read; field 2 may hold spaces and parentheses."""
    fields = _read_text(f"/proc/{process}/stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")


def _is_running(process: int, start: str) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's, and there
    state, now = _state_and_start(process)
    # Z: a killed process that its parent has not noticed yet; it does nothing any more.
    return state not in ("Z", "X") and (start == now or not start or not now)


def _me() -> _Holder:
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return _Holder(
        host=socket.gethostname(),
        process=os.getpid(),
        process_start=_state_and_start(os.getpid())[1],
        boot_id=_read_text("/proc/sys/kernel/random/boot_id"),
        pid_namespace=namespace,
        machine_id=_read_text("/etc/machine-id"),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        # An argument may hold bytes that are no text.
        command=" ".join(sys.argv)[:200].encode(errors="replace").decode(),
        token=secrets.token_hex(8),
    )


def _parse(path: Path) -> _Holder:
    """Raises FileNotFoundError without a file, ValueError where the file is no lock of ours."""
    text = path.read_text(encoding="utf-8")
    try:
        # One line each, whatever is in it: it goes into messages.
        values: dict[str, Any] = {key: " ".join(str(value).split()) for key, value in json.loads(text).items()}
        holder = _Holder(**values | {"process": int(values["process"])})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not 0 < holder.process < 2**31:
        raise ValueError(f"{path}: process {holder.process}")
    return holder


def _read(path: Path, folder: Path) -> _Holder | None:
    """Who holds the lock; None if it was given back meanwhile."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return _parse(path)
        except ValueError:
            if time.monotonic() > deadline:
                raise InputError(
                    f"{folder}: in use, but {path} does not say by whom; if no run uses the folder, delete {path}"
                ) from None
            time.sleep(0.05)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE) and not path.is_symlink():
                return None
            raise from_os_error(error, f"cannot read {path}") from error


def _take_over(path: Path, me: _Holder) -> bool:
    """Makes the lock its own if its process is gone, looked up again where no other process of ours can come between.

    The old lock is replaced, not removed, so that nobody who has just arrived finds none.
    """
    name = f"intl-bench-{os.getuid()}-{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}.lock"
    try:
        guard = os.open(Path(tempfile.gettempdir()) / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
            try:
                gone = _parse(path).is_gone(me)
            except (FileNotFoundError, ValueError):
                gone = False  # given back meanwhile, or another process is making its own
            if gone:
                files.write_text(path, files.json_text(dataclasses.asdict(me)))
            return gone
        finally:
            os.close(guard)
    except OSError as error:
        raise from_os_error(error, f"cannot take over {path}") from error


def _refusal(folder: Path, path: Path, holder: _Holder, me: _Holder, otherwise: str) -> InputError:
    here = (holder.host, holder.boot_id, holder.pid_namespace) == (me.host, me.boot_id, me.pid_namespace)
    ours = here and holder.process == me.process
    who = f"{'this process, ' if ours else 'process '}{holder.process} on {holder.host}, since {holder.since}"
    advice = [] if ours else ["wait for it", "stop it"]
    advice += [otherwise] if otherwise else []
    elsewhere = "" if here else f"; if it is gone, delete {path}"
    return InputError(
        f"{folder}: in use by {who} ({holder.command}){'; ' if advice else ''}{', or '.join(advice)}{elsewhere}"
    )


@contextlib.contextmanager
def lock(folder: Path, *, otherwise: str = "") -> Iterator[None]:
    """Keeps every other process out of `folder`, which need not exist, until the block ends.

    The lock is the file `folder` + ".lock". One that was left by a process of this machine that is gone is taken over,
    with one line on stderr. Child processes belong to their parent's block and must not take the lock themselves.

    Args:
        otherwise: what the user may do instead of waiting, for the message.

    Raises:
        InputError: another block holds the lock, in this process or any other, or the lock cannot be written.
        ResourceError: the disk is full.
    """
    path = folder.absolute().with_name(folder.absolute().name + ".lock")
    me = _me()
    try:
        while not files.create_json(path, dataclasses.asdict(me)):
            holder = _read(path, folder)
            if holder is None:
                continue
            if holder.token == me.token:
                break  # a network file system repeated the request, and it had succeeded the first time
            if not holder.is_gone(me):
                raise _refusal(folder, path, holder, me, otherwise)
            if _take_over(path, me):
                left = f"process {holder.process}, which is gone (since {holder.since}: {holder.command})"
                print(f"{folder}: took over the lock of {left}", file=sys.stderr)
                break
        yield
    finally:
        # Not in a forked child that leaves the block by its own way. What cannot be removed is taken over next time.
        with contextlib.suppress(OSError, ValueError):
            if os.getpid() == me.process and _parse(path).token == me.token:
                path.unlink()
