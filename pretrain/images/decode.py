"""Image files to pixels: bit for bit Pillow's, and by libjpeg-turbo directly where simplejpeg is installed."""

import importlib
import io
from types import ModuleType

import numpy as np
from PIL import Image


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


turbo = _optional("simplejpeg")  # of the optional extra `fast`; None means that Pillow decodes everything
# What Pillow leaves to libjpeg as a whole. It converts CMYK by itself, with other rounding.
_SAME_AS_PILLOW = ("YCbCr", "RGB", "Gray")


def decode(content: bytes) -> np.ndarray:
    """The pixels of an image file's bytes, (H, W, 3) uint8 RGB; EXIF orientation is not applied.

    Raises:
        Exception: what Pillow raises for bytes that it cannot decode, of whatever kind.
    """
    pixels = _by_turbo(content) if turbo is not None and content.startswith(b"\xff\xd8\xff") else None
    if pixels is not None:
        return pixels
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _by_turbo(content: bytes) -> np.ndarray | None:
    """The pixels of a flawless JPEG; None where Pillow has to say what becomes of it."""
    assert turbo is not None
    try:
        height, width, colors, _ = turbo.decode_jpeg_header(content)
        too_large = Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS
        if too_large or colors not in _SAME_AS_PILLOW:
            return None
        pixels: np.ndarray = turbo.decode_jpeg(content, colorspace="RGB", fastdct=False, fastupsample=False)
        return pixels
    except ValueError:  # every warning of libjpeg: damaged bytes, of which Pillow mends some and refuses others
        return None
