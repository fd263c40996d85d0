"""Decode all images of a source in several processes, and tell what is unusual about each."""

import contextlib
import functools
import hashlib
import io
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import UnidentifiedImageError

from intl_bench.core import machine
from intl_bench.core.progress import Progress
from pretrain.images.data import FileSource, ImageSource
from pretrain.images.decode import TooManyPixelsError, decode, open_image, orientation
from pretrain.images.loader import iterate
from pretrain.images.rgb import describe

_PART = 32  # images of a step of a process
_FEW = 256  # images for which starting processes takes longer than it saves
_MOST = 16  # processes
_STRIDE = 16  # pixels
_LONGEST = 200  # characters of a reason
BLANK = "images of a single color"
ORIENTED = "images with an EXIF orientation"
GRAY = "gray images, which get three equal channels"
TRANSPARENT = "images with transparency, which is dropped; the colors below it stay"
CMYK = "images in CMYK, read without a color profile"
SEVERAL = "files of several pictures, of which the first one is read"


class Examined(NamedTuple):
    """An image that was decoded.

    Attributes:
        width, height: 0 if it could not be decoded.
        digest: of the size and the pixels; b"" if it could not be decoded.
        fault: why it could not be decoded, or "".
        traits: what is unusual about it, as texts for the heading of a list.
    """

    width: int
    height: int
    digest: bytes
    fault: str
    traits: tuple[str, ...]


def examine(source: ImageSource, progress: Progress) -> Iterator[Examined]:
    """Decode the images of a source, in order. A fault of an image is a part of the result, never an error.

    Raises:
        ResourceError: a process died.
    """
    steps = range(math.ceil(len(source) / _PART))
    workers = min(_MOST, machine.cores()) if isinstance(source, FileSource) and len(source) > _FEW else 0
    for part in iterate(functools.partial(_examine_part, source), steps, workers, False):
        for one in part:
            progress.step()
            yield one


def _examine_part(source: ImageSource, step: int) -> list[Examined]:
    return [_examine(source, index) for index in range(len(source))[step * _PART : (step + 1) * _PART]]


def _examine(source: ImageSource, index: int) -> Examined:
    traits: list[str] = []
    if isinstance(source, FileSource):
        try:
            content = source.content(index)
            if not content:
                return _faulty("the file is empty")
            pixels = decode(content, source.max_pixels)
        except UnidentifiedImageError as error:
            return _faulty(f"not an image: {error}")
        except TooManyPixelsError as error:
            return _faulty(f"{error}; set data.max_pixels={error.pixels} if you trust the file")
        except MemoryError:
            raise
        except Exception as error:  # the decoders of Pillow raise many types of errors for damaged bytes
            return _faulty(" ".join(str(error).split()) or type(error).__name__)
        with contextlib.suppress(Exception):  # damaged metadata of an image whose pixels are sound
            traits = _find_traits(content, source.max_pixels)
    else:
        pixels = source.image(index)
    if _is_blank(pixels[::_STRIDE, ::_STRIDE]) and _is_blank(pixels):  # the few pixels tell it of most images
        traits.append(BLANK)
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{width} {height} ".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return Examined(width, height, digest.digest()[:16], "", tuple(traits))


def _is_blank(pixels: np.ndarray) -> bool:
    return bool((pixels == pixels[0, 0]).all())


def _faulty(reason: str) -> Examined:
    return Examined(0, 0, b"", reason[:_LONGEST], ())


def _find_traits(content: bytes, max_pixels: int) -> list[str]:
    """Return what is unusual about the colors, the orientation and the number of pictures of a file."""
    with open_image(io.BytesIO(content), max_pixels) as image:
        traits = [rule] if (rule := describe(image)) else _describe_mode(image)
        if orientation(image) != 1:
            traits.append(ORIENTED)
        if getattr(image, "is_animated", False):
            traits.append(SEVERAL)
    return traits


def _describe_mode(image: Any) -> list[str]:
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        return [TRANSPARENT]
    return [GRAY] if image.mode in ("1", "L") else [CMYK] if image.mode == "CMYK" else []
