"""Reader of COCO's instances JSON. The whole file is checked before training starts."""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intl_bench.core.errors import InputError
from intl_bench.core.inputs import shorten
from pretrain.images.decode import LARGEST
from transfer.detection.annotations.boxes import check_geometry, count_corrections, find_corners, read_areas, read_boxes
from transfer.detection.annotations.documents import load_json
from transfer.detection.annotations.faults import Faults
from transfer.detection.annotations.file_names import is_safe
from transfer.detection.annotations.image_sizes import check_image_sizes
from transfer.detection.annotations.objects import Annotations
from transfer.detection.annotations.outlines import read_outlines
from transfer.detection.annotations.rows import Rows

_LARGEST_SIDE = 2**31  # pixels


def read_coco(
    path: Path,
    folder: Path,
    *,
    name: str,
    masks: bool | None,
    evaluated: bool,
    clip: bool = False,
    max_pixels: int = LARGEST,
    percent: float | None = None,
    fold: int = 1,
) -> Annotations:
    """Read and check an instances JSON.

    Args:
        path: the JSON file.
        folder: the folder of the image files.
        name: name of the data set.
        masks: whether outlines are needed; if not, they are neither checked nor read. None: if an annotation has one.
        evaluated: whether pycocotools will read the file too. It needs more fields of every annotation.
        clip: whether boxes may be beyond their image; training clips them.
        max_pixels: of an image.
        percent, fold: the images to keep after the check of all; see `draw_part`.

    Returns:
        The images in the order of their ids, as in Detectron2.

    Raises:
        InputError: the file, entries or image files are missing or invalid. The message has all kinds of faults, with
            their numbers and first entries.
    """
    with without_garbage_collection():
        document, sha256 = load_document(path)
        faults = Faults(f"{path}: ")
        categories, images, annotations = open_rows(faults, document)
        del document
        if masks is None:
            masks = any(row.get("segmentation") for row in annotations.rows)
        notes: list[str] = []
        category_ids, image_ids = categories.ids(), images.ids()
        names = categories.column("name", {str}, "text", "")
        file_names = _read_file_names(images)
        sizes = read_sizes(images)
        file_names = _check_images(images, folder, image_ids, file_names, sizes, max_pixels)
        objects = _read_objects(annotations, image_ids, category_ids, evaluated, notes)
        # An object of a wrong image would have faults of its own, in the wrong place.
        annotations.sound &= images.sound[objects["image"]]
        of_object = sizes[objects["image"]]
        boxes = read_boxes(annotations)
        areas = read_areas(annotations, masks, notes) if evaluated else None
        outlines = read_outlines(annotations, of_object, evaluated, notes) if masks else None
        check_geometry(annotations, boxes, of_object, outlines, areas, notes, clip=clip)
        faults.raise_any()
        notes = [*count_corrections(boxes, of_object), *notes]
        del categories, images, annotations
    by_id, by_category = np.argsort(image_ids), np.argsort(category_ids)
    place = np.empty_like(by_id)
    place[by_id] = np.arange(len(by_id))
    owner = place[objects["image"]]
    order = np.argsort(owner, kind="stable")
    if outlines is not None:
        order = order[np.diff(outlines.first_part)[order] > 0]  # as in Detectron2, only objects with a valid polygon
    bounds = np.searchsorted(owner[order], np.arange(len(image_ids) + 1))
    found = Annotations(
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
        boxes=find_corners(boxes)[order],
        crowd=objects["crowd"][order],
        difficult=np.zeros(len(order), bool),
        outlines=dataclasses.replace(outlines, rows=order) if outlines is not None else None,
    )
    if percent is None:
        return found
    drawn = draw_part(len(found), percent, fold)[by_id]
    return found.select(
        drawn, [f"images drawn for training: {drawn.sum()} of {len(drawn)} ({percent:g}%, fold {fold})"]
    )


def draw_part(count: int, percent: float, fold: int) -> np.ndarray:
    """Draw the labeled images of semi-supervised detection, (count,) bool in the order of the file.

    The draw is that of STAC (google-research/ssl_detection, prepare_coco_data.py) and of MMDetection (split_coco.py),
    from all images, also those without objects. It repeats images, so slightly fewer than `percent` are drawn: 11,285
    of COCO's 118,287 images for 10% and fold 1.

    Raises:
        InputError: the percentage is less than one image.
    """
    draws = int(percent / 100.0 * count)
    if not draws:
        raise InputError(
            f"data.percent={percent:g}: less than one of {count} images; expected at least {100 / count:g}"
        )
    drawn = np.zeros(count, bool)
    drawn[np.random.RandomState(fold).choice(count, size=draws)] = True
    return drawn


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


