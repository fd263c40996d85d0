"""Read files that somebody else wrote: regular files of bounded size, and JSON of bounded depth and numbers.

A named pipe or a device would block a reader forever. Deep nesting and huge numbers make Python's parser, or a later
use of the values, fail at any line.
"""

import codecs
import collections
import errno
import io
import json
import math
import os
import pickletools
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from intl_bench.core.errors import InputError, from_os_error

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_LARGEST = 2**30  # bytes of a file that is read as a whole
MOST_TUPLES = 50_000  # in a file of weights, which has four for each tensor
_DEEPEST = 64  # lists and objects inside each other
_DIGITS = 40  # of a whole number
_CONTAINERS = (dict, list)
# The byte order marks of encodings. That of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def open_file(path: str | bytes | Path, *, buffered: bool = True) -> BinaryIO:
    """Open a regular file to read its bytes. Do not wait for the writer of a named pipe.

    Raises:
        InputError: the path is a folder, a named pipe, a socket or a device.
        OSError: the file cannot be opened.
    """
    return open(path, "rb", -1 if buffered else 0, opener=_open_regular)


def _open_regular(path: str | bytes, flags: int) -> int:
    try:
        handle = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise InputError(f"{os.fsdecode(path)}: a socket; expected a regular file") from error
        raise
    try:
        require_regular(path, os.fstat(handle))
    except InputError:
        os.close(handle)
        raise
    return handle


def require_regular(path: str | bytes | Path, status: os.stat_result) -> None:
    """Refuse everything that is no regular file.

    Raises:
        InputError: the message says what the path is.
    """
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise InputError(f"{os.fsdecode(path)}: {_KINDS.get(kind, 'a special file')}; expected a regular file")


def read_bytes(path: str | bytes | Path, name: str = "", *, largest: int = _LARGEST) -> bytes:
    """Read a regular file of at most `largest` bytes.

    Args:
        name: of the file in the message if it cannot be read, such as "record x.json". By default it is the path.

    Raises:
        InputError: the path is not a regular file, or the file is larger.
        InputError, ResourceError: the file cannot be read.
    """
    try:
        with open_file(path, buffered=False) as stream:  # a buffer would add a copy
            size = os.fstat(stream.fileno()).st_size
            if size > largest:
                raise InputError(f"{os.fsdecode(path)}: {size} bytes; expected at most {largest}; use another file")
            return stream.read()
    except OSError as error:
        raise from_os_error(error, f"cannot read {name or os.fsdecode(path)}") from error


def check_torch_file(stream: BinaryIO) -> None:
    """Check a PyTorch file before `torch.load` reads it; leave the stream at its start.

    PyTorch never compresses the parts of a file, a zip archive. Python's hash of a tuple inside 100,000 other tuples,
    the key of a dictionary, overflows the stack and kills the process.

    Raises:
        ValueError: the parts are larger than the file, because they are compressed or lie over each other; or there are
            too many tuples.
        Exception: any error of the readers of zip archives and pickles for damaged bytes.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if stream.read(2) == b"PK":
        with zipfile.ZipFile(stream) as archive:
            parts = archive.infolist()
            if (total := sum(part.file_size for part in parts)) > size:
                raise ValueError(f"its parts have {total} bytes, but the file has {size}")
            # PyTorch's reader ignores the case of names.
            pickles = [archive.read(part) for part in parts if part.filename.lower().endswith(".pkl")]
            programs: list[BinaryIO] = [io.BytesIO(program) for program in pickles]
    else:  # before PyTorch 1.6: a number, a version, facts about the system, the value, the keys of its tensors
        programs = [stream] * 5
    stream.seek(0)
    tuples = sum(code.name.startswith("TUPLE") for one in programs for code, _, _ in pickletools.genops(one))
    if tuples > MOST_TUPLES:
        raise ValueError(f"{tuples} tuples; expected at most {MOST_TUPLES}")
    stream.seek(0)


def read_text(path: Path, what: str) -> str:
    """Read a text file in UTF-8, with or without a byte order mark, or in UTF-16 or UTF-32 with one.

    Args:
        what: name of the file in messages.

    Raises:
        InputError: the file cannot be read, or is not text.
    """
    content = read_bytes(path, f"{what} {path}")
    try:
        return decode_text(content)
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def decode_text(content: bytes) -> str:
    """Decode a text in the encoding of its byte order mark, or in UTF-8; raises UnicodeDecodeError."""
    return content.decode(find_marked_encoding(content) or "utf-8")


def find_marked_encoding(content: bytes) -> str | None:
    """Return the encoding that the byte order mark of a text declares; None without a mark."""
    return next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), None)


def read_json(path: Path, what: str, *, any_number: bool = False) -> Any:
    """Read a JSON file; see `read_text` and `parse_json`."""
    return parse_json(read_text(path, what), f"{what} {path}", any_number=any_number)


def parse_json(content: str | bytes, where: str, *, any_number: bool = False) -> Any:
    """Parse JSON whose values every later use can handle.

    Args:
        content: UTF-8, with or without a byte order mark.
        where: the beginning of messages.
        any_number: accept huge numbers and those that are not finite, whose place the caller names.

    Raises:
        InputError: the text is not JSON, has a key twice in an object, more than 64 levels, a whole number of more than
            40 digits, half a character, or a number that is not finite.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = (_ANY if any_number else _BOUNDED).decode(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # refuses a surrogate without its partner
    except RecursionError as error:
        raise InputError(f"{where}: not valid JSON: nested too deeply; expected at most {_DEEPEST} levels") from error
    except ValueError as error:  # a JSONDecodeError, a UnicodeDecodeError, or one of those below
        raise InputError(f"{where}: not valid JSON: {' '.join(str(error).split())}") from error
    level = [value]
    for _ in range(_DEEPEST + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, _CONTAINERS)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, _CONTAINERS)
        ]
        if not level:
            return value
    raise InputError(f"{where}: not valid JSON: nested too deeply; expected at most {_DEEPEST} levels")


def shorten(value: object, length: int = 80) -> str:
    """Return `repr(value)` for a message, cut to `length` characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a whole number of thousands of digits
        text = f"a {type(value).__name__} that is too large to print"
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        ((name, _),) = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {shorten(name)} occurs twice")
    return made


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits, expected at most {_DIGITS}")
    return int(text)


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{shorten(text)} is not a finite number")
    return value


_ANY = json.JSONDecoder(object_pairs_hook=_object)
_BOUNDED = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_number)
