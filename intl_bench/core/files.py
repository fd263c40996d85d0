"""The only writer of files: atomic, and digested where a file is worth checking.

A reader sees the old file or the new one, never half of one. A digested file has a side-car `NAME.sha256` in the
format of `sha256sum`, so that a flipped bit is noticed (`torch.load` and safetensors notice almost none).
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

# Read once: the call changes the whole process's, and files are written in the background too.
_UMASK = os.umask(0)
os.umask(_UMASK)
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@contextlib.contextmanager
def _replacement(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that is renamed onto it when the block succeeds, and removed when not."""
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
    """Writes `text` as UTF-8, atomically.

    Raises:
        ResourceError: the disk is full.
        InputError: the path cannot be written.
    """
    with _replacement(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content`, atomically; raises as `write_text`."""
    with _replacement(path) as temporary:
        temporary.write_bytes(content)


def write_stream(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Lets `write` fill a binary stream and puts the result at `path`, atomically; raises as `write_text`."""
    with _replacement(path) as temporary, temporary.open("wb") as stream:
        write(stream)


def create_json(path: Path, value: Any) -> bool:
    """Writes indented JSON with sorted keys and no NaN, atomically, if `path` does not exist yet; else returns False.

    Safe with many processes writing at once: exactly one of them gets True for a path. On a file system without hard
    links the file is empty for a moment.
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
    """Indented JSON with sorted keys; raises `ValueError` for a NaN."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


class JsonLines:
    """A log of one JSON object a line, appended to.

    Args:
        path: the file; created with its folder if missing.
        keep: decides which lines of an earlier session stay; a line cut short by a crash goes too.
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
        """Adds one line; raises as `write_text`."""
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise from_os_error(error, f"cannot write {self.path}") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


class _Stream:
    """Passes writes on and keeps the operating system's error, which `torch.save` replaces by one of its own."""

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
    """Lets `write` fill a binary stream, puts the result at `path` atomically with its side-car; returns the SHA-256.

    The side-car names the old and the new digest while the file changes, so that a crash in between leaves a pair
    that still verifies.
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
    """SHA-256 of a digested file after comparing it with its side-car; without a side-car just the SHA-256.

    Raises:
        InputError: the file is missing or its bytes are not the ones that were written.
    """
    digest = sha256(path)
    sidecar = _sidecar(path)
    if sidecar.exists() and digest not in sidecar.read_text(encoding="utf-8").split():
        raise InputError(
            f"{path}: its bytes do not match {sidecar.name}: the file was damaged or replaced after it was written; "
            "restore it from a copy, or start over with --fresh"
        )
    return digest
