"""Reader of COCO's instances JSON. The whole file is checked before training starts."""

import contextlib
import dataclasses
import gc
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from intl_bench.core import inputs
from intl_bench.core.errors import InputError
from intl_bench.core.inputs import shorten
from transfer.detection import rle
from transfer.detection.annotations.image_sizes import check_image_sizes
from transfer.detection.annotations.objects import BOX_TOLERANCE, Annotations, Outlines

_CORRECT = "correct it, or remove it from the file"
_NUMBER_TYPES = {int, float}
_LARGEST = 2**35  # bytes; the largest known files have 5 GB
_INT64 = np.iinfo(np.int64)


def read_coco(path: Path, folder: Path, *, name: str, masks: bool, evaluated: bool) -> Annotations:
    """Read and check an instances JSON.

    Args:
        path: the JSON file.
        folder: the folder of the image files.
        name: name of the data set.
        masks: whether outlines are needed; if not, they are neither checked nor read.
        evaluated: whether pycocotools will read the file too. It needs more fields of every annotation.

    Returns:
        All images in the order of their ids, as in Detectron2.

    Raises:
        InputError: the file, an entry or an image file is missing or invalid. The message names the first problem.
    """
    with without_garbage_collection():
        document, sha256 = _load(path)
        categories = _Rows(path, document, "categories", "category")
        images = _Rows(path, document, "images", "image")
        annotations = _Rows(path, document, "annotations", "annotation")
        del document
        notes: list[str] = []
        category_ids = categories.ids()
        names = categories.column("name", {str}, "text")
        image_ids = images.ids()
        file_names = _read_file_names(images)
        sizes = np.stack([_read_sides(images, "width"), _read_sides(images, "height")], 1)
        # This check is before that of the objects: else a wrong size would be reported as a box outside the image.
        check_image_sizes(path, folder, image_ids.tolist(), file_names, sizes)
        objects = _read_objects(annotations, image_ids, sizes, category_ids, evaluated, notes)
        outlines = _read_outlines(annotations, sizes[objects["image"]], evaluated, notes) if masks else None
        del categories, images, annotations
    by_id, by_category = np.argsort(image_ids), np.argsort(category_ids)
    place = np.empty_like(by_id)
    place[by_id] = np.arange(len(by_id))
    owner = place[objects["image"]]
    order = np.argsort(owner, kind="stable")
    if outlines is not None:
        order = order[np.diff(outlines.first_part)[order] > 0]  # as in Detectron2, only objects with a valid polygon
    bounds = np.searchsorted(owner[order], np.arange(len(image_ids) + 1))
    return Annotations(
        name=name,
        path=path,
        sha256=sha256,
        folder=folder,
        category_ids=tuple(category_ids[by_category].tolist()),
        category_names=tuple(names[i] for i in by_category),
        notes=notes,
        image_ids=image_ids[by_id],
        heights=sizes[by_id, 1],
        widths=sizes[by_id, 0],
        file_names=np.array([file_name.encode() for file_name in file_names])[by_id],
        first=bounds[:-1],
        last=bounds[1:],
        annotation_ids=objects["id"][order],
        classes=objects["class"][order],
        boxes=objects["box"][order],
        crowd=objects["crowd"][order],
        difficult=np.zeros(len(order), bool),
        outlines=dataclasses.replace(outlines, rows=order) if outlines is not None else None,
    )


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Switch the garbage collector off, because it would scan all objects of a large file again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load(path: Path) -> tuple[dict[str, Any], str]:
    """Read the JSON object and the SHA-256 of the bytes of a file."""
    content = inputs.read_bytes(path, f"the annotations {path}", largest=_LARGEST)
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:  # Python's parser accepts NaN, so a later check can name the entry with the NaN
        document = inputs.parse_json(content, str(path), any_number=True)
    if not isinstance(document, dict):
        raise InputError(
            f"{path}: contains {shorten(document)}; expected an object with images, annotations and categories"
        )
    return document, hashlib.sha256(content).hexdigest()


