"""Test that every kind of image file becomes the RGB that its format defines, for all readers."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from image_bytes import chunk, png, pnm, saved, tiff, without_adobe_marker
from PIL import Image

from intl_bench.cli import main
from pretrain.images import decode as module
from pretrain.images.decode import decode
from transfer.detection.annotations.image_sizes import image_size
from transfer.detection.transforms import read_image

CHANNELS = {"gray": 1, "gray and alpha": 2, "RGB": 3, "RGBA": 4}


def rounded(values: np.ndarray, largest: int = 65535) -> np.ndarray:
    """The right value, in floats: a share of the full range, rounded to nearest."""
    return np.rint(values / largest * 255).astype(np.uint8)


def colors(values: np.ndarray) -> np.ndarray:
    """RGB of (H, W, C) with C as in `CHANNELS`, without alpha."""
    return values[:, :, [0, 0, 0]] if values.shape[2] < 3 else values[:, :, :3]


def of_16_bits(values: np.ndarray) -> dict[str, tuple[bytes, np.ndarray]]:
    """Every file that holds (H, W, 4) 16-bit values, or some of them, and its RGB of 16 bits."""
    height, width, _ = values.shape
    size = width, height
    files = {}
    for name, channels in CHANNELS.items():
        part = np.ascontiguousarray(values[:, :, :channels])
        for interlaced in (False, True):
            files[f"PNG {name} {interlaced}"] = png(part, interlaced=interlaced), colors(part)
        if channels in (1, 3):
            files[f"PNM {name}"] = pnm(part, 65535), colors(part)
        if channels == 2:  # Pillow reads no such TIFF
            continue
        extra = {"t338": [2]} if channels == 4 else {}
        for order in "<>":
            whole = part.astype(f"{order}u2").tobytes()
            for compressed in (False, True):
                content = tiff(
                    [whole],
                    size,
                    [16] * channels,
                    1 if channels == 1 else 2,
                    order=order,
                    compressed=compressed,
                    **extra,
                )
                files[f"TIFF {name} {order} {compressed}"] = content, colors(part)
            if channels > 1:
                planes = [part[:, :, c].astype(f"{order}u2").tobytes() for c in range(channels)]
                content = tiff(planes, size, [16] * channels, 2, order=order, **extra)
                files[f"TIFF planes {name} {order}"] = content, colors(part)
    white_is_zero = tiff([(65535 - values[:, :, 0]).astype("<u2").tobytes()], size, [16], 0)
    files["TIFF white is zero"] = white_is_zero, colors(values[:, :, :1])
    ignored = tiff([values.astype("<u2").tobytes()], size, [16] * 4, 2, t338=[0])
    files["TIFF with a fourth value"] = ignored, colors(values)
    return files


@settings(max_examples=25)
@given(values=arrays.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))))
def test_16_bits_are_scaled(values: np.ndarray) -> None:
    for kind, (content, expected) in of_16_bits(values).items():
        assert np.array_equal(decode(content), rounded(expected)), kind


@settings(max_examples=25)
@given(values=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))))
def test_16_bits_give_the_pixels_of_their_8_bit_twin(values: np.ndarray) -> None:
    for kind, (content, _) in of_16_bits(values.astype(np.uint16) * 257).items():
        channels = 1 if "gray" in kind or "white" in kind else 3
        assert np.array_equal(decode(content), colors(values[:, :, :channels])), kind


def test_every_16_bit_value() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    assert np.array_equal(decode(png(values)), rounded(colors(values)))
    assert np.array_equal(decode(png(values.repeat(3, 2))), rounded(colors(values)))


def test_significant_bits_of_png_are_ignored() -> None:
    values = np.array([[[0], [512], [1023]]], np.uint16)
    assert decode(png(values, extra=chunk(b"sBIT", b"\x0a"))).tolist() == [[[0] * 3, [2] * 3, [4] * 3]]


@settings(max_examples=25)
@given(data=st.data(), largest=st.integers(1, 65535), channels=st.sampled_from([1, 3]))
def test_pnm_of_any_range(data: st.DataObject, largest: int, channels: int) -> None:
    kind = np.uint16 if largest > 255 else np.uint8
    values = data.draw(arrays.arrays(kind, (3, 4, channels), elements=st.integers(0, largest)))
    off = decode(pnm(values, largest)).astype(int) - 255 * colors(values).astype(float) / largest
    assert (np.abs(off) <= 0.5).all()  # a value that lies halfway is rounded to either side


def test_12_bits() -> None:
    content = tiff([bytes([0xFF, 0xF0, 0x00, 0x80, 0x00, 0x00])], (4, 1), [12], 1)
    assert decode(content)[0, :, 0].tolist() == [255, 0, round(2048 / 4095 * 255), 0]


def test_premultiplied_colors() -> None:
    """Colors that are stored as their product with the opacity; nothing is known of a transparent pixel."""
    stored = np.array([[[1000, 2000, 4000, 4000], [30000, 0, 60000, 60000], [0, 0, 0, 0]]], np.uint16)
    expected = [[[64, 128, 255], [128, 0, 255], [0, 0, 0]]]
    assert decode(tiff([stored.astype("<u2").tobytes()], (3, 1), [16] * 4, 2, t338=[1])).tolist() == expected
    pixels = decode(tiff([bytes([60, 120, 9, 255])], (2, 1), [8, 8], 1, t338=[1]))
    assert np.abs(pixels[0, :, 0] - [127.5, 9]).max() <= 0.5


# Four colors


INK = {"white": (0, 0, 0, 0), "cyan": (255, 0, 0, 0), "dark red": (0, 200, 200, 100), "black": (0, 0, 0, 255)}


def as_rgb(ink: tuple[int, ...]) -> np.ndarray:
    return np.rint([(255 - value) * (255 - ink[3]) / 255 for value in ink[:3]])


@pytest.mark.parametrize("name", list(INK))
def test_cmyk_jpeg_with_and_without_adobes_marker(name: str) -> None:
    ink = INK[name]
    options = {"quality": 100, "subsampling": 0}
    adobe = saved(Image.new("CMYK", (16, 16), ink), "JPEG", **options)
    turned = saved(Image.new("CMYK", (16, 16), tuple(255 - value for value in ink)), "JPEG", **options)
    for content in (adobe, without_adobe_marker(turned)):
        assert np.abs(decode(content) - as_rgb(ink)).max() <= 2
    with Image.open(io.BytesIO(adobe)) as image:
        assert np.array_equal(decode(adobe), np.array(image.convert("RGB")))


def test_ycck_jpeg() -> None:
    """Adobe's transform 2: YCbCr of the inks as if they were red, green and blue; black stays inverted."""
    ink = INK["dark red"]
    bands = Image.new("RGB", (16, 16), ink[:3]).convert("YCbCr").split()
    inverted = [band.point(lambda value: 255 - value) for band in bands]  # Pillow stores 255 - v
    stored = Image.merge("CMYK", [*inverted, Image.new("L", (16, 16), ink[3])])
    content = saved(stored, "JPEG", quality=100, subsampling=0).replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2")
    assert np.abs(decode(content) - as_rgb(ink)).max() <= 3


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_tiff(bits: int) -> None:
    inks = np.array([[*INK.values()]])
    stored = inks.astype("<u2") * 257 if bits == 16 else inks.astype("u1")
    pixels = decode(tiff([stored.tobytes()], (4, 1), [bits] * 4, 5))
    assert np.abs(pixels[0] - np.array([as_rgb(ink) for ink in INK.values()])).max() <= 1


