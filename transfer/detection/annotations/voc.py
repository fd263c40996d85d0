"""PASCAL VOC's annotations (VOCdevkit): lists of image names, and one XML file an image."""

import hashlib
import math
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from intl_bench.core.datasets import PAPER
from intl_bench.core.errors import InputError, from_os_error
from transfer.detection.annotations import image_sizes
from transfer.detection.annotations.objects import BOX_TOLERANCE, Annotations

CLASS_NAMES = PAPER["voc0712"].class_names
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read(lists: list[Path], root: Path, *, name: str) -> Annotations:
    """The images of all lists in their order, with objects of the twenty classes, as Detectron2 takes them.

    A box's xmin and ymin count pixels from 1 on and xmax and ymax include the last one, so 1 is subtracted from the
    former two. Objects marked as difficult are kept, for Detectron2 trains on them too and the metric wants them.

    Args:
        lists: files such as VOC2007/ImageSets/Main/trainval.txt, with one image name a line.
        root: VOCdevkit; the image files' names start from here.

    Returns:
        Annotations whose image ids count the images from 0 on, in the lists' order.

    Raises:
        InputError: a list, an XML file or an image file is not as the format demands; the first problem, in one line.
    """
    files, sizes, counts, objects = list[str](), list[tuple[int, int]](), [0], list[_Object]()
    digest = hashlib.sha256()
    for path in lists:
        year = Path(os.path.abspath(path)).parents[2]
        for image in _names(path, digest):
            xml = year / "Annotations" / f"{image}.xml"
            size, found = _read_xml(xml, digest)
            files.append(os.path.relpath(year / "JPEGImages" / f"{image}.jpg", os.path.abspath(root)))
            sizes.append(size)
            objects += found
            counts.append(len(objects))
    if len({*files}) < len(files):
        twice = next(file for i, file in enumerate(files) if file in files[:i])
        raise InputError(f"{root / twice}: listed twice in {', '.join(map(str, lists))}; expected each image once")
    image_sizes.check(lists[0], root, files, files, np.array(sizes))
    boxes = np.array([box for _, box, _ in objects], np.float64).reshape(-1, 4)
    owner = np.repeat(np.arange(len(files)), np.diff(counts))
    notes = []
    if clipped := int((np.maximum(-boxes[:, :2], boxes[:, 2:] - np.array(sizes)[owner]) > 0).any(1).sum()):
        notes.append(f"boxes up to {BOX_TOLERANCE:g} pixel outside their image, clipped: {clipped}")
    return Annotations(
        name=name,
        path=lists[0],
        sha256=digest.hexdigest(),
        folder=root,
        category_ids=tuple(range(1, len(CLASS_NAMES) + 1)),
        category_names=CLASS_NAMES,
        notes=notes,
        image_ids=np.arange(len(files)),
        heights=np.array(sizes)[:, 1],
        widths=np.array(sizes)[:, 0],
        file_names=np.array([os.fsencode(file) for file in files]),
        first=np.array(counts[:-1]),
        last=np.array(counts[1:]),
        annotation_ids=np.arange(1, len(objects) + 1),
        classes=np.array([class_index for class_index, _, _ in objects], np.int64),
        boxes=boxes,
        crowd=np.zeros(len(objects), bool),
        difficult=np.array([difficult for _, _, difficult in objects], bool),
        outlines=None,
    )


# Class index, corners, difficult.
_Object = tuple[int, list[float], bool]


def _names(path: Path, digest: Any) -> list[str]:
    lines = _text(path, "list of images", digest).splitlines()
    names = []
    for number, line in enumerate(lines, start=1):
        if len(line.split()) > 1 or os.sep in line or not line.isprintable():
            raise InputError(
                f"{path}: line {number}: {_show(line)}; expected one image name a line, as in trainval.txt or test.txt"
            )
        names += line.split()
    if not names:
        raise InputError(f"{path}: no image names in it; expected one a line")
    return names


def _read_xml(path: Path, digest: Any) -> tuple[tuple[int, int], list[_Object]]:
    """Width and height, and the objects."""
    text = _text(path, "annotations", digest)
    if "<!" in text.replace("<!--", ""):  # entities can read other files and grow without bound
        raise InputError(f"{path}: declares a document type or entities; expected VOC's plain XML without any")
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path}: not complete XML ({error}); restore the file") from error
    width, height = (_number(path, tree, f"size/{field}", "size") for field in ("width", "height"))
    for field, value in (("width", width), ("height", height)):
        if value < 1 or value != int(value):
            raise InputError(f"{path}: size/{field}: {value:g}; expected a positive whole number of pixels")
    size = int(width), int(height)
    return size, [_object(path, one, i, size) for i, one in enumerate(tree.findall("object"), start=1)]


def _object(path: Path, tree: ElementTree.Element, number: int, size: tuple[int, int]) -> _Object:
    name = (tree.findtext("name") or "").strip()
    where = f"object {number}"
    if name not in CLASS_NAMES:
        raise InputError(f"{path}: {where}: name: {_show(name)}; expected one of VOC's twenty classes; correct it")
    where = f"{where} ({name})"
    x0, y0, x1, y1 = (_number(path, tree, f"bndbox/{field}", where) for field in _CORNERS)
    box = [x0 - 1.0, y0 - 1.0, x1, y1]
    if box[0] >= x1 or box[1] >= y1:
        raise InputError(
            f"{path}: {where}: bndbox: {x0:g}, {y0:g}, {x1:g}, {y1:g}; expected xmin <= xmax and ymin <= ymax; "
            "correct it, or take the object out"
        )
    if max(-box[0], -box[1], x1 - size[0], y1 - size[1]) > BOX_TOLERANCE:
        raise InputError(
            f"{path}: {where}: bndbox: {x0:g}, {y0:g}, {x1:g}, {y1:g}; expected a box inside the image of "
            f"{size[0]} x {size[1]} pixels; correct it, or take the object out"
        )
    difficult = (tree.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise InputError(f"{path}: {where}: difficult: {_show(difficult)}; expected 0 or 1; correct it")
    return CLASS_NAMES.index(name), box, difficult == "1"


def _number(path: Path, tree: ElementTree.Element, field: str, where: str) -> float:
    text = tree.findtext(field)
    found = "missing" if text is None else _show(text.strip())
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}: {where}: {field}: {found}; expected a finite number of pixels; correct it")
    return value


def _text(path: Path, what: str, digest: Any) -> str:
    try:
        content = path.read_bytes()
        digest.update(hashlib.sha256(content).digest())
        return content.decode()
    except OSError as error:
        raise from_os_error(error, f"cannot read the {what} {path}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; expected VOC's {what}; restore the file") from error


def _show(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
