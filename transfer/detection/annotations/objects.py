"""Annotated images as a few flat arrays.

COCO has 860,000 annotations. As Python objects they take gigabytes, and each data worker gets its own copy of this
memory, because Python writes reference counts. Arrays stay shared.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from pretrain.images.fingerprint import of_files

# Pixels that a box may exceed its image by, because of rounding. It is clipped in training.
BOX_TOLERANCE = 1.0

# The outline of one object: polygons, each (2p,) float64 x0, y0, x1, y1, ...; or COCO's uncompressed run-length
# encoding, {"size": [height, width], "counts": [...]}.
Outline = list[np.ndarray] | dict[str, Any]


class AnnotatedObject(NamedTuple):
    """One annotated object.

    Attributes:
        annotation_id: id in the annotation file.
        box: (4,) float64, x0, y0, x1, y1 in pixels of the image file. It exceeds the image by at most BOX_TOLERANCE,
            unless data.boxes is "clip".
        class_index: counted from 0 in the order of the category ids of the training images.
        crowd: whether it is a region of many objects of the class (COCO's iscrowd).
        difficult: VOC's flag; always False in COCO.
        outline: None if the annotations were read without masks.
    """

    annotation_id: int
    box: np.ndarray
    class_index: int
    crowd: bool
    difficult: bool
    outline: Outline | None


class AnnotatedImage(NamedTuple):
    """One annotated image.

    Attributes:
        file_name: path relative to the folder of the annotations.
        height, width: size of the image file in pixels.
        objects: in the order of the annotation file.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    objects: list[AnnotatedObject]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlines:
    """The outlines of m objects, stored as r rows in the order of the file. A row has parts, and a part has numbers.

    A part is a polygon or a run-length encoding. A row with a run-length encoding has one part.

    Attributes:
        rows: (m,) int64, the row of each object. It saves reordering the 25 million numbers.
        first_part: (r + 1,) int64; row i has the parts first_part[i], ..., first_part[i + 1] - 1.
        first_number: (p + 1,) int64; part i has the numbers first_number[i], ..., first_number[i + 1] - 1.
        numbers: float64, the coordinates of polygons and the counts of run-length encodings.
        encoded: (r,) bool, whether the outline of a row is a run-length encoding.
    """

    rows: np.ndarray
    first_part: np.ndarray
    first_number: np.ndarray
    numbers: np.ndarray
    encoded: np.ndarray

    def parts(self, index: int) -> list[np.ndarray]:
        """Return the polygons of object `index`, or a list of one array of counts. They are views; do not change them.

        The counts are those of a run-length encoding; see `is_encoded`.
        """
        row = self.rows[index]
        bounds = self.first_number[self.first_part[row] : self.first_part[row + 1] + 1].tolist()
        return [self.numbers[bounds[i] : bounds[i + 1]] for i in range(len(bounds) - 1)]

    def is_encoded(self, index: int) -> bool:
        """Tell whether the outline of object `index` is a run-length encoding."""
        return bool(self.encoded[self.rows[index]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotations:
    """n annotated images with m objects of K categories, already checked.

    Attributes:
        name: name of the data set.
        path: the annotation file; for VOC the first list.
        sha256: digest of the annotation file; for VOC of the digests of all lists and XML files in order.
        folder: the folder that the file names are relative to.
        category_ids: K ids; class index i has the id category_ids[i]. They are in ascending order, except for test
            images whose file numbers the names of the training images in another way (`match_categories`).
        category_names: K names in the order of the class indices.
        notes: messages of one line each about entries that were corrected or left out, with their number.
        image_ids, heights, widths: (n,) int64; ids of more than 64 bits are Python's whole numbers.
        file_names: (n,) bytes.
        first, last: (n,) int64; image i has the objects first[i], ..., last[i] - 1.
        annotation_ids, classes: (m,) int64, as above.
        boxes: (m, 4) float64, x0, y0, x1, y1.
        crowd, difficult: (m,) bool.
        outlines: None if the annotations were read without masks.
    """

    name: str
    path: Path
    sha256: str
    folder: Path
    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]
    notes: list[str]
    image_ids: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    file_names: np.ndarray
    first: np.ndarray
    last: np.ndarray
    annotation_ids: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    outlines: Outlines | None

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def images(self) -> Sequence[AnnotatedImage]:
        """The images as a sequence. Each image is built when it is read."""
        return _ImageSequence(self)

    def file(self, index: int) -> Path:
        """Return the path of image `index`."""
        return self.folder / self.file_names[index].decode()

    def fingerprint(self) -> str:
        """Compute the SHA-256, as 64 hex digits, of the annotation files, the category names and the image files.

        The image files are hashed as in `pretrain.images.fingerprint`.

        Raises:
            InputError: an image file cannot be read.
        """
        about = json.dumps({"annotations": self.sha256, "categories": self.category_names})
        return of_files(self.folder, self.file_names, about.encode())

    def select(self, chosen: np.ndarray, notes: list[str]) -> "Annotations":
        """Keep the images `chosen` (n,) bool, and append `notes`."""
        per_image = ("image_ids", "heights", "widths", "file_names", "first", "last")
        kept = {field: getattr(self, field)[chosen] for field in per_image}
        return dataclasses.replace(self, **kept, notes=self.notes + notes)


class _ImageSequence(Sequence[AnnotatedImage]):
    """The images of `Annotations`, built one at a time."""

    def __init__(self, annotations: Annotations) -> None:
        self.annotations = annotations

    def __len__(self) -> int:
        return len(self.annotations)

    @overload
    def __getitem__(self, index: int) -> AnnotatedImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[AnnotatedImage]: ...
    def __getitem__(self, index: int | slice) -> AnnotatedImage | list[AnnotatedImage]:
        if isinstance(index, slice):
            return [self._build(i) for i in range(len(self))[index]]
        return self._build(range(len(self))[index])

    def __iter__(self) -> Iterator[AnnotatedImage]:
        return map(self._build, range(len(self)))

    def _build(self, index: int) -> AnnotatedImage:
        a = self.annotations
        height, width = int(a.heights[index]), int(a.widths[index])
        objects = [
            AnnotatedObject(
                int(a.annotation_ids[i]),
                a.boxes[i],
                int(a.classes[i]),
                bool(a.crowd[i]),
                bool(a.difficult[i]),
                _build_outline(a.outlines, i, height, width),
            )
            for i in range(a.first[index], a.last[index])
        ]
        return AnnotatedImage(int(a.image_ids[index]), a.file_names[index].decode(), height, width, objects)


def _build_outline(outlines: Outlines | None, index: int, height: int, width: int) -> Outline | None:
    if outlines is None:
        return None
    parts = outlines.parts(index)
    if outlines.is_encoded(index):
        return {"size": [height, width], "counts": parts[0].astype(np.int64).tolist()}
    return parts
