"""A split of an image folder as one large file: the images' bytes as they were, one after the other, and an index.

NAME.index begins with one line of JSON (format, classes, images, width of the longest file name) and goes on with a
record for each image: where its bytes are in NAME.pack, their CRC-32, its class and its file name. The index is
digested; of it every process maps the same memory. Images are read by position instead: a mapped file that is cut
short or on a failing disk kills the process that looks at it, where a read reports an error.
"""

import json
import os
import weakref
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from intl_bench.core import files
from intl_bench.core.errors import InputError, from_os_error

_FORMAT = "intl-bench pack 1"
_AGAIN = "restore it from a copy, or remove it and run `intl-bench data pack` again"


def _record(name_bytes: int) -> np.dtype[Any]:
    return np.dtype(
        [("offset", "<u8"), ("size", "<u8"), ("crc", "<u4"), ("label", "<u4"), ("name", f"S{max(1, name_bytes)}")]
    )


class Pack:
    """A packed split, open for random access.

    Attributes:
        path: NAME.pack.
        sha256: of the index, which holds a checksum of every image.
        class_names: the name of each label.
        images: (n,) records with the fields offset, size, crc, label and name (of the file, below the split's folder).

    Raises:
        InputError: a file is missing, was cut short, or is not what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path, index = path, index_of(path)
        for file in (path, index):
            if not file.is_file():
                raise InputError(f"{file}: not there; expected {path.name} and {index.name} of `intl-bench data pack`")
        try:
            self.sha256 = files.verify(index)
        except InputError as error:
            if isinstance(error.__cause__, OSError):  # it could not be read at all
                raise
            raise InputError(f"{index}: not the bytes that were written; {_AGAIN}") from error
        try:
            with index.open("rb") as stream:
                header = json.loads(stream.readline())
                start = stream.tell()
            record, count = _record(header["name_bytes"]), header["images"]
            if header["format"] != _FORMAT or index.stat().st_size != start + count * record.itemsize:
                raise ValueError("another version or another size")
            self.class_names: list[str] = header["classes"]
            self.images = np.memmap(index, record, "r", start, (count,)).view(np.ndarray)
        except OSError as error:
            raise from_os_error(error, f"cannot read {index}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{index}: not an index of this version ({error}); {_AGAIN}") from error
        size, expected = path.stat().st_size, int(self.images[-1]["offset"] + self.images[-1]["size"])
        if size != expected:
            raise InputError(f"{path}: {size} bytes, expected {expected}: it was cut short or replaced; {_AGAIN}")
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise from_os_error(error, f"cannot read {path}") from error
        weakref.finalize(self, os.close, self._handle)

    def __reduce__(self) -> tuple[type["Pack"], tuple[Path]]:
        return Pack, (self.path,)  # another process opens the files itself

    def read(self, row: int) -> bytes:
        """The bytes of the image file in a record.

        Raises:
            InputError: they cannot be read or are not the ones that were packed.
        """
        offset, size, crc, _, name = self.images[row].item()
        try:
            content = os.pread(self._handle, size, offset)
        except OSError as error:
            raise from_os_error(error, f"cannot read {self.path}") from error
        if len(content) != size or zlib.crc32(content) != crc:
            raise InputError(f"{self.path}: the bytes of {os.fsdecode(name)} are not the ones packed; {_AGAIN}")
        return content


def index_of(path: Path) -> Path:
    """The index of a packed split's NAME.pack."""
    return path.with_suffix(".index")


def write(
    path: Path, contents: Iterable[bytes], names: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> None:
    """Writes NAME.pack and then, as the sign that it is complete, NAME.index.

    Args:
        contents: the bytes of each image file, asked for one at a time.
        names: (n,) bytes, the name of each.
        labels: (n,) integers, the class of each.

    Raises:
        ResourceError: the disk is full.
        InputError: the files cannot be written.
    """
    images = np.zeros(len(names), _record(names.dtype.itemsize))
    images["name"], images["label"] = names, labels

    def fill(stream: IO[bytes]) -> None:
        offset = 0
        for row, content in zip(images, contents, strict=True):
            stream.write(content)
            row["offset"], row["size"], row["crc"] = offset, len(content), zlib.crc32(content)
            offset += len(content)

    header = {
        "format": _FORMAT,
        "images": len(images),
        "name_bytes": images.dtype["name"].itemsize,
        "classes": list(class_names),
    }
    files.write_stream(path, fill)
    line = json.dumps(header).encode() + b"\n"
    files.write_digested(index_of(path), lambda stream: (stream.write(line), stream.write(images.data)))