class _Rows:
    """A list of the file. Each of its rows is a JSON object.

    Attributes:
        key: key of the list in the file, for messages.
        noun: name of one row, for messages.
    """

    def __init__(self, path: Path, document: dict[str, Any], key: str, noun: str) -> None:
        self.path, self.key, self.noun = path, key, noun
        rows = document.get(key)
        if not isinstance(rows, list):
            found = shorten(rows) if key in document else "missing"
            raise InputError(f"{path}: {key}: {found}; expected a list; use an instances JSON of COCO")
        self.rows: list[dict[str, Any]] = rows
        if not rows:
            raise InputError(f"{path}: {key}: an empty list; expected at least one {noun}; use another file")
        other = self._find_other_type(self.rows, {dict})
        if other is not None:
            raise InputError(f"{path}: {key}[{other}]: {shorten(self.rows[other])}; expected an object; {_CORRECT}")

    def error(self, index: int, field: str, found: str, expected: str) -> InputError:
        """Build the error for a field of one row."""
        row_id = self.rows[index].get("id")
        row = f"{self.noun} {row_id}" if type(row_id) is int else f"{self.key}[{index}]"
        return InputError(f"{self.path}: {row}: {field}: {found}; expected {expected}; {_CORRECT}")

    def column(self, field: str, kinds: set[type], expected: str, **default: Any) -> list[Any]:
        """Return a field of all rows.

        Args:
            kinds: the allowed types. `bool` is not an `int` here.
            expected: description of the allowed values, for the message.
            default: value for rows without the field; if it is not given, all rows must have the field.
        """
        if default:
            values = [row.get(field, default["default"]) for row in self.rows]
        else:
            try:
                values = [row[field] for row in self.rows]
            except KeyError as error:
                index = next(i for i, row in enumerate(self.rows) if field not in row)
                raise self.error(index, field, "missing", expected) from error
        other = self._find_other_type(values, kinds)
        if other is not None:
            raise self.error(other, field, shorten(values[other]), expected)
        return values

    def integers(self, field: str, expected: str, **default: int) -> np.ndarray:
        """Return a field of all rows as (rows,) int64. The arguments are those of `column`."""
        values = self.column(field, {int}, expected, **default)
        if max(values) > _INT64.max or min(values) < _INT64.min:
            index = next(i for i, value in enumerate(values) if not _INT64.min <= value <= _INT64.max)
            raise self.error(index, field, shorten(values[index]), f"{expected} of at most 64 bits")
        return np.array(values, np.int64)

    def ids(self) -> np.ndarray:
        """Return the ids of the rows. They must be different."""
        ids = self.integers("id", "a whole number")
        order = np.argsort(ids, kind="stable")
        for index in order[1:][ids[order][1:] == ids[order][:-1]][:1]:
            raise self.error(index, "id", "used twice", f"a different id for each {self.noun}")
        return ids

    @staticmethod
    def _find_other_type(values: list[Any], kinds: set[type]) -> int | None:
        """Return the index of the first value whose type is not in `kinds`, or None."""
        if set(map(type, values)) <= kinds:
            return None
        return next(i for i, value in enumerate(values) if type(value) not in kinds)


def _read_sides(images: _Rows, field: str) -> np.ndarray:
    """Return the widths or the heights of all images, (n,) int64."""
    values = images.integers(field, "a positive whole number of pixels")
    for index in np.flatnonzero(values < 1)[:1]:
        raise images.error(index, field, shorten(int(values[index])), "a positive whole number of pixels")
    return values


