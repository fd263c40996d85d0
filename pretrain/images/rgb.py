"""One rule for the colors of an image file: RGB with 8 bits, and no value cut off or read in another meaning.

Files with 8 bits give the pixels of torchvision's `pil_loader` and of Detectron2, which are those of Pillow's
`convert("RGB")`, because published results depend on them: transparency and color profiles are ignored. Where this
conversion cuts values off or misreads them, the pixels are those that the file format defines:

- 16 bits (gray, RGB or CMYK, with or without transparency): v / 65535 x 255, rounded to nearest. No value lies halfway.
  PNG's sBIT is ignored. TIFF with 12 bits: v / 4095 x 255.
- Gray TIFF with 16 bits and `WhiteIsZero`: 0 is white.
- JPEG with four colors: 255 is no ink with the marker of Adobe (APP14), and 0 without it (ITU-T T.872, section 6.1).
- TIFF with an 8-bit palette, premultiplied gray, uncompressed YCbCr of half the resolution, or uncompressed planes of
  16 bits.

Signed, 32-bit and float values have no defined white. They are refused by the name of their mode.
"""

import functools
import io
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImagePalette, TiffImagePlugin

_DEEP = re.compile(r"(RGB[AaX]?|CMYK|LA);16([BLN])")  # raw modes of 16 bits, of which Pillow keeps the high bytes
_OTHER_BYTES = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_PART = 2**18  # pixels
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANES, _COLORS, _FORMAT, _SUBSAMPLING = 258, 262, 277, 284, 320, 339, 530


def to_rgb(image: Any, content: bytes, reopen: Callable[[io.BytesIO], Any]) -> Image.Image:
    """Convert an image that was just opened to RGB with 8 bits.

    Args:
        image: the opened image, an `ImageFile` of Pillow, whose pixels are not decoded yet. They are afterwards.
        content: the bytes of its file.
        reopen: opens these bytes again; Pillow reads the high and the low bytes of 16-bit colors one after the other.

    Raises:
        ValueError: the mode is refused.
        Exception: any error that Pillow raises for bytes that it cannot decode.
    """
    raw, mode = _raw_mode(image), image.mode
    tags: Any = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    _refuse_undefined(image, raw, tags)
    if mode == "I" or mode.startswith("I;16"):
        top, gray = 4095 if raw == "I;12" else 65535, np.asarray(image)
        if tags.get(_PHOTOMETRIC) == 0:
            gray = top - gray
        pixels = _in_parts(gray.reshape(-1, 1).shape, lambda part: _to_8_bits(gray.reshape(-1, 1)[part], top))
        return Image.fromarray(pixels.reshape(gray.shape)).convert("RGB")
    if image.mode != "CMYK" and _has_deep_planes(tags):
        return _from_16_bits(image, reopen(io.BytesIO(content)), {"II": "L", "MM": "B"}[tags.prefix.decode()])
    if found := _DEEP.fullmatch(raw):
        return _from_16_bits(image, reopen(io.BytesIO(content)), found[2])
    if image.format == "JPEG" and mode == "CMYK" and "adobe" not in image.info:
        return ImageChops.invert(image).convert("RGB")  # Pillow inverts all files, as if Adobe had written them
    if mode == "La":
        return image.convert("LA").convert("RGB")
    if mode == "YCbCr" and tags.get(_SUBSAMPLING, (2, 2)) != (1, 1):
        # Pillow's own reader of uncompressed files takes three values for each pixel. libtiff counts them.
        image._mode, image.use_load_libtiff = "RGB", True
        place, options = (0, 0, *image._tile_size), ("RGBX", False, tags.offset)
        image.tile = [image.tile[0]._replace(codec_name="libtiff", extents=place, offset=0, args=options)]
    if mode in ("P", "PA") and 0 < max(tags.get(_COLORS, (0,))) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[_COLORS]))  # Pillow drops the low bytes
    image.info.pop("transparency", None)  # for a palette, it causes a warning and nothing else
    return image if image.mode == "RGB" else image.convert("RGB")


