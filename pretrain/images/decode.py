"""Open and decode image files: the only place that calls a decoder.

The pixels are those of Pillow, bit for bit. If simplejpeg is installed, libjpeg-turbo decodes JPEG files directly.
"""

import importlib
import io
import warnings
from types import ModuleType
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


turbo = _optional("simplejpeg")  # installed by the optional extra `fast`; None: Pillow decodes all files
# Color spaces that Pillow lets libjpeg convert. Pillow converts CMYK itself, with different rounding.
_SAME_AS_PILLOW = ("YCbCr", "RGB", "Gray")

# The formats of image data sets. Pillow also knows formats that start other programs, such as EPS and Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
LARGEST = 178_956_970  # pixels of an image, above which Pillow refuses it; Pillow already warns at half of them
Image.MAX_IMAGE_PIXELS = LARGEST
warnings.simplefilter("error", Image.DecompressionBombWarning)


def open_image(stream: BinaryIO) -> Image.Image:
    """Open an image. Its pixels are decoded when they are used.

    Raises:
        Exception: any error that Pillow raises for bytes that it cannot read; another format; too many pixels.
    """
    try:
        image = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError as error:  # its message has only the address of `stream`
        raise UnidentifiedImageError(f"expected {', '.join(FORMATS)}") from error
    check_size(*image.size)
    return image


def check_size(width: int, height: int) -> None:
    """Check the size of an image before its pixels take memory.

    Raises:
        ValueError: there are more than `LARGEST` pixels.
    """
    if width * height > LARGEST:
        raise ValueError(f"{width} x {height} pixels; expected at most {LARGEST} pixels")


def decode(content: bytes) -> np.ndarray:
    """Decode the bytes of an image file to pixels, (H, W, 3) uint8 RGB; EXIF orientation is not applied.

    Raises:
        Exception: any error that Pillow raises for bytes that it cannot decode.
    """
    pixels = _by_turbo(content) if turbo is not None and content.startswith(b"\xff\xd8\xff") else None
    if pixels is not None:
        return pixels
    with open_image(io.BytesIO(content)) as image:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _by_turbo(content: bytes) -> np.ndarray | None:
    """Decode an intact JPEG with libjpeg-turbo; return None if Pillow has to decode the bytes."""
    assert turbo is not None
    try:
        height, width, colors, _ = turbo.decode_jpeg_header(content)
        if height * width > LARGEST or colors not in _SAME_AS_PILLOW:
            return None
        pixels: np.ndarray = turbo.decode_jpeg(content, colorspace="RGB", fastdct=False, fastupsample=False)
        return pixels
    except ValueError:  # any warning of libjpeg: Pillow repairs some damaged files and rejects others
        return None
