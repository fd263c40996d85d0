"""Malformed files of every kind: exit code 2 and one line that names the file, quickly; and random damage.

`INTL_BENCH_TORTURE=1` tries 20,000 random mutations instead of a few hundred.
"""

import contextlib
import copy
import io
import json
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import file_cases
import hypothesis
import numpy as np
import pytest
import torch
import torture
from file_cases import SMALL, WHOLE, image, refused, safetensors_file, torch_file, zip_parts, zipped
from hypothesis import strategies as st
from safetensors.torch import save

from intl_bench.core import files, inputs, seals
from intl_bench.core.errors import BenchError, InputError
from pretrain.backbone import build_backbone
from pretrain.images import pack
from pretrain.images.data import DataConfig, open_source
from transfer import convert
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig
from transfer.formats import safe_load
from transfer.formats.match import extract, find

Capture = pytest.CaptureFixture[str]
MUTATIONS = 20_000 if torture.LONG else 400


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A complete checkpoint."""
    return file_cases.small_checkpoint(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- text that is no JSON, for every reader of JSON

DEEP, LONG = "[" * 100_000, "9" * 5000
NOT_JSON = {
    "empty": (b"", "not valid JSON"),
    "a blank": (b" \n", "not valid JSON"),
    "text": (b"hello", "not valid JSON"),
    "half": (b'{"images": [{"id": 1', "not valid JSON"),
    "two values": (b"{} {}", "not valid JSON"),
    "a comma too many": (b'{"a": 1,}', "not valid JSON"),
    "single quotes": (b"{'a': 1}", "not valid JSON"),
    "Latin-1": (b'{"a": "\xe9"}', "utf-8"),
    "zero bytes": (bytes(1000), "not valid JSON"),
    "deep lists": (DEEP.encode(), "nested too deeply"),
    "deep objects": (b'{"a":' * 50_000, "nested too deeply"),
    "a whole number of 5,000 digits": (LONG.encode(), "not valid JSON"),
    "half a character": (rb'"\ud800"', "surrogates not allowed"),
    "an invalid escape": (rb'{"a": "\x41"}', "not valid JSON"),
    "a control character": (b'{"a": "\n"}', "not valid JSON"),
    "a page": (b"<!DOCTYPE html><html></html>", "not valid JSON"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not valid JSON"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(20), "utf-8"),
}


@pytest.mark.parametrize("kind", NOT_JSON)
def test_coco_annotations_that_are_no_json(kind: str, weights: str, capfd: Capture) -> None:
    path = file_cases.coco_folder(Path("coco")) / "annotations" / "instances_train2017.json"
    content, fragment = NOT_JSON[kind]
    path.write_bytes(content)
    refused(COCO(weights), capfd, str(path), fragment)


BOUNDED = {
    "a key twice": (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    "NaN": (b'{"a": NaN}', "not a finite number"),
    "Infinity": (b"[-Infinity]", "not a finite number"),
    "too large a number": (b"[1e999]", "not a finite number"),
    "400 digits": (b"9" * 400, "a whole number of 400 digits"),
    "100 levels": (b"[" * 100 + b"]" * 100, "nested too deeply"),
    "900 levels": (b'{"a":' * 900 + b"1" + b"}" * 900, "nested too deeply"),
}


@pytest.mark.parametrize("kind", [*NOT_JSON, *BOUNDED])
def test_json_of_others_is_bounded(kind: str, tmp_path: Path) -> None:
    content, fragment = {**NOT_JSON, **BOUNDED}[kind]
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for read in (lambda: inputs.read_json(path, "the file"), lambda: inputs.parse_json(content, f"the file {path}")):
        with pytest.raises(BenchError) as caught:
            read()
        assert caught.value.exit_code == 2
        assert str(path) in str(caught.value)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_usual_json_is_accepted() -> None:
    value = {"a": [1, -2.5, 1e300, None, True, "é\U0001f600"], "b": {"c": {}}, "n": 2**63}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, indent=2)):
        assert inputs.parse_json(text, "a") == value
        assert inputs.parse_json(b"\xef\xbb\xbf" + text.encode(), "a") == value
    nested = json.loads("[" * 60 + "]" * 60)
    assert inputs.parse_json(json.dumps(nested), "a") == nested


# ---- COCO: valid JSON with values that no data set has


def COCO(weights: str) -> list[str]:
    return ["coco", weights, "data.root=coco", "data.name=tiny", "engine=builtin"]


def _set(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def _nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


HUGE = 10**9
IMAGE = ("images", 0)
OBJECT = ("annotations", 0)
COCO_CASES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    f"{path[-1] if len(path) == 1 else f'{path[0]}[0].{path[-1]}'} is {inputs.shorten(value, 40)}": (
        _set(*path, value=value),
        str(path[-1]),
    )
    for path, values in {
        ("images",): [None, {}, [], "a", [1], [None], [[]], _nested(60)],
        ("annotations",): [None, {}, [], 3, ["a"]],
        ("categories",): [None, {}, [], [{}]],
        (*IMAGE, "id"): [None, "1.0", 1.5, True, 2, 10**30, [], _nested(60)],
        (*IMAGE, "width"): [None, 0, -1, 1.5, "32", HUGE, 10**30, 33, [32]],
        (*IMAGE, "height"): [None, 0, -32, 10**12, {}],
        (*IMAGE, "file_name"): [
            None,
            1,
            "",
            ".",
            "..",
            "../1.jpg",
            "/etc/passwd",
            "a\x00b",
            "a\nb",
            "\x1b[31m",
            "2.jpg",
        ],
        (*OBJECT, "id"): [None, "one", 2, -(10**30), 1.5],
        (*OBJECT, "image_id"): [None, 3, "3", 10**30],
        (*OBJECT, "category_id"): [None, 0, "dog", _nested(60)],
        (*OBJECT, "iscrowd"): [2, -1, "0", 0.5, []],
        (*OBJECT, "bbox"): [None, [], [1, 2, 3], ["a"] * 4, [0, 0, HUGE, 1], [0, 0, -1, 1], [None] * 4, [10**400] * 4],
        (*OBJECT, "segmentation"): [
            *(None, 1, "a", [1], [[1]], [["a"] * 6], [[10**400] * 6], _nested(60), {}),
            *({"size": [HUGE, HUGE], "counts": [HUGE * HUGE]}, {"size": [32, 32], "counts": [10**18]}),
            *({"size": [32, 32], "counts": [-1, 1025]}, {"size": [32, 32], "counts": "\x00"}),
            *(
                {"size": [32, 32], "counts": "P" * 10_000},
                {"size": [32, 32], "counts": None},
                {"size": "a", "counts": 1},
            ),
        ],
    }.items()
    for value in values
}


@pytest.mark.parametrize("kind", COCO_CASES)
def test_coco_annotations_with_impossible_values(kind: str, weights: str, capfd: Capture) -> None:
    path = file_cases.coco_folder(Path("coco")) / "annotations" / "instances_train2017.json"
    document = file_cases.coco_document()
    change, field = COCO_CASES[kind]
    change(document)
    path.write_text(json.dumps(document))
    refused(COCO(weights), capfd, "instances_train2017.json", "" if field == "file_name" else field)


# ---- VOC


def VOC(weights: str) -> list[str]:
    return ["voc", weights, "data.root=voc", "engine=builtin", "data.test=[VOC2007/ImageSets/Main/trainval.txt]"]


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha">' + "".join(
    f'<!ENTITY b{n} "{"&b;" * 10 if n == 0 else f"&b{n - 1};" * 10}">' for n in range(20)
)
VOC_CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not complete XML"),
    "text": (b"hello", "not complete XML"),
    "half": (b"<annotation><size>", "not complete XML"),
    "two roots": (b"<a/><b/>", "not complete XML"),
    "no size": (b"<annotation/>", "size/width"),
    "JSON": (b"{}", "not complete XML"),
    "zero bytes": (bytes(100), "not complete XML"),
    "Latin-1": (b"<annotation>\xe9</annotation>", "not UTF-8"),
    "UTF-16": ("<annotation/>".encode("utf-16"), "size/width"),
    "another encoding declared": (b'<?xml version="1.0" encoding="utf-7"?><annotation/>', "size/width"),
    "billion laughs": (f"{LAUGHS}]><annotation>&b19;</annotation>".encode(), "declares a document type or entities"),
    "an external entity": (
        b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
        "declares a document type or entities",
    ),
    "a parameter entity": (b'<!DOCTYPE a [<!ENTITY % b SYSTEM "http://127.0.0.1/">%b;]><annotation/>', "declares"),
    "an unknown entity": (b"<annotation>&b;</annotation>", "not complete XML"),
    "CDATA": (b"<annotation><![CDATA[a]]></annotation>", "declares"),
    "a character that XML forbids": (b"<annotation>&#0;</annotation>", "not complete XML"),
    "deep": (b"<a>" * 100_000, "not complete XML"),
    "deep and closed": (b"<a>" * 100_000 + b"</a>" * 100_000, "size/width"),
    "a name of a megabyte": (b"<" + b"a" * 10**6 + b"/>", "size/width"),
    "a duplicate attribute": (b'<annotation a="1" a="2"/>', "not complete XML"),
    **{
        f"a width of {value}": (voc.replace("<width>60", f"<width>{value}").encode(), "000005")
        for voc in [file_cases.voc_cases.xml(file_cases.voc_cases.OBJECTS["VOC2007", "000005"])]
        for value in ("", "-1", "0", "nan", "inf", "1e300", "1e18", "60.5", "six", "9" * 5000, "0x3c")
    },
    **{
        f"a corner of {value}": (voc.replace("<xmax>60", f"<xmax>{value}").encode(), "bndbox")
        for voc in [file_cases.voc_cases.xml(file_cases.voc_cases.OBJECTS["VOC2007", "000005"])]
        for value in ("", "nan", "-inf", "1e300", "0", "10000000000", "9" * 5000, "a")
    },
}


@pytest.mark.parametrize("kind", VOC_CASES)
def test_voc_annotations(kind: str, weights: str, capfd: Capture) -> None:
    path = file_cases.voc_folder(Path("voc")) / "VOC2007" / "Annotations" / "000005.xml"
    content, fragment = VOC_CASES[kind]
    path.write_bytes(content)
    refused(VOC(weights), capfd, "000005", fragment)


LISTS = {
    "empty": b"",
    "blanks": b" \n\t\n",
    "two words": b"000005 1\n",
    "a path": b"../000005\n",
    "not UTF-8": b"\xff\xfe0\x00",
    "zero bytes": bytes(10),
    "a control character": b"\x1b[2J000005\n",
    "an absent image": b"000006\n",
    "an image twice": b"000005\n000005\n",
    "a very long name": b"a" * 5000,
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_voc(kind: str, weights: str, capfd: Capture) -> None:
    path = file_cases.voc_folder(Path("voc")) / "VOC2007" / "ImageSets" / "Main" / "trainval.txt"
    path.write_bytes(LISTS[kind])
    refused(VOC(weights), capfd, "VOC2007")


# ---- images


def _png(width: int, height: int, *, depth: int = 8, color: int = 2, data: bytes = b"") -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _jpeg(width: int, height: int) -> bytes:
    content = bytearray(image())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


IMAGES: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\xff",
    "text": b"hello",
    "zero bytes": bytes(1000),
    "a page": b"<!DOCTYPE html><html></html>",
    "half a JPEG": image()[:300],
    "the start of a JPEG": image()[:20],
    "half a PNG": image("PNG")[:500],
    "the start of a PNG": image("PNG")[:30],
    "half a BMP": image("BMP")[:500],
    "half a WEBP": image("WEBP")[:100],
    "half a TIFF": image("TIFF")[:200],
    "half a GIF": image("GIF")[:100],
    "half a PPM": image("PPM")[:100],
    "a PNG of a billion pixels": _png(40_000, 40_000),
    "a PNG of 2^31 x 2^31 pixels": _png(2**31 - 1, 2**31 - 1),
    "a PNG without pixels": _png(0, 0),
    "a PNG without data": _png(32, 32),
    "a PNG of another depth": _png(32, 32, depth=77),
    "a PNG whose data is no zlib": _png(32, 32, data=b"abc"),
    "a JPEG of 65535 x 65535 pixels": _jpeg(65535, 65535),
    "a JPEG of 0 x 0 pixels": _jpeg(0, 0),
    "a BMP of a billion pixels": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60000, 60000, 1, 24, *[0] * 6),
    "a GIF of 65535 x 65535 pixels": b"GIF89a\xff\xff\xff\xff" + image("GIF")[10:],
    "a PPM of a billion pixels": b"P6 40000 40000 255\n" + bytes(100),
    "a PPM of 10^30 pixels": b"P6 1000000000000000 1000000000000000 255\n",
    "a TIFF without directory": b"II*\x00\x08\x00\x00\x00",
    "a TIFF whose directory is its own next": b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n",
    "PDF": b"%PDF-1.4\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32"/>',
    "WMF": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(100),
    "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "PCX": image("PCX"),
    "TGA": image("TGA"),
    "ICO": image("ICO"),
    "SGI": image("SGI"),
    "JPEG 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(50),
    "PSD": b"8BPS\x00\x01" + bytes(100),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind: str, weights: str, capfd: Capture) -> None:
    path = file_cases.image_folder(Path("images")) / "train" / "a" / "a_0.JPEG"
    path.write_bytes(IMAGES[kind])
    command = ["knn", weights, "data.kind=imagefolder", "data.root=images", "data.name=tiny", "workers=0", "k=1"]
    refused(command, capfd, str(path))


@pytest.mark.parametrize(
    "kind", [kind for kind in IMAGES if "half" not in kind and kind != "a PNG whose data is no zlib"]
)
def test_images_of_annotations(kind: str, weights: str, capfd: Capture) -> None:
    path = file_cases.coco_folder(Path("coco")) / "train2017" / "2.jpg"
    path.write_bytes(IMAGES[kind])
    refused(COCO(weights), capfd, "2.jpg")


# ---- arrays


def _npy(shape: str, kind: str = "|u1", data: bytes = b"") -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def _with(**members: bytes) -> bytes:
    whole = zipfile.ZipFile(io.BytesIO(file_cases.npz(file_cases.arrays())))
    parts = {name: whole.read(name) for name in whole.namelist()} | {f"{k}.npy": v for k, v in members.items()}
    return zipped(parts)


def _arrays(**changed: Any) -> bytes:
    return file_cases.npz(file_cases.arrays() | changed)


def _encrypted() -> bytes:
    content = bytearray(_arrays())
    place = 0
    while (place := content.find(b"PK\x01\x02", place)) >= 0:
        content[place + 8] |= 1  # the flag "encrypted" of each entry
        place += 4
    return bytes(content)


NPZ: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello",
    "half": _arrays()[:2000],
    "without the end": _arrays()[:-30],
    "an empty archive": zipped({}),
    "a single array": _npy("(3,)", data=b"abc"),
    "a pickle": pickle.dumps({"train_x": 1}),
    "no train_y": file_cases.npz({k: v for k, v in file_cases.arrays().items() if k != "train_y"}),
    "no train_x": file_cases.npz({k: v for k, v in file_cases.arrays().items() if k != "train_x"}),
    "floats": _arrays(train_x=np.zeros((40, 8, 8, 3), np.float32)),
    "gray": _arrays(train_x=np.zeros((40, 8, 8), np.uint8)),
    "channels first": _arrays(train_x=np.zeros((40, 3, 8, 8), np.uint8)),
    "no images": _arrays(train_x=np.zeros((0, 8, 8, 3), np.uint8)),
    "labels of floats": _arrays(train_y=np.zeros(40)),
    "labels of text": _arrays(train_y=np.full(40, "a")),
    "too few labels": _arrays(train_y=np.arange(39)),
    "negative labels": _arrays(train_y=np.arange(40) - 1),
    "labels of 2^63": _arrays(train_y=np.full(40, 2**63, np.uint64)),
    "labels with a gap": _arrays(train_y=np.arange(40) * 2),
    "labels in two dimensions": _arrays(train_y=np.zeros((40, 1), int)),
    "structured labels": _arrays(train_y=np.zeros(40, [("a", int)])),
    "dates": _arrays(train_y=np.zeros(40, "M8[s]")),
    "objects": _arrays(train_y=np.array([None] * 40)),
    "an array of terabytes": _with(train_x=_npy("(1000000000000, 8, 8, 3)")),
    "an array of 10^30 bytes": _with(train_x=_npy(f"({10**28}, 8, 8, 3)")),
    "fewer bytes than its shape": _with(train_x=_npy("(40, 8, 8, 3)", data=b"abc")),
    "a negative shape": _with(train_x=_npy("(-1, 8, 8, 3)")),
    "a shape of text": _with(train_x=_npy("'abc'")),
    "a shape that is a call": _with(train_x=_npy("__import__('os').system('id')")),
    "deep brackets": _with(train_x=_npy("(" * 5000)),
    "an unknown type": _with(train_x=_npy("(1,)", "|x9")),
    "a type of 10^9 bytes": _with(train_y=_npy("(1000,)", "|V1000000000")),
    "an unknown version": _with(train_x=b"\x93NUMPY\x09\x00" + bytes(100)),
    "no array": _with(train_x=b"hello"),
    "an empty array file": _with(train_x=b""),
    "encrypted": _encrypted(),
    "damaged data": _arrays().replace(bytes(range(8)), bytes(8)) if bytes(range(8)) in _arrays() else _arrays()[:-1000],
}


@pytest.mark.parametrize("kind", NPZ)
def test_npz_archives(kind: str, capfd: Capture) -> None:
    Path("data.npz").write_bytes(NPZ[kind])
    refused(["pretrain", "demo", "data.kind=npz", "data.root=data.npz", "data.name=tiny"], capfd, "data.npz")


# ---- CIFAR


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was_run",)


CIFAR: dict[str, bytes | None] = {
    "missing": None,
    "empty": b"",
    "text": b"hello",
    "another pickle": pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0]}),
    "code": pickle.dumps(_Code()),
    "half a pickle": pickle.dumps(list(range(1000)))[:100],
    "zero bytes": bytes(1000),
}


@pytest.mark.parametrize("kind", CIFAR)
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_files_of_cifar(kind: str, name: str, capfd: Capture) -> None:
    folder = Path({"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name])
    folder.mkdir()
    for file in ("data_batch_1", "batches.meta", "train", "test", "meta"):
        if (content := CIFAR[kind]) is not None:
            (folder / file).write_bytes(content)
    refused(["pretrain", "demo", f"data.kind={name}", "data.root=."], capfd, str(folder), "missing or damaged")
    assert not Path("was_run").exists()


# ---- class lists, file lists


CLASSES = {
    "empty": (b"", "empty"),
    "blanks": (b"\n  \n", "empty"),
    "an unknown class": (b"a\nc\n", "'c' is not a class folder"),
    "half a character of UTF-16": (b"\xff\xfea", "not UTF-8"),
    "Latin-1": (b"\xe9\n", "not UTF-8"),
    "zero bytes": (bytes(20), "zero bytes"),
    "a path": (b"../train/a\n", "is not a class folder"),
    "an escape": (b"\x1b[31ma\n", "is not a class folder"),
    "a long line": (b"a" * 10**6, "is not a class folder"),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_class_lists(kind: str, capfd: Capture) -> None:
    file_cases.image_folder(Path("images"))
    content, fragment = CLASSES[kind]
    Path("classes.txt").write_bytes(content)
    command = ["pretrain", "demo", "data.kind=imagefolder", "data.root=images", "data.classes=classes.txt"]
    refused(command, capfd, "classes.txt", fragment)


FILES = {
    "empty": (b"", "0 names"),
    "not UTF-8": (b"\xff", "not UTF-8"),
    "an absent file": (b"a_9.JPEG", "not in"),
    "too many": (b"a_0.JPEG " * 100, "100 names"),
    "a path": (b"../../x.JPEG", "not in"),
    "an escape": (b"\x1b[2J.JPEG", "not in"),
    "zero bytes": (bytes(3), "zero bytes"),
    "a long name": (b"a" * 10**6, "not in"),
}


@pytest.mark.parametrize("kind", FILES)
def test_file_lists(kind: str, weights: str, capfd: Capture) -> None:
    root = file_cases.image_folder(Path("images"))
    for number in range(100):  # one percent of the images is one name
        (root / "train" / "b" / f"more_{number}.JPEG").write_bytes(b"")
    content, fragment = FILES[kind]
    Path("list.txt").write_bytes(content)
    command = ["finetune", weights, "data.kind=imagefolder", "data.root=images", "data.name=tiny", "file_list=list.txt"]
    refused(command, capfd, "list.txt", fragment)


# ---- checkpoints


def _records(**changed: bytes | None) -> bytes:
    parts = zip_parts(SMALL) | {f"archive/{name.replace('__', '/')}": v for name, v in changed.items() if v is not None}
    return zipped({name: v for name, v in parts.items() if changed.get(name.removeprefix("archive/"), b"") is not None})


def _view(*shape: int) -> torch.Tensor:
    return torch.zeros(1).expand(*shape)


def _whole_with(key: str, value: Any) -> bytes:
    return torch_file({**file_cases.backbone(), key: value})


CHECKPOINTS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "zero bytes": lambda: bytes(1000),
    **{
        f"{share:.0%} of {kind}": lambda kind=kind, share=share: (c := WHOLE[kind]())[: int(len(c) * share)]  # type: ignore[misc]
        for kind in WHOLE
        for share in (0.1, 0.5, 0.9)
    },
    **{f"{kind} without a backbone": WHOLE[kind] for kind in WHOLE},
    "a list": lambda: torch_file([1, 2]),
    "a number": lambda: torch_file(3),
    "None": lambda: pickle.dumps(None, protocol=2),
    "keys that are numbers": lambda: torch_file({1: {2: torch.ones(1)}, None: 3}),
    "a dictionary in itself": lambda: b"\x80\x02}q\x00U\x05modelq\x01h\x00s.",
    "shared dictionaries": lambda: pickle.dumps(_doubled(60), protocol=2),
    "zip without data.pkl": lambda: zipped({"archive/version": b"3\n"}),
    "an empty zip": lambda: zipped({}),
    "zip with an empty data.pkl": lambda: _records(**{"data.pkl": b""}),
    "zip with a wrong version": lambda: _records(version=b"10000000000000000000000\n"),
    "zip without tensors": lambda: zipped({k: v for k, v in zip_parts(SMALL).items() if "/data/" not in k}),
    "zip with short tensors": lambda: zipped({k: v[:3] if "/data/" in k else v for k, v in zip_parts(SMALL).items()}),
    "compressed": lambda: zipped(zip_parts(SMALL), compression=zipfile.ZIP_DEFLATED) + b"",
    "a zip bomb": lambda: zipped(
        {**zip_parts(SMALL), "archive/data/9": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED
    ),
    "a view of 10^12 numbers": lambda: _whole_with("conv1.weight", _view(10**6, 10**6)),
    "a sparse tensor": lambda: _whole_with("conv1.weight", torch.ones(64, 3, 7, 7).to_sparse()),
    "a tensor without values": lambda: _whole_with("conv1.weight", torch.empty(64, 3, 7, 7, device="meta")),
    "a quantized tensor": lambda: _whole_with(
        "conv1.weight", torch.quantize_per_tensor(torch.ones(64, 3, 7, 7), 0.1, 0, torch.qint8)
    ),
    "a complex tensor": lambda: _whole_with("conv1.weight", torch.ones(64, 3, 7, 7, dtype=torch.complex64)),
    "a tensor of 8-bit floats": lambda: _whole_with("conv1.weight", torch.ones(64, 3, 7, 7).to(torch.float8_e4m3fn)),
    "a tensor of bytes": lambda: _whole_with("conv1.weight", torch.ones(64, 3, 7, 7, dtype=torch.uint8)),
    "NaN": lambda: _whole_with("conv1.weight", torch.full((64, 3, 7, 7), torch.nan)),
    "infinity": lambda: _whole_with("bn1.running_var", torch.full((64,), torch.inf)),
    "1e300": lambda: _whole_with("bn1.running_var", torch.full((64,), 1e300, dtype=torch.float64)),
    "another shape": lambda: _whole_with("conv1.weight", torch.ones(64, 3, 5, 5)),
    "no dimensions": lambda: _whole_with("conv1.weight", torch.tensor(1.0)),
    "two counters": lambda: _whole_with("bn1.num_batches_tracked", torch.ones(2)),
    "a key of a megabyte": lambda: torch_file({"a" * 10**6: torch.ones(1)}),
    "a key that is an escape": lambda: torch_file({"\x1b[2J\u202e": torch.ones(1)}),
    "a pickle of 10^12 bytes": lambda: b"\x80\x04\x96" + struct.pack("<Q", 10**12) + b"abc.",
    "a pickle with a frame of 10^12 bytes": lambda: b"\x80\x04\x95" + struct.pack("<Q", 10**12) + b"N.",
    "a pickle with 4 billion memos": lambda: b"\x80\x02Nr\xff\xff\xff\xff.",
    "a pickle that ends at once": lambda: b"\x80\x02.",
    "a pickle of a later protocol": lambda: b"\x80\x09N.",
    "a pickle with an unknown opcode": lambda: b"\x80\x02\xff.",
    "a pickle with a persistent id": lambda: b"\x80\x02X\x01\x00\x00\x00aQ.",
    "a pickle with an extension code": lambda: b"\x80\x02\x82\x01.",
    "a pickle of a deep list": lambda: b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "a pickle of an array of terabytes": lambda: _array_pickle((10**12,)),
    "a pickle of an array of 10^30 numbers": lambda: _array_pickle((10**30,)),
    **{
        f"{kind}: a key that is a tuple in a million others": lambda write=write: write(
            b"\x80\x02})" + b"\x85" * 10**6 + b"Ns."
        )  # type: ignore[misc]
        for kind, write in {
            "pickle": lambda program: program,
            "zip": lambda program: zipped({**zip_parts(SMALL), "archive/data.pkl": program}),
            "old PyTorch": lambda program: _old_start() + program,
        }.items()
    },
    "safetensors with no header": lambda: safetensors_file(b""),
    "safetensors with half a header": lambda: safetensors_file(b'{"a":', length=5),
    "safetensors with a header of 10^18 bytes": lambda: safetensors_file(b"{}", length=10**18),
    "safetensors with a deep header": lambda: safetensors_file(b'{"a":' * 10_000),
    "safetensors with a list": lambda: safetensors_file(b"{ []"),
    "safetensors with overlapping tensors": lambda: _tensors(("a", [4], 0, 16), ("b", [4], 8, 24), size=24),
    "safetensors with a gap": lambda: _tensors(("a", [4], 8, 24), size=24),
    "safetensors with an offset past the end": lambda: _tensors(("a", [4], 0, 16), size=8),
    "safetensors with a negative offset": lambda: _tensors(("a", [4], -16, 0), size=16),
    "safetensors with terabytes": lambda: _tensors(("a", [10**12], 0, 4 * 10**12), size=16),
    "safetensors with a shape that overflows": lambda: _tensors(("a", [2**62, 4], 0, 0), size=0),
    "safetensors with another size": lambda: _tensors(("a", [5], 0, 16), size=16),
    "safetensors with an unknown type": lambda: _tensors(("a", [4], 0, 16), size=16, kind="X9"),
    "safetensors with a key twice": lambda: safetensors_file(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "safetensors without tensors": lambda: safetensors_file(b'{"__metadata__":{"config":"{"}}'),
    "safetensors with odd facts": lambda: save(SMALL, metadata={"config": "[" * 100_000}),
    "a page": lambda: b"<!DOCTYPE html><html></html>",
    "a pointer of Git LFS": lambda: b"version https://git-lfs.github.com/spec/v1\n",
    "gzip": lambda: b"\x1f\x8b\x08\x00" + bytes(100),
    "tar": lambda: bytes(257) + b"ustar" + bytes(300),
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(100),
}


def _old_start() -> bytes:
    """Return the pickles of an old PyTorch file before that of the value."""
    content = torch_file(SMALL, old=True)
    return content[: content.index(b"\x80", 60)]


def _doubled(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value, "b": value}
    return value


def _array_pickle(shape: tuple[int, ...]) -> bytes:
    content = pickle.dumps(np.zeros((7919,), np.uint8), protocol=2)
    return content.replace(pickle.dumps((7919,), 2)[2:-3], pickle.dumps(shape, 2)[2:-3])


def _tensors(*tensors: tuple[str, list[int], int, int], size: int, kind: str = "F32") -> bytes:
    header = {name: {"dtype": kind, "shape": shape, "data_offsets": [a, b]} for name, shape, a, b in tensors}
    return safetensors_file(json.dumps(header).encode(), bytes(size))


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(kind: str, capfd: Capture) -> None:
    Path("weights").write_bytes(CHECKPOINTS[kind]())
    refused(["convert", "weights", "out.safetensors", "--to", "safetensors"], capfd, "checkpoint weights")
    assert not Path("out.safetensors").exists()


def _narrow_with(key: str, value: torch.Tensor) -> bytes:
    state = build_backbone("resnet10_narrow", stem="imagenet").state_dict()
    return save({**state, key: value})


INITIAL: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "half": lambda: save(SMALL)[:50],
    "no backbone": lambda: save(SMALL),
    "no tensors": lambda: safetensors_file(b"{}"),
    "a header of 10^18 bytes": lambda: safetensors_file(b"{}", length=10**18),
    "NaN": lambda: _narrow_with("bn1.weight", torch.full((32,), torch.nan)),
    "1e300": lambda: _narrow_with("bn1.weight", torch.full((32,), 1e300, dtype=torch.float64)),
    "whole numbers": lambda: _narrow_with("bn1.weight", torch.ones(32, dtype=torch.int64)),
    "complex numbers": lambda: _narrow_with("bn1.weight", torch.ones(32, dtype=torch.complex64)),
    "8-bit floats": lambda: _narrow_with("bn1.weight", torch.ones(32).to(torch.float8_e4m3fn)),
    "another shape": lambda: _narrow_with("bn1.weight", torch.ones(33)),
}


@pytest.mark.parametrize("kind", INITIAL)
def test_initial_weights(kind: str, capfd: Capture) -> None:
    Path("w.safetensors").write_bytes(INITIAL[kind]())
    refused(["pretrain", "demo", "data.size=200", "init=w.safetensors"], capfd, "w.safetensors")


# ---- what is no regular file


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "absent", "loop", "socket"])
@pytest.mark.parametrize(
    "place", ["checkpoint", "npz", "image", "classes", "list", "annotations", "xml", "voc image", "record"]
)
def test_what_is_no_regular_file(kind: str, place: str, weights: str, capfd: Capture) -> None:
    """A reader of a pipe or of /dev/zero never ends."""
    images = ["data.kind=imagefolder", "data.root=images", "data.name=tiny"]
    path, command = {
        "checkpoint": ("w", ["convert", "w", "out.safetensors", "--to", "safetensors"]),
        "npz": ("w", ["pretrain", "demo", "data.kind=npz", "data.root=w"]),
        "image": ("images/train/a/a_0.JPEG", ["knn", weights, *images, "workers=0", "k=1"]),
        "classes": ("w", ["pretrain", "demo", *images, "data.classes=w"]),
        "list": ("w", ["finetune", weights, *images, "file_list=w"]),
        "annotations": ("coco/annotations/instances_train2017.json", COCO(weights)),
        "xml": ("voc/VOC2007/Annotations/000005.xml", VOC(weights)),
        "record": ("results/records/linear/x.json", ["tables"]),
        "voc image": ("voc/VOC2007/JPEGImages/000005.jpg", VOC(weights)),
    }[place]
    file_cases.image_folder(Path("images"))
    file_cases.coco_folder(Path("coco"))
    file_cases.voc_folder(Path("voc"))
    Path("results/records/linear").mkdir(parents=True)
    Path(path).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        os.symlink("/dev/zero", path)
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "loop":
        os.symlink(Path(path).name, path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(path)
    if kind in ("absent", "folder") and place in ("image", "record"):
        pytest.skip("not listed, or a folder of other tasks")
    refused(command, capfd, Path(path).name)


# ---- packs


def _index(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Change the header of an index and forge its digest."""

    def apply(folder: Path) -> None:
        path = folder / "train.index"
        line, _, rest = path.read_bytes().partition(b"\n")
        header = json.loads(line)
        change(header)
        files.write_digested(path, lambda stream: stream.write(json.dumps(header).encode() + b"\n" + rest))

    return apply