def load_document(path: Path) -> tuple[dict[str, Any], str]:
    """Read the JSON object and the SHA-256 of the bytes of a file."""
    document, sha256 = load_json(path, "the annotations")
    if not isinstance(document, dict):
        raise InputError(
            f"{path}: contains {shorten(document)}; expected an object with images, annotations and categories"
        )
    return document, sha256


def open_rows(faults: Faults, document: Mapping[str, Any], *, no_objects: bool = False) -> tuple[Rows, Rows, Rows]:
    """Return the categories, images and annotations of a file.

    Args:
        no_objects: whether there may be no annotations.

    Raises:
        InputError: one of the three is missing or empty.
    """
    keys = {"categories": "category", "images": "image", "annotations": "annotation"}
    categories, images, annotations = tables = [
        Rows(faults, document, key, noun, may_be_empty=no_objects and key == "annotations")
        for key, noun in keys.items()
    ]
    if not all(table.rows for table in tables):
        faults.raise_any()
    return categories, images, annotations


def read_crowds(rows: Rows, notes: list[str]) -> np.ndarray:
    """Return whether each annotation is a crowd, (m,) bool."""
    crowd, missing = rows.flags("iscrowd")
    if missing.any():
        notes.append(f"annotations without iscrowd, which is 0 then: {int(missing.sum())}")
    return crowd


def read_sizes(images: Rows) -> np.ndarray:
    """Return the width and height of all images, (n, 2) int64."""
    return np.stack([_read_side(images, "width"), _read_side(images, "height")], 1)


def _read_side(images: Rows, field: str) -> np.ndarray:
    expected = "a positive whole number of pixels"
    values = images.whole_numbers(field, expected, 1, text=False)
    wrong = [i for i, value in enumerate(values) if not 0 < value < _LARGEST_SIDE]
    images.report(wrong, field, lambda i: shorten(values[i]), expected, "range")
    return np.array([value if 0 < value < _LARGEST_SIDE else 1 for value in values], np.int64)


def _read_file_names(images: Rows) -> list[str]:
    """Return the file names of all images. They must be different and inside the image folder."""
    names = images.column("file_name", {str}, "the name of a file in the image folder", "")
    wrong = [i for i, name in enumerate(names) if not is_safe(name) and images.sound[i]]
    images.report(wrong, "file_name", lambda i: shorten(names[i]), "a file inside the image folder")
    return names


def _check_images(
    images: Rows, folder: Path, ids: np.ndarray, names: list[str], sizes: np.ndarray, max_pixels: int
) -> list[str]:
    """Check the image files and return their names on the disk. Each image must have a file of its own."""
    valid = np.flatnonzero(images.sound)
    chosen = [names[i] for i in valid]
    found, good = check_image_sizes(images.faults, folder, ids[valid].tolist(), chosen, sizes[valid], max_pixels)
    names, earlier, again = list(names), set[str](), list[int]()
    for index, name in zip(valid.tolist(), found, strict=True):
        names[index] = name
        if name in earlier:
            again.append(index)
        earlier.add(name)
    images.sound[valid[~good]] = False
    expected = "one entry for each file"
    images.report(again, "file_name", lambda i: f"{shorten(names[i])} is used by another image", expected)
    return names


def _read_objects(
    rows: Rows, image_ids: np.ndarray, category_ids: np.ndarray, evaluated: bool, notes: list[str]
) -> dict[str, np.ndarray]:
    """Return the fields of all annotations except boxes and outlines, with indices instead of ids."""
    ids = rows.ids()
    image = rows.find("image_id", image_ids, "the id of an image of this file")
    category = rows.find("category_id", category_ids, "the id of a category of this file")
    rank = np.argsort(np.argsort(category_ids))
    crowd = read_crowds(rows, notes if evaluated else [])
    ignored, _ = rows.optional("ignore", {int, bool, float}, "0", 0)
    expected = "0, because COCO's metric uses only iscrowd"
    alone = [i for i, value in enumerate(ignored) if value and not crowd[i]]
    rows.report(alone, "ignore", lambda i: shorten(ignored[i]), expected)
    return {"id": ids, "image": image, "class": rank[category], "crowd": crowd}