def describe(image: Any) -> str:
    """Say which files an opened image is one of, if Pillow's own conversion would read it in another way; else ""."""
    raw, mode = _raw_mode(image), image.mode
    tags: Any = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if mode == "I" or mode.startswith("I;16") or _has_deep_planes(tags) or _DEEP.fullmatch(raw):
        bits = 12 if raw == "I;12" else 16
        return f"images of {bits} bits for each color, scaled to 8 bits (torchvision cuts values off)"
    if image.format == "JPEG" and mode == "CMYK" and "adobe" not in image.info:
        return "CMYK images without Adobe's marker, in which 0 is no ink (torchvision inverts them)"
    palette = mode in ("P", "PA") and 0 < max(tags.get(_COLORS, (0,))) < 256
    if mode == "La" or palette or (mode == "YCbCr" and tags.get(_SUBSAMPLING, (2, 2)) != (1, 1)):
        return "TIFF images that are read as the format defines (torchvision misreads or refuses them)"
    return ""


def _refuse_undefined(image: Any, raw: str, tags: Any) -> None:
    reason = None
    if image.mode == "F":
        reason = "floats have no defined white"
    elif image.mode == "I" and image.format != "PPM":
        kind = "signed 16-bit integers" if raw.startswith("I;16") else "32-bit integers"
        reason = f"{kind} have no defined white"
    elif tags.get(_FORMAT, (1,))[0] == 2:
        reason = "signed 8-bit integers have no defined white"
    elif _has_deep_planes(tags) and (image.tile[0].codec_name != "raw" or image.mode == "CMYK"):
        reason = "16-bit planes are not supported if they are compressed or CMYK"
    if reason:
        raise ValueError(f"mode {image.mode}: {reason}; expected 8 or 16 bits for each color; save it as PNG")


def _has_deep_planes(tags: Any) -> bool:
    return bool(tags.get(_PLANES) == 2 and tags.get(_SAMPLES, 1) > 1 and tags.get(_BITS, (8,))[0] == 16)


def _from_16_bits(high: Any, low: Any, order: str) -> Image.Image:
    """Convert 16-bit colors to RGB.

    Args:
        high, low: the same file, opened twice, to read the high and the low bytes with.
        order: order of the bytes as in Pillow's raw modes: "B", "L" or "N" for the native one.
    """
    raw = _raw_mode(high)
    if raw.startswith("LA"):
        _set_raw_mode(high, lambda _: "RGBA")  # the four bytes of gray and transparency
        both = np.asarray(high).reshape(-1, 4)
        bytes_of = both[:, :1], both[:, 1:2]
    else:
        for image, byte in ((high, order), (low, _OTHER_BYTES[order])):
            _set_raw_mode(image, functools.partial(_with_byte, byte))
        bytes_of = np.asarray(high).reshape(-1, len(high.mode)), np.asarray(low).reshape(-1, len(low.mode))

    def scale(part: slice) -> np.ndarray:
        values = 256 * bytes_of[0][part].astype(np.uint32) + bytes_of[1][part]
        if raw.startswith("RGBa"):  # the colors are multiplied by their opacity
            opacity = np.maximum(values[:, 3:], 1)
            values = np.minimum((values * 65535 + opacity // 2) // opacity, 65535)
        return _to_8_bits(values, 65535)

    pixels = _in_parts(bytes_of[0].shape, scale)
    if high.mode == "CMYK":
        return Image.frombytes("CMYK", high.size, pixels.tobytes()).convert("RGB")
    colors = np.broadcast_to(pixels[:, :3], (len(pixels), 3))
    return Image.fromarray(np.ascontiguousarray(colors.reshape(high.height, high.width, 3)))


def _with_byte(byte: str, raw: str) -> str:
    """Return the raw mode whose result is one byte of each 16-bit value, without the division by the opacity."""
    return f"{raw.partition(';')[0].replace('a', 'A')};16{byte}"


def _in_parts(shape: tuple[int, ...], function: Callable[[slice], np.ndarray]) -> np.ndarray:
    """Fill an array of bytes part by part: the intermediate results of a large image would fill the memory."""
    pixels = np.empty(shape, np.uint8)
    for first in range(0, len(pixels), _PART):
        pixels[first : first + _PART] = function(slice(first, first + _PART))
    return pixels


def _raw_mode(image: Any) -> str:
    """Return Pillow's name for the layout of the values in the file, such as "RGB;16B"."""
    args = image.tile[0].args if image.tile else None
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _set_raw_mode(image: Any, change: Callable[[str], str]) -> None:
    image.tile = [
        tile._replace(args=change(tile.args) if isinstance(tile.args, str) else (change(tile.args[0]), *tile.args[1:]))
        for tile in image.tile
    ]


def _to_8_bits(values: np.ndarray, top: int) -> np.ndarray:
    """Scale 0 ... `top`, an odd number, to 0 ... 255, rounded to nearest."""
    return (values.astype(np.uint32) * 255 + top // 2) // top