def _rows(change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    """Change the records of an index and forge its digest."""

    def apply(folder: Path) -> None:
        path = folder / "train.index"
        line, _, rest = path.read_bytes().partition(b"\n")
        record = pack._record(json.loads(line)["name_bytes"])
        count = json.loads(line)["images"]
        images = np.frombuffer(rest[: count * record.itemsize], record).copy()
        change(images)
        content = line + b"\n" + images.tobytes() + rest[images.nbytes :]
        files.write_digested(path, lambda stream: stream.write(content))

    return apply


def _cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


PACKS: dict[str, Callable[[Path], None]] = {
    "no index": lambda folder: (folder / "train.index").unlink(),
    "no pack": lambda folder: (folder / "train.pack").unlink(),
    "an empty index": _cut("train.index", 0),
    "a short index": _cut("train.index", 100),
    "an empty pack": _cut("train.pack", 0),
    "a short pack": _cut("train.pack", 100),
    "a pack that is a folder": lambda folder: ((folder / "train.pack").unlink(), (folder / "train.pack").mkdir())[1],
    "an index that is a folder": lambda folder: ((folder / "train.index").unlink(), (folder / "train.index").mkdir())[
        1
    ],
    "an index of zeros": lambda folder: (folder / "train.index").write_bytes(bytes(1000)) and None,
    "10^12 images": _index(lambda header: header.update(images=10**12)),
    "no images": _index(lambda header: header.update(images=0)),
    "-1 images": _index(lambda header: header.update(images=-1)),
    "images of text": _index(lambda header: header.update(images="a")),
    "names of 10^12 bytes": _index(lambda header: header.update(name_bytes=10**12)),
    "names of -1 bytes": _index(lambda header: header.update(name_bytes=-1)),
    "another format": _index(lambda header: header.update(format="intl-bench pack 99")),
    "no classes": _index(lambda header: header.pop("classes")),
    "too few classes": _index(lambda header: header.update(classes=["a"])),
    "classes of text": _index(lambda header: header.update(classes="a")),
    "an image of 10^15 bytes": _rows(lambda images: images["size"].put(1, 10**15)),
    "an image at 2^64": _rows(lambda images: images["offset"].put(1, 2**64 - 1)),
    "a last image at 2^64": _rows(lambda images: images["offset"].put(-1, 2**64 - 1)),
    "an image of an unknown class": _rows(lambda images: images["label"].put(0, 7)),
}


@pytest.mark.parametrize("kind", PACKS)
def test_packs(kind: str, capfd: Capture) -> None:
    folder = file_cases.packs(Path("p"))
    capfd.readouterr()
    PACKS[kind](folder)
    refused(["pretrain", "demo", "data.kind=imagefolder", "data.root=p/packs", "data.name=tiny"], capfd, "train.")


# ---- random values at random places of valid JSON

VALUES = (
    *(None, True, 0, 1, -1, 2**31, 2**63, 10**30, 10**400, 1.5, 1e308, float("nan"), float("inf"), "", "a", "\x1b"),
    *([], [[]], {}, [1], [1, 2, 3, 4], [[1] * 6], _nested(60), {"size": [32, 32], "counts": [1024]}),
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (parent, key) of all values inside a value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in list(keys) for place in ((value, key), *_places(value[key]))]


def _changed(document: Any, random: Random) -> Any:
    """Return a copy of a document with one to three values replaced or removed."""
    document = copy.deepcopy(document)
    for _ in range(random.randint(1, 3)):
        parent, key = random.choice(_places(document) or [({0: 0}, 0)])
        if random.random() < 0.8:
            parent[key] = copy.deepcopy(random.choice(VALUES))
        else:
            del parent[key]
    return document


few = hypothesis.settings(
    max_examples=2000 if torture.LONG else 60,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.generate],
)


