"""The only module that writes files. Writing is atomic and durable, and important files hold their own digest.

A reader sees the old file or the new one, never a part of a file. A killed process leaves at most a temporary file,
whose name names the process. The next process that writes into the folder, or locks it, removes it.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any

from intl_bench.core import inputs, owners, seals
from intl_bench.core.errors import DamagedError, from_os_error
from intl_bench.core.read_only import require_writable

# Read once, because the call changes the mask of the whole process, and files are also written in the background.
_UMASK = os.umask(0)
os.umask(_UMASK)
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS, errno.EISDIR)
# .NAME.MACHINE-PROCESS-START-RANDOM.tmp, or .NAME.RANDOM.tmp of an earlier version
_TEMPORARY = re.compile(r"\..+\.(?:([0-9a-f]{8})-(\d+)-(\d*)-[0-9a-f]{8}|[a-z0-9_]{8})\.tmp")
_CLAIM = re.compile(r"\.[0-9a-f]{16}\.claim")
_CLAIM_S = 10.0  # a claim (see `_create_without_links`) that is older belongs to a process that was killed
_UNKNOWN_OWNER_S = 24 * 3600.0


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that have ended.

    Whether a process of another machine has ended is unknown. Its files are removed when they are a day old.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                continue
            if found := _TEMPORARY.fullmatch(entry.name):
                place, process, start = found.groups()
                if place == owners.place():
                    dead = not owners.is_running(int(process), start)
                else:
                    dead = _age(entry) > _UNKNOWN_OWNER_S
            else:
                dead = _CLAIM.fullmatch(entry.name) is not None and _age(entry) > _CLAIM_S
            if dead:
                with contextlib.suppress(OSError):  # one that cannot be removed does not keep the others
                    os.unlink(entry.path)


def _age(entry: os.DirEntry[str]) -> float:
    """Return the seconds since a file was changed."""
    return time.time() - entry.stat(follow_symlinks=False).st_mtime


def _sync_folder(folder: Path) -> None:
    """Make a change of a folder's entries durable, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        _sync_folder(each.parent)


_swept: set[Path] = set()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file beside `path`, and remove it at the end, unless it has been renamed."""
    require_writable(path)
    temporary: Path | None = None
    try:
        with contextlib.suppress(FileNotFoundError):  # renaming would destroy a device such as /dev/null
            inputs.require_regular(path, path.stat())
        _make_folder(path.parent)
        if (folder := path.parent.absolute()) not in _swept:
            _swept.add(folder)
            sweep(folder)
        process = os.getpid()
        owner = f"{owners.place()}-{process}-{owners.started(process)}-{secrets.token_hex(4)}"
        new = path.with_name(f".{path.name[:50]}.{owner}.tmp")
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600))
        temporary = new
        yield temporary
    except OSError as error:
        written = 0
        with contextlib.suppress(OSError):
            written = 0 if temporary is None else temporary.stat().st_size
        raise from_os_error(error, f"cannot write {path}", path=path, written=written) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _finish(temporary: Path) -> None:
    """Make the content of a temporary file durable and give it the permissions of an ordinary file."""
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    temporary.chmod(0o666 & ~_UMASK)


@contextlib.contextmanager
def _replacement(path: Path, keep: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It is renamed to `path` if the block succeeds, and else removed.

    Args:
        keep: number of earlier files that stay beside the new one (see `earlier`).
    """
    with _writing(path) as temporary:
        yield temporary
        _finish(temporary)
        for age in range(keep, 0, -1):
            newer = earlier(path, age - 1)
            if not newer.exists():
                continue
            if age == 1:  # `path` itself stays in its place until the new file replaces it
                _copy_by_link(newer, earlier(path, 1))
            else:
                newer.replace(earlier(path, age))
                newer.unlink(missing_ok=True)  # a rename onto another link of the same file does nothing
            with contextlib.suppress(FileNotFoundError):
                _sidecar(newer).replace(_sidecar(earlier(path, age)))
        temporary.replace(path)
        _sync_folder(path.parent)


def earlier(path: Path, age: int) -> Path:
    """Return the name of the file that was at `path` before its last `age` changes: NAME.1.pt, NAME.2.pt."""
    return path.with_name(f"{path.stem}.{age}{path.suffix}") if age else path