def _read_file_names(images: _Rows) -> list[str]:
    """Return the file names of all images. They must be different and inside the image folder."""
    names = images.column("file_name", {str}, "the name of a file in the image folder")
    earlier = set[str]()
    for index, name in enumerate(names):
        if name in earlier:
            found = f"{shorten(name)} is used by another image"
            raise images.error(index, "file_name", found, "one entry for each file")
        earlier.add(name)
        if not name.isprintable() or name.startswith("/") or ".." in name.split("/") or not name.strip("./"):
            raise images.error(index, "file_name", shorten(name), "a file inside the image folder")
    return names


def _read_objects(
    rows: _Rows, image_ids: np.ndarray, sizes: np.ndarray, category_ids: np.ndarray, evaluated: bool, notes: list[str]
) -> dict[str, np.ndarray]:
    """Return the fields of all annotations except the outlines, with indices instead of ids."""
    ids = rows.ids()
    image = _find_indices(rows, "image_id", image_ids, "the id of an image of this file")
    category = _find_indices(rows, "category_id", category_ids, "the id of a category of this file")
    rank = np.argsort(np.argsort(category_ids))
    crowd = rows.integers("iscrowd", "0 or 1", **({} if evaluated else {"default": 0}))
    for index in np.flatnonzero((crowd != 0) & (crowd != 1))[:1]:
        raise rows.error(index, "iscrowd", shorten(int(crowd[index])), "0 or 1")
    ignore = rows.column("ignore", {int}, "0", default=0)
    for index in np.flatnonzero(ignore)[:1]:
        raise rows.error(index, "ignore", shorten(ignore[index]), "0, because COCO's metric uses only iscrowd")
    if evaluated:
        for index in np.flatnonzero(ids == 0)[:1]:
            raise rows.error(index, "id", "0", "a number of at least 1, because 0 means unmatched in pycocotools")
        areas = rows.column("area", _NUMBER_TYPES, "a number of square pixels")
        area = _flatten(rows, "area", [[value] for value in areas])
        for index in np.flatnonzero(~(area >= 0) | np.isinf(area))[:1]:
            raise rows.error(index, "area", shorten(float(area[index])), "a finite number of square pixels, 0 or more")
    boxes = _read_boxes(rows, sizes[image], notes)
    return {"id": ids, "image": image, "class": rank[category], "crowd": crowd == 1, "box": boxes}


def _find_indices(rows: _Rows, field: str, known: np.ndarray, expected: str) -> np.ndarray:
    """Return the index in `known` of the value of each row."""
    values, order = rows.integers(field, expected), np.argsort(known)
    places = order[np.searchsorted(known[order], values).clip(max=len(known) - 1)]
    for index in np.flatnonzero(known[places] != values)[:1]:
        raise rows.error(index, field, f"{values[index]} is not in this file", expected)
    return places


def _read_boxes(rows: _Rows, sizes: np.ndarray, notes: list[str]) -> np.ndarray:
    """Return the boxes (m, 4) float64, x0, y0, x1, y1.

    The values are rounded to float32, because Detectron2 computes the corners in float32.
    """
    expected = "[x, y, width, height] in pixels, four numbers"
    lists = rows.column("bbox", {list}, expected)
    for index in np.flatnonzero(np.fromiter(map(len, lists), np.int64, len(lists)) != 4)[:1]:
        raise rows.error(index, "bbox", shorten(lists[index]), expected)
    boxes = _flatten(rows, "bbox", lists).reshape(-1, 4)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    outside = np.maximum(-low, high - sizes).max(1)
    checks = [
        (~np.isfinite(boxes).all(1), "finite numbers"),
        ((boxes[:, 2:] < 0).any(1), "a width and a height of 0 or more"),
        (outside > BOX_TOLERANCE, "a box [x, y, width, height] inside the image of {0} x {1} pixels"),
    ]
    for bad, expected in checks:
        for index in np.flatnonzero(bad)[:1]:
            raise rows.error(index, "bbox", shorten(lists[index]), expected.format(*sizes[index]))
    if clipped := int((outside > 0).sum()):
        notes.append(f"boxes up to {BOX_TOLERANCE:g} pixel outside their image, clipped: {clipped}")
    if empty := int((boxes[:, 2:] == 0).any(1).sum()):
        notes.append(f"boxes without width or height, not used in training: {empty}")
    corners = boxes.astype(np.float32)
    corners[:, 2:] += corners[:, :2]
    return corners.astype(np.float64)