@pytest.mark.parametrize(
    "split", [pytest.param(split, marks=[pytest.mark.slow] * torture.LONG) for split in ("train", "test")]
)
@few
@hypothesis.given(random=st.randoms(use_true_random=False))
def test_any_values_in_annotations_are_an_error_or_harmless(split: str, random: Random) -> None:
    if not Path("coco").exists():
        file_cases.coco_folder(Path("coco"))
    name = {"train": "instances_train2017.json", "test": "instances_val2017.json"}[split]
    (Path("coco/annotations") / name).write_text(json.dumps(_changed(file_cases.coco_document(), random)))
    with contextlib.suppress(InputError):
        read_split(AnnotatedDataConfig(root="coco", name="tiny"), split, masks=True)


@hypothesis.settings(few, max_examples=100 if torture.LONG else 30)
@hypothesis.given(random=st.randoms(use_true_random=False))
def test_any_facts_in_a_backbone_are_an_error_or_harmless(weights: str, random: Random) -> None:
    content = Path(weights).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    facts = json.loads(header["__metadata__"]["config"])
    header["__metadata__"] = {"config": json.dumps(_changed(facts, random)), seals.KEY: seals.UNSET}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    files.write_digested(
        Path("w.safetensors"), lambda stream: stream.write(len(text).to_bytes(8, "little") + text + content[start:])
    )
    with contextlib.suppress(InputError):
        convert.read("w.safetensors")


