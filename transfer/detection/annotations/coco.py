"""COCO's instances JSON, read and checked as a whole before any training starts."""

import contextlib
import dataclasses
import gc
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from intl_bench.core.errors import InputError, from_os_error
from transfer.detection import rle
from transfer.detection.annotations import image_sizes
from transfer.detection.annotations.objects import BOX_TOLERANCE, Annotations, Outlines

_MEND = "correct it, or take it out of the file"
_BOX = "expected [x, y, width, height] in pixels, four numbers"
_NUMBERS = {int, float}
_INT64 = np.iinfo(np.int64)


def read(path: Path, folder: Path, *, name: str, masks: bool, evaluated: bool) -> Annotations:
    """All images of an instances JSON in the order of their ids, as Detectron2 takes them.

    Args:
        path: the JSON.
        folder: the image files.
        masks: whether outlines are needed; without, they are not read.
        evaluated: whether pycocotools will read the file too, for which every annotation needs more fields.

    Raises:
        InputError: the file, an entry or an image file is not as the format demands; the first problem, in one line.
    """
    with no_collection():
        document, sha256 = _load(path)
        categories = _Rows(path, document, "categories", "category")
        images = _Rows(path, document, "images", "image")
        annotations = _Rows(path, document, "annotations", "annotation")
        del document
        notes: list[str] = []
        category_ids = categories.ids()
        names = categories.column("name", {str}, "text")
        image_ids = images.ids()
        file_names = _file_names(images)
        sizes = np.stack([_positive(images, "width"), _positive(images, "height")], 1)
        # Before the objects: a wrong size would show as boxes outside the image.
        image_sizes.check(path, folder, image_ids.tolist(), file_names, sizes)
        objects = _objects(annotations, image_ids, sizes, category_ids, evaluated, notes)
        outlines = _outlines(annotations, sizes[objects["image"]], evaluated, notes) if masks else None
        del categories, images, annotations
    by_id, by_category = np.argsort(image_ids), np.argsort(category_ids)
    place = np.empty_like(by_id)
    place[by_id] = np.arange(len(by_id))
    owner = place[objects["image"]]
    order = np.argsort(owner, kind="stable")
    if outlines is not None:
        order = order[np.diff(outlines.first_part)[order] > 0]  # Detectron2 drops objects without a valid polygon too
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
def no_collection() -> Iterator[None]:
    """Without the garbage collector, which looks at all these objects again and again and finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load(path: Path) -> tuple[dict[str, Any], str]:
    """The file's content, and the SHA-256 of its bytes."""
    try:
        content = path.read_bytes()
        try:
            document = orjson.loads(content)
        except orjson.JSONDecodeError:  # Python's takes NaN too, whose place can then be named
            document = json.loads(content.decode())
    except OSError as error:
        raise from_os_error(error, f"cannot read the annotations {path}") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not complete JSON ({reason}); copy or download the file again") from error
    if not isinstance(document, dict):
        raise InputError(
            f"{path}: holds {_show(document)}; expected COCO's object with images, annotations and categories"
        )
    return document, hashlib.sha256(content).hexdigest()


class _Rows:
    """One list of the file, whose rows are objects."""

    def __init__(self, path: Path, document: dict[str, Any], key: str, noun: str) -> None:
        self.path, self.key, self.noun = path, key, noun
        rows = document.get(key)
        if not isinstance(rows, list):
            found = _show(rows) if key in document else "missing"
            raise InputError(f"{path}: {key}: {found}; expected a list: is this an instances JSON of COCO?")
        self.rows: list[dict[str, Any]] = rows
        if not rows:
            raise InputError(f"{path}: {key}: an empty list; expected at least one {noun}: is this the right file?")
        for index in self._unlike(self.rows, {dict}):
            raise InputError(f"{path}: {key}[{index}]: {_show(self.rows[index])}; expected an object; {_MEND}")

    def wrong(self, index: int, field: str, found: str, expected: str) -> InputError:
        """The message for one row."""
        own = self.rows[index].get("id")
        row = f"{self.noun} {own}" if type(own) is int else f"{self.key}[{index}]"
        return InputError(f"{self.path}: {row}: {field}: {found}; expected {expected}; {_MEND}")

    def column(self, field: str, kinds: set[type], expected: str, **default: Any) -> list[Any]:
        """A field of all rows; `default=` is for rows without it."""
        if default:
            values = [row.get(field, default["default"]) for row in self.rows]
        else:
            try:
                values = [row[field] for row in self.rows]
            except KeyError as error:
                index = next(i for i, row in enumerate(self.rows) if field not in row)
                raise self.wrong(index, field, "missing", expected) from error
        for index in self._unlike(values, kinds):
            raise self.wrong(index, field, _show(values[index]), expected)
        return values

    def integers(self, field: str, expected: str, **default: int) -> np.ndarray:
        values = self.column(field, {int}, expected, **default)
        if max(values) > _INT64.max or min(values) < _INT64.min:
            index = next(i for i, value in enumerate(values) if not _INT64.min <= value <= _INT64.max)
            raise self.wrong(index, field, _show(values[index]), f"{expected} of at most 64 bits")
        return np.array(values, np.int64)

    def ids(self) -> np.ndarray:
        """The rows' own ids, all different."""
        ids = self.integers("id", "a whole number")
        order = np.argsort(ids, kind="stable")
        for index in order[1:][ids[order][1:] == ids[order][:-1]][:1]:
            raise self.wrong(index, "id", "used twice", f"an id of its own for each {self.noun}")
        return ids

    @staticmethod
    def _unlike(values: list[Any], kinds: set[type]) -> list[int]:
        """At most one: the first value of another type (True is no number)."""
        if set(map(type, values)) <= kinds:
            return []
        return [next(i for i, value in enumerate(values) if type(value) not in kinds)]


