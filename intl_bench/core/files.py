"""The only module that writes files. Writing is atomic, and important files get a digest.

A reader sees the old file or the new one, never a part of a file. A file with a digest has a side-car `NAME.sha256` in
the format of `sha256sum`. The digest detects flipped bits, most of which `torch.load` and safetensors do not detect.
"""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from intl_bench.core.errors import InputError, from_os_error

# Read once, because the call changes the mask of the whole process, and files are also written in the background.
_UMASK = os.umask(0)
os.umask(_UMASK)
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@contextlib.contextmanager
def _replacement(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It is renamed to `path` if the block succeeds, and else removed."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise from_os_error(error, f"cannot write {path}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically.

    Raises:
        ResourceError: the disk is full.
        InputError: the path cannot be written.
    """
    with _replacement(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` atomically; raises the errors of `write_text`."""
    with _replacement(path) as temporary:
        temporary.write_bytes(content)


def write_stream(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a binary stream and put the result at `path` atomically; raises the errors of `write_text`."""
    with _replacement(path) as temporary, temporary.open("wb") as stream:
        write(stream)


def create_json(path: Path, value: Any) -> bool:
    """Write indented JSON with sorted keys atomically, unless `path` exists. Return whether it was written.

    Many processes may write at once; exactly one of them gets True for a path. On a file system without hard links the
    file is empty for a moment.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(json_text(value))
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            os.replace(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise from_os_error(error, f"cannot write {path}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return True


def json_text(value: Any) -> str:
    """Return indented JSON with sorted keys; raises `ValueError` for a NaN."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


class JsonLines:
    """A log with one JSON object a line.

    Args:
        path: the file. It and its folder are created if missing.
        keep: returns whether a line of an earlier session stays. A line that a crash cut short is removed.
    """

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
        self.path = path
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                with contextlib.suppress(json.JSONDecodeError):
                    if keep(json.loads(line)):
                        kept.append(line)
        write_text(path, "".join(kept))

    def append(self, row: dict[str, Any]) -> None:
        """Append one line; raises the errors of `write_text`."""
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise from_os_error(error, f"cannot write {self.path}") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hex digits."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


class _Stream:
    """A stream that keeps the error of the operating system, which `torch.save` replaces by its own error."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.stream.flush()


def write_digested(path: Path, write: Callable[[Any], object]) -> str:
    """Let `write` fill a binary stream, put the result at `path` atomically with its side-car, and return the SHA-256.

    The side-car holds both the old and the new digest while the file changes. A crash then leaves a pair that verifies.
    """
    with _replacement(path) as temporary:
        with temporary.open("wb") as raw:
            stream = _Stream(raw)
            try:
                write(stream)
                stream.flush()
            except Exception:
                if stream.error is not None:
                    raise stream.error from None
                raise
        digest = sha256(temporary)
        line = f"{digest}  {path.name}\n"
        sidecar = _sidecar(path)
        before = sidecar.read_text(encoding="utf-8") if sidecar.exists() else ""
        write_text(sidecar, line + before)
    write_text(sidecar, line)
    return digest


def verify(path: Path) -> str:
    """Compare a file with its side-car, if it has one, and return the SHA-256 of the file.

    Raises:
        InputError: the file is missing, or its content has changed since it was written.
    """
    digest = sha256(path)
    sidecar = _sidecar(path)
    if sidecar.exists() and digest not in sidecar.read_text(encoding="utf-8").split():
        raise InputError(
            f"{path}: its content does not match {sidecar.name}; the file was damaged or replaced since it was "
            "written; restore it from a copy, or add --fresh to start over"
        )
    return digest
