"""Open and decode image files: the only place that calls a decoder.

The pixels are those of Pillow, bit for bit, except for the modes that `rgb` names. If simplejpeg is installed,
libjpeg-turbo decodes JPEG files directly.
"""

import functools
import importlib
import io
from types import ModuleType
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from pretrain.images.rgb import to_rgb


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
LARGEST = 178_956_970  # pixels of an image by default, twice the number at which Pillow warns
Image.MAX_IMAGE_PIXELS = None  # `check_size` refuses large images, with a limit that can be raised
_EXIF_ORIENTATION = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_LAYOUT = {"bits": 258, "photometric": 262, "sample format": 339, "extra samples": 338}  # tags


class TooManyPixelsError(ValueError):
    """Error for an image that is too large to be decoded.

    Attributes:
        pixels: number of its pixels.
    """

    def __init__(self, width: int, height: int, most: int) -> None:
        super().__init__(f"{width} x {height} = {width * height} pixels; expected at most {most} pixels")
        self.pixels = width * height


def open_image(stream: BinaryIO, max_pixels: int = LARGEST) -> Image.Image:
    """Open an image. Its pixels are decoded when they are used.

    Raises:
        TooManyPixelsError: there are more than `max_pixels`.
        Exception: any error that Pillow raises for bytes that it cannot read; another format.
    """
    try:
        image = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError as error:  # its message has only the address of `stream`
        raise UnidentifiedImageError(_reason(stream) or f"expected {', '.join(FORMATS)}") from error
    check_size(*image.size, max_pixels)
    return image


def _reason(stream: BinaryIO) -> str | None:
    """Return why Pillow cannot read an image of one of the formats; None for all other bytes."""
    stream.seek(0)
    prefix = stream.read(16)
    for form in FORMATS:
        reader, accepts = Image.OPEN[form]
        if accepts is None or accepts(prefix) is not True:
            continue
        stream.seek(0)
        try:
            reader(stream, "").close()
        except Exception as error:  # the decoders raise many types of errors for damaged bytes
            return f"{form}: {' '.join(str(error).split())}{_layout(stream, prefix) if form == 'TIFF' else ''}"
    return None


def _layout(stream: BinaryIO, prefix: bytes) -> str:
    """Describe the pixels of a TIFF file."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(prefix[: 16 if 43 in prefix[2:4] else 8])
        stream.seek(tags.next)
        tags.load(stream)
    except Exception:  # damaged bytes
        return ""
    return "".join(f", {name} {tags[tag]}" for name, tag in _TIFF_LAYOUT.items() if tag in tags)


def check_size(width: int, height: int, max_pixels: int = LARGEST) -> None:
    """Check the size of an image before its pixels take memory.

    Raises:
        TooManyPixelsError: there are more than `max_pixels`.
    """
    if width * height > max_pixels:
        raise TooManyPixelsError(width, height, max_pixels)


def decode(content: bytes, max_pixels: int = LARGEST) -> np.ndarray:
    """Decode the bytes of an image file to pixels, (H, W, 3) uint8 RGB; EXIF orientation is not applied.

    Raises:
        TooManyPixelsError: there are more than `max_pixels`.
        Exception: any error that Pillow raises for bytes that it cannot decode; the errors of `rgb.to_rgb`.
    """
    pixels = _by_turbo(content, max_pixels) if turbo is not None and content.startswith(b"\xff\xd8\xff") else None
    if pixels is not None:
        return pixels
    return np.array(decode_image(content, max_pixels))


def decode_image(content: bytes, max_pixels: int = LARGEST, *, upright: bool = False) -> Image.Image:
    """Decode the bytes of an image file to an RGB image of Pillow; the errors are those of `decode`.

    Args:
        upright: whether to apply the EXIF orientation. Pillow always applies that of a TIFF file.
    """
    with open_image(io.BytesIO(content), max_pixels) as image:
        pixels = to_rgb(image, content, functools.partial(open_image, max_pixels=max_pixels))
        pixels.load()
        # The orientation is read last: Pillow forgets that of a TIFF file when it has applied it.
        transpose = _TRANSPOSES.get(orientation(image)) if upright else None
        return pixels if transpose is None else pixels.transpose(transpose)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image; 1 if there is none or its EXIF is damaged, as in Detectron2."""
    if image.format == "PNG":
        image.load()  # the EXIF block may come after the pixels, which must not be damaged
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # Pillow raises many kinds of errors for damaged bytes
        return 1


def _by_turbo(content: bytes, max_pixels: int) -> np.ndarray | None:
    """Decode an intact JPEG with libjpeg-turbo; return None if Pillow has to decode the bytes."""
    assert turbo is not None
    try:
        height, width, colors, _ = turbo.decode_jpeg_header(content)
        if height * width > max_pixels or colors not in _SAME_AS_PILLOW:
            return None
        pixels: np.ndarray = turbo.decode_jpeg(content, colorspace="RGB", fastdct=False, fastupsample=False)
        return pixels
    except ValueError:  # any warning of libjpeg: Pillow repairs some damaged files and rejects others
        return None