def _positive(images: _Rows, field: str) -> np.ndarray:
    values = images.integers(field, "a positive whole number of pixels")
    for index in np.flatnonzero(values < 1)[:1]:
        raise images.wrong(index, field, _show(int(values[index])), "a positive whole number of pixels")
    return values


def _file_names(images: _Rows) -> list[str]:
    names = images.column("file_name", {str}, "the image file's name in the image folder")
    seen = set[str]()
    for index, name in enumerate(names):
        if name in seen:
            raise images.wrong(index, "file_name", f"{_show(name)} is another image's too", "one entry for each file")
        seen.add(name)
        if not name.isprintable() or name.startswith("/") or ".." in name.split("/") or not name.strip("./"):
            raise images.wrong(index, "file_name", _show(name), "a file inside the image folder")
    return names


def _objects(
    rows: _Rows, image_ids: np.ndarray, sizes: np.ndarray, category_ids: np.ndarray, evaluated: bool, notes: list[str]
) -> dict[str, np.ndarray]:
    ids = rows.ids()
    image = _lookup(rows, "image_id", image_ids, "the id of an image of this file")
    category = _lookup(rows, "category_id", category_ids, "the id of a category of this file")
    rank = np.argsort(np.argsort(category_ids))
    crowd = rows.integers("iscrowd", "0 or 1", **({} if evaluated else {"default": 0}))
    for index in np.flatnonzero((crowd != 0) & (crowd != 1))[:1]:
        raise rows.wrong(index, "iscrowd", _show(int(crowd[index])), "0 or 1")
    ignore = rows.column("ignore", {int}, "0", default=0)
    for index in np.flatnonzero(ignore)[:1]:
        raise rows.wrong(index, "ignore", _show(ignore[index]), "0, for COCO's metric knows iscrowd alone")
    if evaluated:
        for index in np.flatnonzero(ids == 0)[:1]:
            raise rows.wrong(index, "id", "0", "a number from 1 on, for to pycocotools 0 means unmatched")
        area = _flat(rows, "area", [[value] for value in rows.column("area", _NUMBERS, "a number of square pixels")])
        for index in np.flatnonzero(~(area >= 0) | np.isinf(area))[:1]:
            raise rows.wrong(index, "area", _show(float(area[index])), "a finite number of square pixels, 0 or more")
    boxes = _boxes(rows, sizes[image], notes)
    return {"id": ids, "image": image, "class": rank[category], "crowd": crowd == 1, "box": boxes}


def _lookup(rows: _Rows, field: str, known: np.ndarray, expected: str) -> np.ndarray:
    """The place in `known` of each row's value."""
    values, order = rows.integers(field, expected), np.argsort(known)
    places = order[np.searchsorted(known[order], values).clip(max=len(known) - 1)]
    for index in np.flatnonzero(known[places] != values)[:1]:
        raise rows.wrong(index, field, f"{values[index]} is not in this file", expected)
    return places


