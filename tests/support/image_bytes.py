"""Image files made by hand, with layouts that Pillow cannot write."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png(values: np.ndarray, *, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """Write a PNG with 16 bits: (H, W, C) uint16 with C = 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA.

    Args:
        interlaced: store it in the order of Adam7.
        extra: chunks between the header and the pixels.
    """
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = []
    for top, left, down, right in passes if interlaced else [(0, 0, 1, 1)]:
        part = values[top::down, left::right]
        rows += [b"\0" + row.astype(">u2").tobytes() for row in part if row.size]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, int(interlaced))
    pixels = zlib.compress(b"".join(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    """Write a chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def pnm(values: np.ndarray, largest: int) -> bytes:
    """Write a binary PGM (H, W, 1) or PPM (H, W, 3) file with values up to `largest`."""
    height, width, channels = values.shape
    head = f"P{5 if channels == 1 else 6}\n{width} {height}\n{largest}\n"
    return head.encode() + values.astype(">u2" if largest > 255 else "u1").tobytes()


def tiff(
    strips: Sequence[bytes],
    size: tuple[int, int],
    bits: Sequence[int],
    photometric: int,
    *,
    order: str = "<",
    compressed: bool = False,
    **more: Any,
) -> bytes:
    """Write a TIFF file of one strip, or of one strip for each plane.

    Args:
        size: width and height.
        order: "<" for little endian, ">" for big endian.
        compressed: by deflate.
        more: further tags: numbers by "tNNN".
    """
    width, height = size
    strips = [zlib.compress(strip) for strip in strips] if compressed else list(strips)
    places = [8 + sum(len(other) for other in strips[:index]) for index in range(len(strips))]
    tags: dict[int, tuple[str, Sequence[int]]] = {
        **{256: ("I", [width]), 257: ("I", [height]), 258: ("H", bits), 259: ("H", [8 if compressed else 1])},
        **{262: ("H", [photometric]), 273: ("I", places), 277: ("H", [len(bits)]), 278: ("I", [height])},
        **{279: ("I", [len(strip) for strip in strips]), 284: ("H", [2 if len(strips) > 1 else 1])},
        **{int(name[1:]): ("H", values) for name, values in more.items()},
    }
    body = b"".join(strips)
    body += b"\0" * (len(body) % 2)
    entries, long_values = struct.pack(f"{order}H", len(tags)), b""
    after = 8 + len(body) + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(content) > 4:
            place, long_values = struct.pack(f"{order}I", after + len(long_values)), long_values + content
        else:
            place = content.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + place
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    return start + body + entries + bytes(4) + long_values


def without_adobe_marker(jpeg: bytes) -> bytes:
    """Remove the APP14 segment."""
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]