def _read_outlines(rows: _Rows, sizes: np.ndarray, evaluated: bool, notes: list[str]) -> Outlines:
    """Return the outlines of all annotations, in the order of the file."""
    expected = "a list of polygons, or a run-length encoding"
    values = rows.column("segmentation", {list, dict}, f"{expected} (or set model.masks=false)")
    encoded = np.fromiter((type(value) is dict for value in values), bool, len(values))
    for index in np.flatnonzero(encoded).tolist():
        width, height = sizes[index].tolist()
        try:
            values[index] = [rle.read_counts(values[index], height, width)]
        except ValueError as error:
            found, _, wanted = str(error).partition("; expected ")
            raise rows.error(index, "segmentation", found, wanted) from error
    parts = np.fromiter(map(len, values), np.int64, len(values))
    for index in np.flatnonzero(parts == 0)[:1]:
        raise rows.error(index, "segmentation", "empty", f"{expected} (or set model.masks=false)")
    owner = np.repeat(np.arange(len(values)), parts)
    polygons = list(itertools.chain.from_iterable(values))
    for index, polygon in enumerate(polygons) if set(map(type, polygons)) != {list} else ():
        if type(polygon) is not list:
            raise rows.error(int(owner[index]), "segmentation", shorten(polygon), "a list of numbers for each polygon")
    numbers = _flatten(rows, "segmentation", polygons, owner)
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    polygonal = ~encoded[owner]
    for index in np.flatnonzero(polygonal & (lengths % 2 == 1))[:1]:
        found = f"a polygon of {lengths[index]} numbers"
        raise rows.error(int(owner[index]), "segmentation", found, "x0, y0, x1, y1, ..., an even number of numbers")
    for index in np.flatnonzero(~np.isfinite(numbers))[:1]:
        at = int(owner[np.searchsorted(lengths.cumsum(), index, side="right")])
        raise rows.error(at, "segmentation", shorten(float(numbers[index])), "finite coordinates")
    short = polygonal & (lengths < 6)
    for index in np.flatnonzero(short)[:1] if evaluated else ():
        found = f"a polygon of {lengths[index]} numbers"
        expected = "at least 6 numbers, because COCO's metric requires them"
        raise rows.error(int(owner[index]), "segmentation", found, expected)
    if short.any():
        numbers = numbers[np.repeat(~short, lengths)]
        parts = np.bincount(owner[~short], minlength=len(values))
        lengths = lengths[~short]
        notes.append(f"polygons of fewer than three points, left out: {int(short.sum())}")
        if lost := int((parts == 0).sum()):
            notes.append(f"objects without a valid polygon, left out: {lost}")
    return Outlines(
        rows=np.arange(len(values)),
        first_part=_starts(parts),
        first_number=_starts(lengths),
        numbers=numbers,
        encoded=encoded,
    )


def _flatten(rows: _Rows, field: str, lists: list[list[Any]], owner: np.ndarray | None = None) -> np.ndarray:
    """Return all numbers of `lists`, one list after the other, as float64.

    Args:
        owner: row of each list, for messages; by default list i belongs to row i.
    """
    chain = itertools.chain.from_iterable
    if set(map(type, chain(lists))) <= _NUMBER_TYPES:
        with contextlib.suppress(OverflowError):
            return np.fromiter(chain(lists), np.float64, sum(map(len, lists)))
    index, value = next((i, v) for i, values in enumerate(lists) for v in values if not _is_number(v))
    raise rows.error(index if owner is None else int(owner[index]), field, shorten(value), "plain numbers")


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**1000)


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], counts.cumsum()])