def _copy_by_link(source: Path, target: Path) -> None:
    """Put the file `source` at the unused path `target` too. Without hard links, it moves there."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        source.replace(target)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically.

    Raises:
        ResourceError: the disk is full or fails, or the path may not be written.
        InputError: the path is not possible, such as a file in the place of a folder.
    """
    with _replacement(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` atomically; raises the errors of `write_text`."""
    with _replacement(path) as temporary:
        temporary.write_bytes(content)


def write_by_product(path: Path, content: bytes) -> None:
    """Write `content` atomically, but let the system choose when it reaches the disk; raises as `write_text`."""
    with _writing(path) as temporary:
        temporary.write_bytes(content)
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)


def write_stream(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a binary stream and put the result at `path` atomically; raises the errors of `write_text`."""
    with _replacement(path) as temporary, temporary.open("wb") as stream:
        write(stream)


def append_bytes(path: Path, content: bytes) -> None:
    """Append to a file, which is created if it is missing, as is its folder; raises the errors of `write_text`."""
    require_writable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            stream.write(content)
    except OSError as error:
        raise from_os_error(error, f"cannot write {path}", path=path) from error


def create_json(path: Path, value: Any) -> bool:
    """Write indented JSON with sorted keys atomically, unless `path` exists. Return whether it was written.

    Many processes may write at once; exactly one of them gets True for a path. Raises the errors of `write_text`.
    """
    with _writing(path) as temporary:
        temporary.write_bytes(sealed_json(value))
        _finish(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            if not _create_without_links(temporary, path):
                return False
        _sync_folder(path.parent)
    return True


def _create_without_links(temporary: Path, path: Path) -> bool:
    """Rename `temporary` to `path` unless `path` exists, on a file system without hard links.

    A second file, which only one process can create, excludes the others meanwhile.
    """
    claim = path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.claim")
    while not path.exists():
        try:
            os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - claim.stat().st_mtime > _CLAIM_S:
                    claim.unlink()
            time.sleep(0.01)
            continue
        try:
            if path.exists():
                return False
            temporary.replace(path)
            return True
        finally:
            with contextlib.suppress(OSError):
                claim.unlink()
    return False


def json_text(value: Any) -> str:
    """Return indented JSON with sorted keys; raises `ValueError` for a NaN."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def sealed_json(value: Any) -> bytes:
    """Return `json_text` as bytes. A value `seals.UNSET` of the key `seals.KEY` becomes the digest."""
    content = json_text(value).encode()
    digest = hashlib.sha256(content).hexdigest()
    # The two spaces are those of the first level. A value inside may have the same key.
    unset, sealed = (f'\n  "{seals.KEY}": "{value}"'.encode() for value in (seals.UNSET, digest))
    return content.replace(unset, sealed)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hex digits."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error


def _sidecar(path: Path) -> Path:
    """Return the file `NAME.sha256`, in which earlier versions kept the digest."""
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


def write_digested(path: Path, write: Callable[[Any], object], *, keep: int = 0) -> str:
    """Let `write` fill a binary stream, put the result with its digest inside (`seals`) at `path` atomically.

    Args:
        keep: number of earlier files that stay beside the new one (see `earlier`).

    Returns:
        The SHA-256 of the whole file, which `verify` returns too.
    """
    with _replacement(path, keep) as temporary, temporary.open("wb+") as raw:
        stream = _Stream(raw)
        try:
            write(stream)
            stream.flush()
        except Exception:
            if stream.error is not None:
                raise stream.error from None
            raise
        digest = seals.seal(raw)
    with contextlib.suppress(OSError):
        _sidecar(path).unlink()
    return digest


def verify(path: Path, *, required: bool = False) -> str:
    """Compare a file with the digest inside, or in the side-car of an earlier version; return the file's SHA-256.

    Args:
        required: refuse a file without a digest.

    Raises:
        InputError, ResourceError: the file cannot be read.
        DamagedError: its content has changed since it was written.
    """
    try:
        with inputs.open_file(path) as stream:
            digest, right = seals.check(stream)
        if right is None and (sidecar := _sidecar(path)).exists():
            right = digest.encode() in inputs.read_bytes(sidecar).split()
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error
    if not (right if right is not None else not required):
        raise DamagedError(
            f"{path}: damaged: its content does not match its SHA-256; restore it from a copy, or write it again"
        )
    return digest


def has_digest(path: Path) -> bool:
    """Return whether a file holds its own digest, as all files of `write_digested` of this version do."""
    with path.open("rb") as stream:
        return seals.find(stream) is not None


def set_aside(path: Path) -> None:
    """Rename a damaged file to NAME.damaged."""
    try:
        path.replace(path.with_name(f"{path.name}.damaged"))
    except OSError as error:
        raise from_os_error(error, f"cannot rename {path}") from error


def remove_contents(folder: Path) -> None:
    """Remove everything in a folder, which may be a symbolic link to one. A folder that does not exist is empty.

    Raises:
        ResourceError, InputError: something could not be removed; the message names it.
    """
    try:
        entries = list(os.scandir(folder)) if folder.exists() else []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
    except OSError as error:
        raise from_os_error(error, f"cannot remove {error.filename or folder}") from error


def replace_contents(folder: Path, new: Path, stays: Collection[Path] = ()) -> None:
    """Replace everything in `folder` by what is in its subfolder `new`. The files `stays` of `new` remain there.

    A file replaces the old one of its name atomically. What has no replacement is removed at the end. A folder that
    does not exist is empty.

    Raises:
        ResourceError, InputError: something could not be moved or removed; the message names it.
    """
    try:
        names = {new.name}
        for path in sorted(new.iterdir()) if new.exists() else ():
            if path in stays:
                continue
            target = folder / path.name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            path.replace(target)
            names.add(path.name)
        for path in sorted(folder.iterdir()) if folder.exists() else ():
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise from_os_error(error, f"cannot replace {error.filename or folder}") from error