# Palettes, YCbCr, bilevel


@pytest.mark.parametrize("scale", [1, 257])
def test_palettes_of_tiff(scale: int) -> None:
    """Palettes of 16 bits, and those of 8 bits that some programs write."""
    colors = [value * scale for band in (0, 85, 170) for value in np.roll(np.arange(256), band).tolist()]
    expected = [[[band[3], band[3 + 256], band[3 + 512]] for band in [[value // scale for value in colors]]]]
    assert decode(tiff([bytes([3])], (1, 1), [8], 3, t320=colors)).tolist() == expected


@pytest.mark.parametrize("compressed", [False, True])
def test_subsampled_ycbcr_tiff(compressed: bool) -> None:
    content = tiff([bytes([10, 20, 30, 40, 128, 128])], (2, 2), [8] * 3, 6, compressed=compressed)
    assert decode(content)[:, :, 1].tolist() == [[10, 20], [30, 40]]
    whole = tiff([bytes([10, 128, 128, 200, 128, 128])], (2, 1), [8] * 3, 6, compressed=compressed, t530=[1, 1])
    assert decode(whole)[:, :, 1].tolist() == [[10, 200]]


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gray_tiff_of_few_bits(bits: int, photometric: int) -> None:
    most = 2**bits - 1
    white_first = tiff([bytes([most << (8 - bits)])], (2 if bits < 8 else 1, 1), [bits], photometric)
    assert decode(white_first)[0, :, 0].tolist()[0] == (255 if photometric else 0)


# What stays as in torchvision and Detectron2


def common() -> dict[str, bytes]:
    """Files of 8 bits in every mode, with transparency where the format has it."""
    random = np.random.default_rng(0)
    rgba = Image.fromarray(random.integers(0, 256, (12, 9, 4), np.uint8))
    rgb = rgba.convert("RGB")
    palette = rgb.quantize(16)
    files = {}
    for form, modes in {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
        "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "LAB", "YCbCr"),
        "BMP": ("1", "L", "P", "RGB", "RGBA"),
        "WEBP": ("RGB", "RGBA"),
        "GIF": ("L", "P", "RGB"),
        "JPEG": ("L", "RGB", "CMYK"),
        "PPM": ("1", "L", "RGB"),
    }.items():
        for mode in modes:
            image = {"LAB": Image.merge("LAB", rgb.split()), "P": palette}.get(mode) or rgba.convert(mode)
            files[f"{form} {mode}"] = saved(image, form)
    files["PNG P transparent"] = saved(palette, "PNG", transparency=3)
    files["PNG P half transparent"] = saved(palette, "PNG", transparency=bytes(range(0, 256, 16)))
    files["PNG RGB transparent"] = saved(rgb, "PNG", transparency=rgb.getpixel((0, 0)))
    files["PNG L transparent"] = saved(rgb.convert("L"), "PNG", transparency=7)
    files["GIF transparent"] = saved(palette, "GIF", transparency=3)
    files["TIFF group 4"] = saved(rgb.convert("1"), "TIFF", compression="group4")
    return files


@pytest.mark.parametrize("kind", list(common()))
def test_8_bits_as_torchvision(kind: str, tmp_path: Path) -> None:
    content = common()[kind]
    (tmp_path / "image").write_bytes(content)
    with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as image:
        warnings.simplefilter("ignore")  # of palettes with transparency
        expected = np.array(image.convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decode(content), expected)
        assert np.array_equal(np.asarray(read_image(tmp_path / "image")), expected)


# Modes without a defined white


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff([bytes(8)], (2, 1), [32], 1, t339=[1]), "mode I: 32-bit integers have no defined white"),
        (tiff([bytes(8)], (2, 1), [32], 1, t339=[2]), "mode I: 32-bit integers have no defined white"),
        (tiff([bytes(4)], (2, 1), [16], 1, t339=[2]), "mode I: signed 16-bit integers have no defined white"),
        (tiff([bytes(2)], (2, 1), [8], 1, t339=[2]), "mode L: signed 8-bit integers have no defined white"),
        (tiff([bytes(8)], (2, 1), [32], 1, t339=[3]), "mode F: floats have no defined white"),
        (saved(Image.new("F", (2, 1)), "PPM"), "mode F: floats have no defined white"),
        (tiff([bytes(24)], (2, 1), [32] * 3, 2, t339=[3] * 3), r"TIFF: unknown pixel mode, bits \(32, 32, 32\)"),
        (tiff([bytes(8)], (2, 1), [16] * 2, 1, t338=[2]), r"TIFF: unknown pixel mode, bits \(16, 16\), photometric 1"),
        (tiff([bytes(4)] * 3, (2, 1), [16] * 3, 2, compressed=True), "mode RGB: 16-bit planes are not supported"),
    ],
)
def test_other_modes_are_refused_by_name(content: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError if reason.startswith("mode") else OSError, match=reason):
        decode(content)
    (tmp_path / "image.tif").write_bytes(content)
    with pytest.raises(Exception, match=reason) as error:
        read_image(tmp_path / "image.tif")
    assert "image.tif" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_jpeg_of_12_bits_says_so() -> None:
    content = bytearray(saved(Image.new("RGB", (8, 8)), "JPEG"))
    content[content.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(OSError, match="JPEG: cannot handle 12-bit layers"):
        decode(bytes(content))
    with pytest.raises(OSError, match="expected JPEG, PNG, BMP"):
        decode(b"\0\0\0\x0cjP  \r\n\x87\n")  # JPEG 2000


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "16-bit TIFF"])
def test_the_orientation_of_a_tiff_file_is_applied_once(form: str, orientation: int, tmp_path: Path) -> None:
    """Pillow turns a TIFF file when it decodes it, and other files not at all."""
    values = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if form == "16-bit TIFF":
        content = tiff([(values.astype("<u2") * 257).tobytes()], (3, 2), [16] * 3, 2, t274=[orientation])
    else:
        content = saved(Image.fromarray(values), form, exif=exif)
    (tmp_path / "image").write_bytes(content)
    turns = [values, values[:, ::-1], values[::-1, ::-1], values[::-1]]
    upright = [*turns, *(turn.transpose(1, 0, 2) for turn in (turns[0], turns[3], turns[2], turns[1]))][orientation - 1]
    assert np.array_equal(np.asarray(read_image(tmp_path / "image")), upright)
    assert np.array_equal(decode(content), values if form == "PNG" else upright)


