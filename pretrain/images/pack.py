"""Pack of image files: the unchanged bytes of all images of a split in one large file, and an index.

NAME.index begins with one line of JSON (format, classes, number of images, length of the longest file name in bytes).
One record per image follows: the position of its bytes in NAME.pack, their CRC-32, the class and the file name. The
index ends with its SHA-256. All processes map the index into memory and share its pages. Images are read by position
instead of mapped: an access to a mapped file that is truncated or on a failing disk kills the process, but a read
reports an error.
"""

import json
import os
import weakref
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from intl_bench.core import files, seals
from intl_bench.core.errors import InputError, from_os_error

_FORMAT = "intl-bench pack 2"
# Bytes after the records: format 1 had its digest in a file NAME.index.sha256.
_AFTER = {"intl-bench pack 1": 0, _FORMAT: seals.LENGTH}
_REMEDY = "restore it from a copy, or remove it and run `intl-bench data pack` again"


def _record(name_bytes: int) -> np.dtype[Any]:
    return np.dtype(
        [("offset", "<u8"), ("size", "<u8"), ("crc", "<u4"), ("label", "<u4"), ("name", f"S{max(1, name_bytes)}")]
    )


class Pack:
    """A packed split, open for random access.

    Attributes:
        path: NAME.pack.
        sha256: SHA-256 of the index, which holds a checksum of every image.
        class_names: the name of each label.
        images: (n,) records with the fields offset, size, crc, label and name (relative to the folder of the split).

    Raises:
        InputError: a file is missing, truncated or changed.
    """

    def __init__(self, path: Path) -> None:
        self.path, index = path, index_of(path)
        for file in (path, index):
            if not file.is_file():
                raise InputError(f"{file}: missing; expected {path.name} and {index.name} of `intl-bench data pack`")
        try:
            self.sha256 = files.verify(index)
        except InputError as error:
            if isinstance(error.__cause__, OSError):  # the file is unreadable, not changed
                raise
            raise InputError(f"{index}: its bytes have changed since it was written; {_REMEDY}") from error
        try:
            with index.open("rb") as stream:
                header = json.loads(stream.readline())
                start = stream.tell()
            record, count = _record(header["name_bytes"]), header["images"]
            size = start + count * record.itemsize + _AFTER[header["format"]]
            if (
                count < 1
                or index.stat().st_size != size
                or (header["format"] == _FORMAT and not files.has_digest(index))
            ):
                raise ValueError("another version or another size")
            self.class_names: list[str] = header["classes"]
            self.images = np.memmap(index, record, "r", start, (count,)).view(np.ndarray)
        except OSError as error:
            raise from_os_error(error, f"cannot read {index}") from error
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
            raise InputError(f"{index}: not an index of this version ({error}); {_REMEDY}") from error
        size, expected = path.stat().st_size, sum(self.images[-1][["offset", "size"]].item())
        if size != expected:
            raise InputError(f"{path}: {size} bytes, expected {expected}: it was truncated or replaced; {_REMEDY}")
        offsets, sizes, labels = (self.images[field] for field in ("offset", "size", "label"))
        outside = (offsets > size) | (sizes > size - np.minimum(offsets, size)) | (labels >= len(self.class_names))
        if outside.any():
            raise InputError(f"{index}: record {outside.argmax()} is outside {path.name} or its classes; {_REMEDY}")
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise from_os_error(error, f"cannot read {path}") from error
        weakref.finalize(self, os.close, self._handle)

    def __reduce__(self) -> tuple[type["Pack"], tuple[Path]]:
        return Pack, (self.path,)  # a worker process opens the files itself

    def read(self, row: int) -> bytes:
        """Return the bytes of the image file of record `row`.

        Raises:
            InputError: the bytes cannot be read, or they have changed since they were packed.
        """
        offset, size, crc, _, name = self.images[row].item()
        try:
            content = os.pread(self._handle, size, offset)
        except OSError as error:
            raise from_os_error(error, f"cannot read {self.path}") from error
        if len(content) != size or zlib.crc32(content) != crc:
            raise InputError(f"{self.path}: the bytes of {os.fsdecode(name)} have changed; {_REMEDY}")
        return content


def index_of(path: Path) -> Path:
    """Return the path of the index of `path`, NAME.pack."""
    return path.with_suffix(".index")


def write(
    path: Path, contents: Iterable[bytes], names: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> None:
    """Write NAME.pack, and then NAME.index, whose presence shows that the pack is complete.

    Args:
        path: NAME.pack.
        contents: the bytes of each image file; read one at a time.
        names: (n,) bytes, the name of each image file relative to the folder of the split.
        labels: (n,) integers, the class of each image.
        class_names: the name of each label.

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
