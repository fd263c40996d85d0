"""Reader of PASCAL VOC's annotations (VOCdevkit): lists of image names, and one XML file per image."""

import hashlib
import math
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from intl_bench.core import inputs
from intl_bench.core.datasets import DATASETS
from intl_bench.core.errors import InputError
from intl_bench.core.inputs import shorten
from transfer.detection.annotations.image_sizes import check_image_sizes
from transfer.detection.annotations.objects import BOX_TOLERANCE, Annotations

CLASS_NAMES = DATASETS["voc0712"].class_names
_LONGEST = 200  # characters of an image name
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


# Class index, corners, difficult.
_Object = tuple[int, list[float], bool]


def read_voc(lists: list[Path], root: Path, *, name: str) -> Annotations:
    """Read and check the images of all lists with their objects of the twenty classes, as in Detectron2.

    VOC counts pixels from 1, and xmax and ymax are the last pixels of a box. So 1 is subtracted from xmin and ymin.
    Difficult objects are kept, because Detectron2 trains on them and the metric needs them.

    Args:
        lists: files such as VOC2007/ImageSets/Main/trainval.txt, with one image name per line.
        root: the folder VOCdevkit, which the names of image files are relative to.
        name: name of the data set.

    Returns:
        The images in the order of the lists. Their ids are 0, 1, 2, ...

    Raises:
        InputError: a list, an XML file or an image file is missing or invalid. The message names the first problem.
    """
    files, sizes, counts, objects = list[str](), list[tuple[int, int]](), [0], list[_Object]()
    digest = hashlib.sha256()
    for path in lists:
        year = Path(os.path.abspath(path)).parents[2]
        for image in _read_list(path, digest):
            xml = year / "Annotations" / f"{image}.xml"
            size, found = _read_xml(xml, digest)
            files.append(os.path.relpath(year / "JPEGImages" / f"{image}.jpg", os.path.abspath(root)))
            sizes.append(size)
            objects += found
            counts.append(len(objects))
    if len({*files}) < len(files):
        repeated = next(file for i, file in enumerate(files) if file in files[:i])
        raise InputError(f"{root / repeated}: listed twice in {', '.join(map(str, lists))}; expected each image once")
    check_image_sizes(lists[0], root, files, files, np.array(sizes))
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


def _read_list(path: Path, digest: Any) -> list[str]:
    """Read the image names of a list and add its bytes to `digest`."""
    lines = _read_text(path, "list of images", digest).splitlines()
    names = []
    for number, line in enumerate(lines, start=1):
        if len(line.split()) > 1 or os.sep in line or not line.isprintable() or len(line) > _LONGEST:
            raise InputError(
                f"{path}: line {number}: {shorten(line)}; expected one image name per line; use a list such as "
                "trainval.txt or test.txt"
            )
        names += line.split()
    if not names:
        raise InputError(f"{path}: no image names; expected one image name per line")
    return names


def _read_xml(path: Path, digest: Any) -> tuple[tuple[int, int], list[_Object]]:
    """Read (width, height) and the objects of an image, and add the bytes of the file to `digest`."""
    text = _read_text(path, "annotations", digest)
    if "<!" in text.replace("<!--", ""):  # entities can read other files and expand without limit
        raise InputError(f"{path}: declares a document type or entities; expected VOC's XML, which has neither")
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path}: not complete XML: {error}; restore the file") from error
    width, height = (_read_number(path, tree, f"size/{field}", "size") for field in ("width", "height"))
    for field, value in (("width", width), ("height", height)):
        if value < 1 or value != int(value):
            raise InputError(f"{path}: size/{field}: {value:g}; expected a positive whole number of pixels; correct it")
    size = int(width), int(height)
    return size, [_read_object(path, item, i, size) for i, item in enumerate(tree.findall("object"), start=1)]


def _read_object(path: Path, tree: ElementTree.Element, number: int, size: tuple[int, int]) -> _Object:
    """Read object `number`, counted from 1, of an image of (width, height) `size`."""
    name = (tree.findtext("name") or "").strip()
    where = f"object {number}"
    if name not in CLASS_NAMES:
        raise InputError(f"{path}: {where}: name: {shorten(name)}; expected one of VOC's twenty classes; correct it")
    where = f"{where} ({name})"
    x0, y0, x1, y1 = (_read_number(path, tree, f"bndbox/{field}", where) for field in _CORNERS)
    box = [x0 - 1.0, y0 - 1.0, x1, y1]
    if box[0] >= x1 or box[1] >= y1:
        raise InputError(
            f"{path}: {where}: bndbox: {x0:g}, {y0:g}, {x1:g}, {y1:g}; expected xmin <= xmax and ymin <= ymax; "
            "correct it, or remove the object"
        )
    if max(-box[0], -box[1], x1 - size[0], y1 - size[1]) > BOX_TOLERANCE:
        raise InputError(
            f"{path}: {where}: bndbox: {x0:g}, {y0:g}, {x1:g}, {y1:g}; expected a box inside the image of "
            f"{size[0]} x {size[1]} pixels; correct it, or remove the object"
        )
    difficult = (tree.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise InputError(f"{path}: {where}: difficult: {shorten(difficult)}; expected 0 or 1; correct it")
    return CLASS_NAMES.index(name), box, difficult == "1"


def _read_number(path: Path, tree: ElementTree.Element, field: str, where: str) -> float:
    """Read a finite number from an element below `tree`; `where` is for messages."""
    text = tree.findtext(field)
    found = "missing" if text is None else shorten(text.strip())
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}: {where}: {field}: {found}; expected a finite number of pixels; correct it")
    return value


def _read_text(path: Path, what: str, digest: Any) -> str:
    """Read a text file and add the SHA-256 of its bytes to `digest`; `what` is for messages."""
    content = inputs.read_bytes(path, f"the {what} {path}")
    digest.update(hashlib.sha256(content).digest())
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; expected VOC's {what}; restore the file") from error