def test_damaged_exif_is_no_orientation(tmp_path: Path) -> None:
    """As in Detectron2: the picture is intact."""
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.full((8, 16, 3), 77, np.uint8)
    content = bytearray(saved(Image.fromarray(values), "JPEG", exif=exif))
    start = content.index(b"Exif\0\0") + 6
    for damage in (b"XX*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x01"):
        content[start : start + len(damage)] = damage
        (tmp_path / "image.jpg").write_bytes(content)
        assert read_image(tmp_path / "image.jpg").size == (16, 8)
        assert image_size(str(tmp_path / "image.jpg")) == (16, 8)


# The command line


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny = ["backbone.name=resnet10_narrow", "projector.hidden=32", "projector.out=64", "batch_size=32"]
        assert main(["pretrain", "demo", *tiny, "data.size=64", "epochs=1", "warmup_epochs=0", "device=cpu"]) == 0
    return folder / "runs/pretrain/demo/seed0/checkpoint.pt"


def test_16_bit_images_score_as_their_8_bit_twins(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for label, base in enumerate((20, 110, 200)):
            for number in range(count):
                gray = (base + random.integers(0, 30, (24, 24))).astype(np.uint8)
                deep = gray.astype(np.uint16) * 257
                rgb = np.repeat(deep[:, :, None], 3, 2)
                files = {
                    "8.png": saved(Image.fromarray(gray), "PNG"),
                    "I16.png": saved(Image.fromarray(deep), "PNG"),
                    "RGB16.png": png(rgb),
                    "I16.tif": saved(Image.fromarray(deep), "TIFF"),
                    "pgm16.pgm": pnm(deep[:, :, None], 65535),
                }
                for name, content in files.items():
                    kind, _, suffix = name.partition(".")
                    folder = tmp_path / f"{kind}{suffix}" / split / str(label)
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f"{number}.{suffix}").write_bytes(content)
    for name in sorted(path.name for path in tmp_path.iterdir() if (path / "train").is_dir()):
        words = ["knn", str(checkpoint), "data.kind=imagefolder", f"data.root={name}", "device=cpu", "workers=0"]
        assert main(words) == 0
        assert "knn5 100.00" in capsys.readouterr().out, name


