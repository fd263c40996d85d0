"""A lock on a run's folder. One process tree at a time writes there.

The lock is a file beside the folder, so that `--fresh` may remove the folder while the lock is held. It requires only
an atomic create and works on a network file system. It names its process, and a lock whose process has ended is taken
over. Whether a process of another machine or container has ended is unknown here.
"""

import contextlib
import dataclasses
import errno
import fcntl
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

from intl_bench.core import files, inputs, owners
from intl_bench.core.errors import InputError, from_os_error

_PATIENCE_S = 2.0  # without hard links, a lock is empty between its creation and its writing


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Holder:
    """The content of a lock file. Text that the system does not provide (macOS has no /proc) is empty."""

    host: str
    process: int
    process_start: str  # clock ticks since boot; two processes with the same number start at different ticks
    boot_id: str
    pid_namespace: str
    machine_id: str
    since: str
    command: str
    token: str  # distinguishes two locks of one process

    def is_gone(self, me: "_Holder") -> bool:
        """Return whether a process of this machine held the lock and has ended. False if that is unknown."""
        if self.host != me.host:
            return False
        if self.boot_id != me.boot_id:
            return bool(self.boot_id and me.boot_id and me.machine_id) and self.machine_id == me.machine_id
        return self.pid_namespace == me.pid_namespace and not owners.is_running(self.process, self.process_start)


def _me() -> _Holder:
    return _Holder(
        host=socket.gethostname(),
        process=os.getpid(),
        process_start=owners.started(os.getpid()),
        boot_id=owners.read_text("/proc/sys/kernel/random/boot_id"),
        pid_namespace=owners.pid_namespace(),
        machine_id=owners.read_text("/etc/machine-id"),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        # An argument may hold bytes that are not text.
        command=" ".join(sys.argv)[:200].encode(errors="replace").decode(),
        token=secrets.token_hex(8),
    )


def is_held(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder, or may hold it on another machine."""
    try:
        return not _parse(_path(folder)).is_gone(_me())
    except (OSError, ValueError, InputError):
        return False


def _path(folder: Path) -> Path:
    return folder.absolute().with_name(folder.absolute().name + ".lock")


def _parse(path: Path) -> _Holder:
    """Read a lock file; raises FileNotFoundError without a file, and ValueError if the file is not such a lock."""
    with inputs.open_file(path) as stream:
        stored = inputs.parse_json(stream.read(), str(path))
    try:
        # Every value becomes one line, because it is printed in messages.
        values: dict[str, Any] = {key: " ".join(str(value).split()) for key, value in stored.items()}
        holder = _Holder(**values | {"process": int(values["process"])})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not 0 < holder.process < 2**31:
        raise ValueError(f"{path}: process {holder.process}")
    return holder


def _read(path: Path, folder: Path) -> _Holder | None:
    """Return the holder of the lock, or None if the lock was released in the meantime."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return _parse(path)
        except ValueError:
            if time.monotonic() > deadline:
                raise InputError(
                    f"{folder}: in use, but {path} does not name a process; if no run uses the folder, delete {path}"
                ) from None
            time.sleep(0.05)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE) and not path.is_symlink():
                return None
            raise from_os_error(error, f"cannot read {path}") from error


def _take_over(path: Path, me: _Holder) -> bool:
    """Take over the lock if its process has ended. Return whether this succeeded.

    The holder is read again under a second lock, which excludes other processes of this machine. The old file is
    replaced, not removed, so that a process that arrives meanwhile finds a lock.
    """
    name = f"intl-bench-{os.getuid()}.lock"  # one for all paths, because nobody removes it
    try:
        guard = os.open(Path(tempfile.gettempdir()) / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            _exclude(guard)
            try:
                gone = _parse(path).is_gone(me)
            except (FileNotFoundError, ValueError):
                gone = False  # released in the meantime, or another process is writing its own lock
            if gone:
                files.write_text(path, files.json_text(dataclasses.asdict(me)))
            return gone
        finally:
            os.close(guard)
    except OSError as error:
        raise from_os_error(error, f"cannot take over {path}") from error


def _exclude(handle: int) -> None:
    """Lock a file, where the file system can."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


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
    """Exclude every other process from `folder`, which need not exist, until the block ends.

    The lock is the file `folder` + ".lock". A lock of a process of this machine that has ended is taken over, with one
    line on stderr. Child processes belong to the block of their parent and must not take the lock.

    Args:
        otherwise: an alternative to waiting, for the message.

    Raises:
        InputError: another block of this or another process holds the lock, or the lock cannot be written.
        ResourceError: the disk is full.
    """
    path, me = _path(folder), _me()
    try:
        while not files.create_json(path, dataclasses.asdict(me)):
            holder = _read(path, folder)
            if holder is None:
                continue
            if holder.token == me.token:
                break  # a network file system repeated the request, which had succeeded the first time
            if not holder.is_gone(me):
                raise _refusal(folder, path, holder, me, otherwise)
            if _take_over(path, me):
                left = f"process {holder.process}, which is gone (since {holder.since}: {holder.command})"
                print(f"{folder}: took over the lock of {left}", file=sys.stderr)
                break
        files.sweep(folder)
        yield
    finally:
        # Not in a forked child that leaves the block. A lock that cannot be removed is taken over next time.
        with contextlib.suppress(OSError, ValueError):
            if os.getpid() == me.process and _parse(path).token == me.token:
                path.unlink()
