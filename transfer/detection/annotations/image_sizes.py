"""Check that the image files exist and have the annotated sizes. Only the headers of the files are read."""

import errno
import os
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from intl_bench.core import inputs
from intl_bench.core.errors import InputError, from_os_error
from pretrain.images.decode import check_size, open_image

_HEADER_BYTES = 8192  # enough for the size in most JPEG files
_THREADS = 16
_PART = 128 * _THREADS  # number of files between two measurements of the speed
_SLOW = 1e-4  # seconds per file; above this, several threads read
_EXIF_ORIENTATION = 0x0112
# The markers of JPEG segments that hold the size of the image ("start of frame").
_FRAME_MARKERS = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))


def image_size(path: str) -> tuple[int, int]:
    """Read the width and height of an image file in pixels, with its EXIF orientation applied.

    Raises:
        InputError: the file does not exist, is not a regular file or is not an image.
    """
    try:
        with inputs.open_file(path, buffered=False) as stream:
            header = stream.read(_HEADER_BYTES)
    except InputError:
        raise
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise InputError(
                f"{path}: no such file; expected the image file of an annotation; add the file, or remove the "
                "annotation"
            ) from error
        raise from_os_error(error, f"cannot read {path}") from error
    except ValueError as error:  # a zero byte, or a character that a file name cannot have
        raise InputError(f"{path!r}: not a valid file name ({error}); correct it") from error
    if not header:
        raise InputError(f"{path}: the file is empty; expected an image; restore it")
    width, height = _jpeg_size(header) or _pillow_size(path)
    try:
        check_size(width, height)
    except ValueError as error:
        raise InputError(f"{path}: {error}; use a smaller image") from error
    return width, height


def _jpeg_size(header: bytes) -> tuple[int, int] | None:
    """Read width and height from the first bytes of a JPEG file.

    Returns:
        None if the size cannot be read from these bytes, or if the file may have an orientation.
    """
    if header[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(header) and header[at] == 0xFF:
        marker, length = header[at + 1], header[at + 2] << 8 | header[at + 3]
        if marker in _FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", header, at + 5)
            return (width, height) if height and width else None
        if marker == 0xE1:  # application data 1: EXIF or XMP, which may hold an orientation
            segment = header[at + 4 : at + 2 + length]
            if at + 2 + length > len(header) or segment.startswith(b"Exif") or b"rientation" in segment:
                return None
        if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9:
            return None
        at += 2 + length
    return None


def _pillow_size(path: str) -> tuple[int, int]:
    """Read width and height with Pillow, for all files that `_jpeg_size` cannot read."""
    try:
        with inputs.open_file(path) as stream, open_image(stream) as image:
            width, height = image.size
            # Pillow itself turns TIFF files, and their size.
            rotated = image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds of errors if the bytes are damaged
        raise InputError(f"{path}: not a readable image ({' '.join(str(error).split())}); restore it") from error
    return (height, width) if rotated else (width, height)


def check_image_sizes(
    annotations: Path, folder: Path, ids: Sequence[object], names: list[str], sizes: np.ndarray
) -> None:
    """Compare the size of every image file with the annotated one.

    Args:
        annotations: the annotation file, for messages.
        folder: the folder that `names` are relative to.
        ids: n ids of the images, for messages.
        names: n file names.
        sizes: (n, 2), annotated width and height.

    Raises:
        InputError: a file is missing, unreadable or of another size. The message names the first such image.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected the images of {annotations}; set data.root")

    def check_files(indices: range) -> None:
        for i in indices:
            width, height = image_size(f"{folder}{os.sep}{names[i]}")
            if (width, height) != expected[i]:
                raise InputError(
                    f"{annotations}: image {ids[i]!r}: width x height {expected[i][0]} x {expected[i][1]}; expected "
                    f"{width} x {height}, the size of {folder / names[i]} with its EXIF orientation applied; correct "
                    "the annotation, or restore the file"
                )

    expected, files, step = list(map(tuple, sizes.tolist())), range(len(names)), _PART
    with ThreadPoolExecutor(_THREADS) as pool:
        while files:
            part, files = files[:_PART], files[_PART:]
            start = time.perf_counter()
            for _ in pool.map(check_files, (part[i : i + step] for i in range(0, len(part), step))):
                continue
            # A network disk answers many requests at a time. With a local disk the threads only wait for each other.
            slow = (time.perf_counter() - start) / len(part) > _SLOW
            step = _PART // _THREADS if slow else _PART