def _boxes(rows: _Rows, sizes: np.ndarray, notes: list[str]) -> np.ndarray:
    """(m, 4) float64, x0, y0, x1, y1; their values are of float32, in which Detectron2 adds up the corners."""
    expected = _BOX.removeprefix("expected ")
    lists = rows.column("bbox", {list}, expected)
    for index in np.flatnonzero(np.fromiter(map(len, lists), np.int64, len(lists)) != 4)[:1]:
        raise rows.wrong(index, "bbox", _show(lists[index]), expected)
    boxes = _flat(rows, "bbox", lists).reshape(-1, 4)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    outside = np.maximum(-low, high - sizes).max(1)
    checks = [
        (~np.isfinite(boxes).all(1), "finite numbers"),
        ((boxes[:, 2:] < 0).any(1), "a width and a height of 0 or more"),
        (outside > BOX_TOLERANCE, "a box [x, y, width, height] inside the image of {0} x {1} pixels"),
    ]
    for bad, expected in checks:
        for index in np.flatnonzero(bad)[:1]:
            raise rows.wrong(index, "bbox", _show(lists[index]), expected.format(*sizes[index]))
    if clipped := int((outside > 0).sum()):
        notes.append(f"boxes up to {BOX_TOLERANCE:g} pixel outside their image, clipped: {clipped}")
    if empty := int((boxes[:, 2:] == 0).any(1).sum()):
        notes.append(f"boxes without width or height, not trained on: {empty}")
    corners = boxes.astype(np.float32)
    corners[:, 2:] += corners[:, :2]
    return corners.astype(np.float64)


def _outlines(rows: _Rows, sizes: np.ndarray, evaluated: bool, notes: list[str]) -> Outlines:
    expected = "a list of polygons, or a run-length encoding"
    values = rows.column("segmentation", {list, dict}, f"{expected} (or set model.masks=false)")
    encoded = np.fromiter((type(value) is dict for value in values), bool, len(values))
    for index in np.flatnonzero(encoded).tolist():
        width, height = sizes[index].tolist()
        try:
            values[index] = [rle.counts_of(values[index], height, width)]
        except ValueError as error:
            found, _, wanted = str(error).partition("; expected ")
            raise rows.wrong(index, "segmentation", found, wanted) from error
    parts = np.fromiter(map(len, values), np.int64, len(values))
    for index in np.flatnonzero(parts == 0)[:1]:
        raise rows.wrong(index, "segmentation", "empty", f"{expected} (or set model.masks=false)")
    owner = np.repeat(np.arange(len(values)), parts)
    polygons = list(itertools.chain.from_iterable(values))
    for index, polygon in enumerate(polygons) if set(map(type, polygons)) != {list} else ():
        if type(polygon) is not list:
            raise rows.wrong(int(owner[index]), "segmentation", _show(polygon), "each polygon to be a list of numbers")
    numbers = _flat(rows, "segmentation", polygons, owner)
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    polygonal = ~encoded[owner]
    for index in np.flatnonzero(polygonal & (lengths % 2 == 1))[:1]:
        found = f"a polygon of {lengths[index]} numbers"
        raise rows.wrong(int(owner[index]), "segmentation", found, "x0, y0, x1, y1, ..., an even count")
    for index in np.flatnonzero(~np.isfinite(numbers))[:1]:
        at = int(owner[np.searchsorted(lengths.cumsum(), index, side="right")])
        raise rows.wrong(at, "segmentation", _show(float(numbers[index])), "finite coordinates")
    short = polygonal & (lengths < 6)
    for index in np.flatnonzero(short)[:1] if evaluated else ():
        found = f"a polygon of {lengths[index]} numbers"
        raise rows.wrong(int(owner[index]), "segmentation", found, "at least 6, for COCO's metric takes no fewer")
    if short.any():
        numbers = numbers[np.repeat(~short, lengths)]
        parts = np.bincount(owner[~short], minlength=len(values))
        lengths = lengths[~short]
        notes.append(f"polygons of fewer than three points, left out: {int(short.sum())}")
        if lost := int((parts == 0).sum()):
            notes.append(f"objects without another polygon, left out: {lost}")
    return Outlines(
        rows=np.arange(len(values)),
        first_part=_starts(parts),
        first_number=_starts(lengths),
        numbers=numbers,
        encoded=encoded,
    )


def _flat(rows: _Rows, field: str, lists: list[list[Any]], owner: np.ndarray | None = None) -> np.ndarray:
    """All numbers of `lists`, one after the other, float64; list i belongs to row owner[i], or to row i."""
    chain = itertools.chain.from_iterable
    if set(map(type, chain(lists))) <= _NUMBERS:
        with contextlib.suppress(OverflowError):
            return np.fromiter(chain(lists), np.float64, sum(map(len, lists)))
    index, value = next((i, v) for i, values in enumerate(lists) for v in values if not _is_number(v))
    raise rows.wrong(index if owner is None else int(owner[index]), field, _show(value), "plain numbers")


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**1000)


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], counts.cumsum()])


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