def test_an_undefined_mode_is_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        (tmp_path / "data" / split / "a").mkdir(parents=True)
        for number in range(6):
            Image.new("F", (9, 9), number).save(tmp_path / "data" / split / "a" / f"{number}.tif")
    words = ["knn", str(checkpoint), "data.kind=imagefolder", "data.root=data", "device=cpu", "workers=0"]
    assert main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("intl-bench:")]
    assert "data/train/a/0.tif: not a readable image (mode F: floats have no defined white" in line


def test_max_pixels(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit is named and can be raised; it is no part of the identity."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        (tmp_path / "data" / split / "a").mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (20, 30), (number, 0, 0)).save(tmp_path / "data" / split / "a" / f"{number}.png")
    words = ["knn", str(checkpoint), "data.kind=imagefolder", "data.root=data", "device=cpu", "workers=0"]
    assert main([*words, "data.max_pixels=599"]) == 2
    error = capsys.readouterr().err
    assert "data/train/a/0.png: 20 x 30 = 600 pixels; expected at most 599 pixels; set data.max_pixels=600" in error
    assert main([*words, "data.max_pixels=600"]) == 0
    assert main(words) == 0
    assert "already there" in capsys.readouterr().out


def test_a_limit_above_the_default_is_possible() -> None:
    size = module.LARGEST + 1
    header = struct.pack(">IIBBBBB", size, 1, 8, 0, 0, 0, 0)
    stream = io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with pytest.raises(module.TooManyPixelsError, match="= 178956971 pixels; expected at most 178956970"):
        module.open_image(stream)
    stream.seek(0)
    assert module.open_image(stream, size).size == (size, 1)
