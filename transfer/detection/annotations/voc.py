"""Reader of PASCAL VOC's annotations (VOCdevkit): lists of image names, and one XML file per image."""

import collections
import contextlib
import hashlib
import math
import os
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from intl_bench.core import inputs
from intl_bench.core.datasets import DATASETS
from intl_bench.core.errors import InputError
from intl_bench.core.inputs import shorten
from pretrain.images.decode import LARGEST
from transfer.detection.annotations import geometry
from transfer.detection.annotations.categories import normalize
from transfer.detection.annotations.documents import decode_xml
from transfer.detection.annotations.faults import Faults
from transfer.detection.annotations.file_names import Spellings, is_safe
from transfer.detection.annotations.image_sizes import check_image_sizes
from transfer.detection.annotations.objects import BOX_TOLERANCE, Annotations

CLASS_NAMES = DATASETS["voc0712"].class_names
_LONGEST = 200  # characters of an image name
_SHOWN = 20  # classes in a message
_SUFFIXES = tuple(suffix for name in IMG_EXTENSIONS for suffix in (name, name.upper()))
_REMEDY = "correct it, or remove the object"
_FLAGS = {"0": False, "1": True, "false": False, "true": True}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def find_class_names(lists: list[Path]) -> tuple[str, ...]:
    """Return the names of all objects in the images of the lists, sorted; `read_voc` reports the faults of the files.

    Raises:
        InputError: a list cannot be read.
    """
    reader, names = _Reader(()), set[str]()
    for path in lists:
        year = Path(os.path.abspath(path)).parents[2]
        for image in reader.read_list(path, year):
            _, tree = reader.read_tree(year, image)
            names |= {_class_name(item) for item in tree.findall("object")} if tree is not None else set()
    return tuple(sorted(names - {""}))


def read_voc(
    lists: list[Path],
    root: Path,
    *,
    name: str,
    class_names: tuple[str, ...] = CLASS_NAMES,
    clip: bool = False,
    max_pixels: int = LARGEST,
) -> Annotations:
    """Read and check the images of all lists with their objects of the given classes, as in Detectron2.

    VOC counts pixels from 1, and xmax and ymax are the last pixels of a box. So 1 is subtracted from xmin and ymin.
    Difficult objects are kept, because Detectron2 trains on them and the metric needs them.

    Args:
        lists: files such as VOC2007/ImageSets/Main/trainval.txt, with one image name per line.
        root: the folder VOCdevkit, which the names of image files are relative to.
        name: name of the data set.
        class_names: the classes. With other ones than VOC's, the image files may have other suffixes than `.jpg`.
        clip: whether boxes may be beyond their image; training clips them.
        max_pixels: of an image.

    Returns:
        The images in the order of the lists. Their ids are 0, 1, 2, ...

    Raises:
        InputError: lists, XML files or image files are missing or invalid. The message has all kinds of faults, with
            their numbers and first entries.
    """
    reader = _Reader(class_names)
    faults, files, sizes, owners = reader.faults, list[str](), list[tuple[int, int]](), list[int]()
    for path in lists:
        year = Path(os.path.abspath(path)).parents[2]
        for image in reader.read_list(path, year):
            sizes.append(reader.read_xml(year, image))
            owners += [len(files)] * (len(reader.objects) - len(owners))
            files.append(os.path.relpath(reader.find_picture(year, image), os.path.abspath(root)))
    if not files:
        faults.raise_any()
    for again in [file for file, count in collections.Counter(files).items() if count > 1]:
        text = f"{root / again}: listed twice in {', '.join(map(str, lists))}; expected each image once"
        faults.add("twice", text, "remove the second line", [again])
    known = np.flatnonzero(np.array(sizes).min(1) > 0)  # an image without a size has a fault already
    chosen = [files[i] for i in known]
    found, _ = check_image_sizes(faults, root, chosen, chosen, np.array(sizes)[known], max_pixels)
    for index, file in zip(known.tolist(), found, strict=True):
        files[index] = file
    boxes = np.array([item.box for item in reader.objects], np.float64).reshape(-1, 4)
    notes = _check_boxes(reader, boxes, np.array(sizes)[owners], clip)
    faults.raise_any()
    bounds = np.searchsorted(owners, np.arange(len(files) + 1))
    return Annotations(
        name=name,
        path=lists[0],
        sha256=reader.digest.hexdigest(),
        folder=root,
        category_ids=tuple(range(1, len(class_names) + 1)),
        category_names=class_names,
        notes=notes,
        image_ids=np.arange(len(files)),
        heights=np.array(sizes)[:, 1],
        widths=np.array(sizes)[:, 0],
        file_names=np.array([os.fsencode(file) for file in files]),
        first=bounds[:-1],
        last=bounds[1:],
        annotation_ids=np.arange(1, len(boxes) + 1),
        classes=np.array([item.class_index for item in reader.objects], np.int64),
        boxes=boxes,
        crowd=np.zeros(len(boxes), bool),
        difficult=np.array([item.difficult for item in reader.objects], bool),
        outlines=None,
    )


