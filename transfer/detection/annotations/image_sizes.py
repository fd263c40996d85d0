"""Do the image files exist, and are they as large as their annotations say? From their headers, without decoding."""

import errno
import os
import stat
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from intl_bench.core.errors import InputError, from_os_error

_HEADER = 8192  # bytes in which the size stands in most JPEG files
_THREADS = 16
_PART = 128 * _THREADS  # files between two looks at the clock
_SLOW = 1e-4  # seconds a file
_ORIENTATION = 0x0112
_SIZED = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))


def image_size(path: str) -> tuple[int, int]:
    """Width and height of an image file in pixels, after its EXIF orientation.

    Raises:
        InputError: there is no such regular file, or it is no image.
    """
    try:
        # A named pipe would wait for a writer for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise InputError(f"{path}: not a regular file; expected an image file")
            header = os.read(handle, _HEADER)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise InputError(
                f"{path}: no such file; the annotations list it: put it there, or take its entry out of them"
            ) from error
        raise from_os_error(error, f"cannot read {path}") from error
    except ValueError as error:  # a zero byte, or a character that no file name can have
        raise InputError(f"{path!r}: not a file name ({error})") from error
    if not header:
        raise InputError(f"{path}: the file is empty; expected an image: restore it")
    return _jpeg_size(header) or _pillow_size(path)


def _jpeg_size(header: bytes) -> tuple[int, int] | None:
    """Width and height from a JPEG file's first bytes; None where that takes more than these plain rules."""
    if header[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(header) and header[at] == 0xFF:
        kind, length = header[at + 1], header[at + 2] << 8 | header[at + 3]
        if kind in _SIZED:
            height, width = struct.unpack_from(">HH", header, at + 5)
            return (width, height) if height and width else None
        # Application data 1 may hold an orientation, in EXIF or XMP.
        if kind == 0xE1 and (at + 2 + length > len(header) or not _plain_xmp(header[at + 4 : at + 2 + length])):
            return None
        if not 0xC0 <= kind <= 0xFE or 0xD0 <= kind <= 0xD9:
            return None
        at += 2 + length
    return None


def _plain_xmp(segment: bytes) -> bool:
    return not segment.startswith(b"Exif") and b"rientation" not in segment


def _pillow_size(path: str) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds on damaged bytes
        raise InputError(f"{path}: not a readable image ({' '.join(str(error).split())}); restore it") from error
    return (height, width) if turned else (width, height)


def check(annotations: Path, folder: Path, ids: Sequence[object], names: list[str], sizes: np.ndarray) -> None:
    """Compares every image file with its annotated width and height, (n, 2).

    Args:
        annotations: the annotation file, for messages.
        ids: of the images, for messages.

    Raises:
        InputError: a file is missing, unreadable or of another size; the first of them in the annotations' order.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected the images of {annotations}: set the data's root to it")

    def check_some(some: range) -> None:
        for i in some:
            width, height = image_size(f"{folder}{os.sep}{names[i]}")
            if (width, height) != expected[i]:
                raise InputError(
                    f"{annotations}: image {ids[i]!r}: width x height {expected[i][0]} x {expected[i][1]}; the file "
                    f"{folder / names[i]} is {width} x {height} (its EXIF orientation applied): correct the entry "
                    "or restore the file"
                )

    expected, files, step = list(map(tuple, sizes.tolist())), range(len(names)), _PART
    with ThreadPoolExecutor(_THREADS) as pool:
        while files:
            part, files = files[:_PART], files[_PART:]
            start = time.perf_counter()
            for _ in pool.map(check_some, (part[i : i + step] for i in range(0, len(part), step))):
                continue
            # A disk that is far away takes many requests at once. With a near one threads only wait for each other.
            slow = (time.perf_counter() - start) / len(part) > _SLOW
            step = _PART // _THREADS if slow else _PART
