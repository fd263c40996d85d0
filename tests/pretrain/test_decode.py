"""Test that decoding gives the pixels and the errors of Pillow, with simplejpeg and without it."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from pretrain.images import decode as module
from pretrain.images.decode import decode

JPEGS: list[dict[str, Any]] = [
    {"quality": quality, "subsampling": subsampling, "progressive": progressive, **options}
    for quality in (1, 30, 75, 100)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0")
    for progressive in (False, True)
    for options in ({}, {"optimize": True}, {"restart_marker_rows": 1})
]
SIZES = [(1, 1), (1, 17), (7, 5), (8, 8), (16, 200), (33, 47), (100, 75)]


def pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def outcome(function: Callable[[bytes], np.ndarray], content: bytes) -> tuple[Any, ...]:
    """Return the pixels, or the type of the error, and its text unless Pillow knows no format."""
    try:
        pixels = function(content)
    except Exception as error:
        return type(error), "" if isinstance(error, UnidentifiedImageError) else str(error)
    return pixels.shape, pixels.dtype, pixels.tobytes()


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Create smooth colors with noise, so that both chroma and fine detail have an effect."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8))
    smooth = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC), int)
    return Image.fromarray((smooth + random.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def every_kind() -> dict[str, bytes]:
    """Return a small picture in every file format and mode that a data set may contain."""
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers rotate the image by 90 degrees
    rgba = photo(33, 47).convert("RGBA")
    rgba.putalpha(photo(33, 47, 1).convert("L"))
    kinds = {
        "exif": saved(photo(33, 47), exif=exif),
        "gray": saved(photo(33, 47).convert("L")),
        "gray progressive": saved(photo(33, 47).convert("L"), progressive=True),
        "cmyk": saved(photo(33, 47).convert("CMYK")),
        "rgb stored as rgb": saved(photo(33, 47), keep_rgb=True),
        "rest behind the end": saved(photo(33, 47)) + b"rest",
        "two pictures": saved(photo(33, 47), "MPO", save_all=True, append_images=[photo(20, 20)]),
        "png": saved(photo(33, 47), "PNG"),
        "png palette": saved(photo(33, 47).quantize(), "PNG"),
        "png palette transparent": saved(photo(33, 47).quantize(), "PNG", transparency=3),
        "png alpha": saved(rgba, "PNG"),
        "gif": saved(photo(33, 47), "GIF"),
        "bmp": saved(photo(33, 47), "BMP"),
        "tiff": saved(photo(33, 47), "TIFF"),
        "webp": saved(photo(33, 47), "WEBP"),
        "webp alpha": saved(rgba, "WEBP", lossless=True),
    }
    # In the Adobe marker, transform 2 means that the four channels are YCCK.
    kinds["ycck"] = kinds["cmyk"].replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2")
    assert kinds["ycck"] != kinds["cmyk"]
    return kinds


needs_simplejpeg = pytest.mark.skipif(module.turbo is None, reason="simplejpeg is not installed")


@pytest.fixture(params=[pytest.param("simplejpeg", marks=needs_simplejpeg), "pillow alone"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pillow alone":
        monkeypatch.setattr(module, "turbo", None)


@pytest.mark.data
@pytest.mark.usefixtures("way")
def test_photos_as_pillow(test_data: Path) -> None:
    files = sorted((test_data / "imagenet_sample").rglob("*.JPEG"))
    assert len(files) == 120
    for file in files:
        content = file.read_bytes()
        assert outcome(decode, content) == outcome(pillow, content), file


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_jpegs_as_pillow(height: int, width: int) -> None:
    for options in JPEGS:
        content = saved(photo(height, width), **options)
        assert outcome(decode, content) == outcome(pillow, content), options


@needs_simplejpeg
@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_jpegs_of_another_encoder_as_pillow(subsampling: str) -> None:
    for height, width in SIZES:
        content = module.turbo.encode_jpeg(np.array(photo(height, width)), quality=80, colorsubsampling=subsampling)
        assert outcome(decode, content) == outcome(pillow, content), (height, width)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", list(every_kind()))
def test_every_kind_as_pillow(kind: str) -> None:
    content = every_kind()[kind]
    pixels = decode(content)
    assert outcome(decode, content) == outcome(pillow, content)
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@needs_simplejpeg
def test_a_plain_jpeg_does_not_need_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    content = {kind: every_kind()[kind] for kind in ("exif", "gray", "rgb stored as rgb", "cmyk")}
    monkeypatch.setattr(Image, "open", lambda *_, **__: (_ for _ in ()).throw(AssertionError("Pillow was asked")))
    for kind in ("exif", "gray", "rgb stored as rgb"):
        assert decode(content[kind]).shape == (33, 47, 3)
    with pytest.raises(AssertionError, match="asked"):
        decode(content["cmyk"])


def test_damaged_files_as_pillow() -> None:
    """Truncated files, flipped bits and zeros give the pixels of Pillow, or the error of Pillow."""
    random = np.random.default_rng(0)
    whole = [
        saved(photo(100, 75, seed), quality=60, progressive=progressive, subsampling=subsampling)
        for seed, (progressive, subsampling) in enumerate([(False, "4:2:0"), (True, "4:2:0"), (False, "4:4:4")])
    ]
    damaged = [b"", b"\xff\xd8\xff", b"not an image"]
    for content in whole:
        damaged += [content[:size] for size in (2, 20, 300, len(content) // 2, len(content) - 2, len(content) - 1)]
        damaged.append(content[: len(content) // 2] + bytes(len(content) // 2))
        for _ in range(400):
            flipped = bytearray(content)
            flipped[random.integers(len(content))] ^= 1 << random.integers(8)
            damaged.append(bytes(flipped))
        for _ in range(400):  # the headers
            flipped = bytearray(content)
            flipped[random.integers(620)] = random.integers(256)
            damaged.append(bytes(flipped))
    results = [outcome(decode, content) for content in damaged]
    assert results == [outcome(pillow, content) for content in damaged]
    errors = sum(isinstance(result[0], type) for result in results)
    assert 0.1 * len(results) < errors < 0.9 * len(results)


@pytest.mark.usefixtures("way")
def test_a_decompression_bomb_is_refused() -> None:
    content = saved(photo(100, 75))
    with pytest.raises(ValueError, match=r"75 x 100 = 7500 pixels; expected at most 7499"):
        decode(content, 7499)
    assert decode(content, 7500).shape == (100, 75, 3)


def test_a_huge_size_in_a_header_takes_no_memory() -> None:
    content = bytearray(saved(photo(100, 75), subsampling="4:4:4"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", 65000, 65000)
    with pytest.raises(module.TooManyPixelsError):
        decode(bytes(content))