def describe_classes(class_names: tuple[str, ...]) -> str:
    """Return a line about classes that were found in files, for people to see a wrong one."""
    return f"{len(class_names)} classes, found in the files of the training images: {_join(class_names)}"


def _join(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(shorten(name) for name in names[:_SHOWN]) + more


def _class_name(tree: ElementTree.Element) -> str:
    """Return the class of an object; "" if it has none."""
    return normalize(tree.findtext("name") or "")


class _Object(NamedTuple):
    """An annotated object.

    Attributes:
        where: file, number and class, for messages.
        box: x0, y0, x1, y1, counted from 0.
    """

    where: str
    class_index: int
    box: list[float]
    difficult: bool


def _check_boxes(reader: "_Reader", boxes: np.ndarray, sizes: np.ndarray, clip: bool) -> list[str]:
    """Compare boxes (m, 4) with their images of `sizes` (m, 2), width and height. Report faults and return notes."""
    if not len(boxes):
        return []
    names, notes = [item.where for item in reader.objects], []
    empty = (boxes[:, :2] >= boxes[:, 2:]).any(1)

    def found(index: int) -> str:
        x0, y0, x1, y1 = boxes[index].tolist()
        return f"bndbox: {x0 + 1:g}, {y0 + 1:g}, {x1:g}, {y1:g}"

    if empty.any():
        first = int(np.flatnonzero(empty)[0])
        cause = geometry.find_box_cause(boxes, sizes, geometry.CORNERS)
        text = f"{names[first]}: {found(first)}; expected xmin <= xmax and ymin <= ymax{_hint(cause)}"
        reader.faults.add("order", text, _REMEDY, [names[i] for i in np.flatnonzero(empty)[:10]], int(empty.sum()))
    kept = np.flatnonzero(~empty & (sizes > 0).all(1))
    for finding in geometry.check_boxes(boxes[kept], sizes[kept], geometry.CORNERS, clip=clip):
        objects = kept[finding.objects]
        first, count = int(objects[0]), len(objects)
        if finding.fault:
            width, height = sizes[first].tolist()
            expected = f"expected a box inside the image of {width} x {height} pixels, in pixels{_hint(finding.cause)}"
            text = f"{names[first]}: {found(first)}; {expected}"
            reader.faults.add(finding.kind, text, _REMEDY, [names[i] for i in objects[:10]], count)
        else:
            hint = _hint(finding.cause)
            notes.append(f"{finding.kind}: {count}, the first is in {names[first]}, {found(first)}{hint}")
    beyond = np.maximum(-boxes[:, :2], boxes[:, 2:] - sizes).max(1)
    if clipped := int(((beyond > 0) & (beyond <= BOX_TOLERANCE)).sum()):
        notes.insert(0, f"boxes up to {BOX_TOLERANCE:g} pixel outside their image, clipped: {clipped}")
    return notes


def _hint(cause: str) -> str:
    return f" (likely cause: {cause})" if cause else ""


class _Reader:
    """Reads lists and XML files.

    Attributes:
        class_names: the classes that objects may have.
        faults: all faults so far.
        digest: of the digests of all files that were read.
        objects: of all XML files, one after the other.
    """

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self.class_names = class_names
        self.faults, self.digest = Faults(""), hashlib.sha256()
        self.objects: list[_Object] = []
        self._spellings: dict[Path, Spellings] = {}

    def read_list(self, path: Path, year: Path) -> list[str]:
        """Read the image names of a list of the folder `year`."""
        content = self._read(path, f"the list of images {path}")
        try:
            lines = [line.strip() for line in inputs.decode_text(content).splitlines()]
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text; expected VOC's list of images; restore the file") from error
        names = []
        for number, line in enumerate(lines, start=1):
            wrong = not is_safe(line) or os.sep in line or len(line) > _LONGEST
            # A list of one class has a second word, 1, 0 or -1. A name may have spaces too.
            if line and (wrong or (len(line.split()) > 1 and not self._find(year, line))):
                text = f"{path}: line {number}: {shorten(line)}; expected one image name per line"
                remedy = "use a list such as trainval.txt or test.txt"
                self.faults.add(("line", path), text, remedy, [f"line {number}"])
            elif line:
                names.append(line)
        if not any(lines):
            text = f"{path}: no image names; expected one image name per line"
            self.faults.add(("empty", path), text, "use another list", [str(path)])
        return names

    def find_picture(self, year: Path, image: str) -> Path:
        """Return the file of an image."""
        path = year / "JPEGImages" / f"{image}.jpg"
        if self.class_names != CLASS_NAMES and not path.exists():
            for suffix in _SUFFIXES:
                if (other := path.with_name(f"{image}{suffix}")).exists():
                    return other
        return path

    def read_tree(self, year: Path, image: str) -> tuple[Path, ElementTree.Element | None]:
        """Read the XML file of an image. Return its path, and its content if it is valid."""
        found = self._find(year, image)
        path = found[0] if found else year / "Annotations" / f"{image}.xml"
        if len(found) > 1:
            text = f"{shorten(image)} can mean {' and '.join(map(str, found))}; expected one file"
            self._refuse("spelling", text, "correct the name in the list", image)
            return path, None
        try:
            text = decode_xml(self._read(path, f"the annotations {path}"))
            if "<!" in text.replace("<!--", ""):  # entities can read other files and expand without limit
                raise ValueError("declares a document type or entities; expected VOC's XML, which has neither")
            return path, ElementTree.fromstring(text)
        except InputError as error:
            self._refuse(str(error).rpartition(": ")[2], str(error), "restore the file", path)
        except (ElementTree.ParseError, ValueError) as error:
            kind = "not complete XML" if isinstance(error, ElementTree.ParseError) else str(error)
            reason = f"not complete XML: {error}" if kind == "not complete XML" else kind
            self._refuse(kind, f"{path}: {reason}", "restore the file", path)
        return path, None

    def read_xml(self, year: Path, image: str) -> tuple[int, int]:
        """Read the objects of an image, and return its width and height; (0, 0) if they are not valid."""
        path, tree = self.read_tree(year, image)
        if tree is None:
            return 0, 0
        size = []
        for field in ("width", "height"):
            value = self._read_number(path, tree, f"size/{field}", "size")
            if value is not None and (value < 1 or value != int(value)):
                text = f"{path}: size/{field}: {value:g}; expected a positive whole number of pixels"
                self._refuse("size", text, "correct it", path)
                value = None
            size.append(int(value or 0))
        for number, item in enumerate(tree.findall("object"), start=1):
            self._read_object(path, item, number)
        return (size[0], size[1]) if all(size) else (0, 0)

    def _read_object(self, path: Path, tree: ElementTree.Element, number: int) -> None:
        """Read object `number`, counted from 1."""
        name = _class_name(tree)
        where = f"object {number}"
        if name not in self.class_names:
            published = self.class_names == CLASS_NAMES
            of = "VOC's twenty classes" if published else f"the training images' classes ({_join(self.class_names)})"
            remedy = "correct it, or take the classes of your own files with data.name=NAME" if published else _REMEDY
            text = f"{path}: {where}: name: {shorten(name)}; expected one of {of}"
            self._refuse("name", text, remedy, f"{path.name} {where}")
            return
        where = f"{where} ({name})"
        corners = [self._read_number(path, tree, f"bndbox/{field}", where) for field in _CORNERS]
        difficult = (tree.findtext("difficult") or "0").strip().lower()
        if difficult not in _FLAGS:
            text = f"{path}: {where}: difficult: {shorten(tree.findtext('difficult'))}; expected 0 or 1"
            self._refuse("difficult", text, "correct it", f"{path.name} {where}")
        if difficult in _FLAGS and None not in corners:
            x0, y0, x1, y1 = (value or 0.0 for value in corners)
            box = [x0 - 1.0, y0 - 1.0, x1, y1]
            self.objects.append(_Object(f"{path}: {where}", self.class_names.index(name), box, _FLAGS[difficult]))

    def _read_number(self, path: Path, tree: ElementTree.Element, field: str, where: str) -> float | None:
        """Read a finite number from an element below `tree`; `where` is for messages. None if it is not valid."""
        text = tree.findtext(field)
        with contextlib.suppress(ValueError):
            if math.isfinite(value := float(text or "")):
                return value
        found = "missing" if text is None else shorten(text.strip())
        message = f"{path}: {where}: {field}: {found}; expected a finite number of pixels"
        self._refuse("number", message, "correct it", f"{path.name} {where}")
        return None

    def _refuse(self, kind: str, text: str, remedy: str, entry: object) -> tuple[int, int]:
        self.faults.add(kind, text, remedy, [str(entry)])
        return 0, 0

    def _find(self, year: Path, image: str) -> list[Path]:
        """Return the XML files that an image of a list can mean, which may be spelled differently."""
        folder = year / "Annotations"
        path = folder / f"{image}.xml"
        if path.exists():
            return [path]
        return [folder / name for name in self._spellings.setdefault(folder, Spellings(folder)).find(f"{image}.xml")]

    def _read(self, path: Path, what: str) -> bytes:
        """Read a file and add the SHA-256 of its bytes to the digest."""
        content = inputs.read_bytes(path, what)
        self.digest.update(hashlib.sha256(content).digest())
        return content