# ---- random damage


def _read_checkpoint(path: Path) -> None:
    content = safe_load.read(path)
    extract(find(content), path)


def _read_images(path: Path) -> None:
    source = open_source(DataConfig(root=str(path.parents[2]), name="tiny"), "train")
    for index in range(len(source)):
        source.image(index)


def _read_coco(path: Path) -> None:
    read_split(AnnotatedDataConfig(root=str(path.parents[1]), name="tiny"), "train", masks=True)


def _read_voc(path: Path) -> None:
    lists = ("VOC2007/ImageSets/Main/trainval.txt",)
    read_split(AnnotatedDataConfig(kind="voc", root=str(path.parents[2]), name="x", train=lists), "train", masks=False)


def _read_npz(path: Path) -> None:
    open_source(DataConfig(kind="npz", root=str(path), name="tiny"), "train")


def _read_pack(path: Path) -> None:
    source = open_source(DataConfig(root=str(path.parent), name="tiny"), "train")
    for index in range(len(source)):
        source.image(index)


def _one_image(folder: Path, kind: str) -> Path:
    path = file_cases.image_folder(folder) / "train" / "a" / "a_0.JPEG"
    path.write_bytes(image(kind))
    return path


def _checkpoint(folder: Path, kind: str) -> Path:
    (folder / "w").write_bytes(WHOLE[kind]())
    return folder / "w"


