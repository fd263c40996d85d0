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
from intl_bench.core.inputs import shorten
from pretrain.images.decode import LARGEST, TooManyPixelsError, check_size, open_image, orientation
from transfer.detection.annotations.faults import Faults
from transfer.detection.annotations.file_names import Spellings

_HEADER_BYTES = 8192  # enough for the size in most JPEG files
_THREADS = 16
_PART = 128 * _THREADS  # number of files between two measurements of the speed
_SLOW = 1e-4  # seconds per file; above this, several threads read
# The markers of JPEG segments that hold the size of the image ("start of frame").
_FRAME_MARKERS = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))


class MissingFileError(InputError):
    """An image file does not exist."""


def image_size(path: str, max_pixels: int = LARGEST) -> tuple[int, int]:
    """Read the width and height of an image file in pixels, with its EXIF orientation applied.

    Raises:
        InputError: the file does not exist (`MissingFileError`), is not a regular file or is not an image, or has more
            than `max_pixels`.
    """
    try:
        with inputs.open_file(path, buffered=False) as stream:
            header = stream.read(_HEADER_BYTES)
    except InputError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise MissingFileError(
                f"{path}: no such file; expected the image file of an annotation; add the file, or remove the "
                "annotation"
            ) from error
        raise from_os_error(error, f"cannot read {path}") from error
    except ValueError as error:  # a zero byte, or a character that a file name cannot have
        raise InputError(f"{path!r}: not a valid file name ({error}); correct it") from error
    if not header:
        raise InputError(f"{path}: the file is empty; expected an image; restore it")
    try:
        width, height = _jpeg_size(header) or _pillow_size(path, max_pixels)
        check_size(width, height, max_pixels)
    except TooManyPixelsError as error:
        raise InputError(f"{path}: {error}; raise data.max_pixels if you trust the file") from error
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


def _pillow_size(path: str, max_pixels: int) -> tuple[int, int]:
    """Read width and height with Pillow, for all files that `_jpeg_size` cannot read."""
    try:
        with inputs.open_file(path) as stream, open_image(stream, max_pixels) as image:
            width, height = image.size
            # Pillow itself turns TIFF files, and their size.
            rotated = image.format != "TIFF" and orientation(image) in (5, 6, 7, 8)
    except (MemoryError, TooManyPixelsError):
        raise
    except Exception as error:  # Pillow's readers raise many kinds of errors if the bytes are damaged
        raise InputError(f"{path}: not a readable image ({' '.join(str(error).split())}); restore it") from error
    return (height, width) if rotated else (width, height)


def check_image_sizes(
    faults: Faults, folder: Path, ids: Sequence[object], names: list[str], sizes: np.ndarray, max_pixels: int
) -> tuple[list[str], np.ndarray]:
    """Compare the size of every image file with the annotated one.

    A name that no file has literally is found in another spelling, if only one file can be meant.

    Args:
        faults: receives files that are missing, unreadable or of another size.
        folder: the folder that `names` are relative to.
        ids: n ids of the images, for messages.
        names: n file names.
        sizes: (n, 2), annotated width and height.
        max_pixels: larger images are faults.

    Returns:
        n names of files, and (n,) bool, whether the file of an image is as annotated.

    Raises:
        ResourceError: a file cannot be read for lack of a right or because of the disk.
    """

    def check_file(index: int, name: str) -> tuple[int, str, str, str] | None:
        """Return index, kind, text and remedy of a fault."""
        try:
            width, height = image_size(f"{folder}{os.sep}{name}", max_pixels)
        except InputError as error:
            text, _, remedy = str(error).rpartition("; ")
            kind = "missing" if isinstance(error, MissingFileError) else remedy
            return index, kind, text or str(error), remedy if text else "correct the name, or restore the file"
        if (width, height) == expected[index]:
            return None
        text = (
            f"image {ids[index]!r}: width x height {expected[index][0]} x {expected[index][1]}; expected "
            f"{width} x {height}, the size of {folder / name} with its EXIF orientation applied"
        )
        return index, "size", text, "correct the annotation, or restore the file"

    def check_files(indices: range) -> list[tuple[int, str, str, str]]:
        return [problem for i in indices if (problem := check_file(i, names[i])) is not None]

    good = np.ones(len(names), bool)
    if not folder.is_dir():
        faults.add("folder", f"{folder}: no such folder; expected the images", "set data.root", [str(folder)])
        return names, ~good
    expected, files, step = list(map(tuple, sizes.tolist())), range(len(names)), _PART
    problems: list[tuple[int, str, str, str]] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        while files:
            part, files = files[:_PART], files[_PART:]
            start = time.perf_counter()
            for found in pool.map(check_files, (part[i : i + step] for i in range(0, len(part), step))):
                problems += found
            # A network disk answers many requests at a time. With a local disk the threads only wait for each other.
            slow = (time.perf_counter() - start) / len(part) > _SLOW
            step = _PART // _THREADS if slow else _PART
    names, spellings = list(names), Spellings(folder)
    for index, kind, text, remedy in problems:
        problem: tuple[int, str, str, str] | None = (index, kind, text, remedy)
        if kind == "missing" and (candidates := spellings.find(names[index])):
            if len(candidates) == 1:
                names[index] = candidates[0]
                problem = check_file(index, names[index])
            else:
                text = f"image {ids[index]!r}: {shorten(names[index])} can mean {' and '.join(map(repr, candidates))}"
                problem = index, "spelling", f"{text}; expected one file", "correct the name"
        if problem is not None:
            good[index] = False
            faults.add(("image file", problem[1]), problem[2], problem[3], [str(ids[index])])
    return names, good