def _npz_file(folder: Path, compressed: bool) -> Path:
    (folder / "d.npz").write_bytes(file_cases.npz(file_cases.arrays(), compressed=compressed))
    return folder / "d.npz"


MUTATED: dict[str, tuple[Callable[[Path], Path], Callable[[Path], None]]] = {
    **{kind: (lambda f, kind=kind: _checkpoint(f, kind), _read_checkpoint) for kind in WHOLE},  # type: ignore[misc]
    **{
        kind: (lambda f, kind=kind: _one_image(f / "i", kind), _read_images)  # type: ignore[misc]
        for kind in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
    },
    "npz": (lambda f: _npz_file(f, False), _read_npz),
    "compressed npz": (lambda f: _npz_file(f, True), _read_npz),
    "COCO": (lambda f: file_cases.coco_folder(f / "c") / "annotations" / "instances_train2017.json", _read_coco),
    "VOC": (lambda f: file_cases.voc_folder(f / "v") / "VOC2007" / "Annotations" / "000005.xml", _read_voc),
    "index": (lambda f: file_cases.packs(f / "p") / "train.index", _read_pack),
    "pack": (lambda f: file_cases.packs(f / "p") / "train.pack", _read_pack),
}


@st.composite
def _mutations(draw: st.DrawFn, content: bytes) -> bytes:
    """Return content with a few changes: bytes replaced, removed, inserted or repeated, and numbers made huge."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        end = at + draw(st.sampled_from([1, 1, 2, 4, 8, 64, 10**6]))
        piece = draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from(
                    [b"", b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 3, bytes(8), b"9" * 30, b"-1", b"["]
                ),
                st.just(bytes(changed[at:end])[:64] * 3),
            )
        )
        keep = draw(st.booleans())
        changed[at : at if keep else end] = piece
    return bytes(changed)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * torture.LONG) for kind in MUTATED])
def test_random_damage_is_an_error_or_harmless(kind: str, tmp_path: Path, capfd: Capture) -> None:
    write, read = MUTATED[kind]
    path = write(tmp_path)
    content = path.read_bytes()

    @hypothesis.settings(
        max_examples=-(-MUTATIONS // len(MUTATED)),
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(_mutations(content))
    def check(damaged: bytes) -> None:
        path.unlink()  # a reader may have the file mapped
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            read(path)

    check()
