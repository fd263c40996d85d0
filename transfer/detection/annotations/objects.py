"""Annotated images in a few flat arrays.

860,000 annotations as Python objects would take gigabytes, and their reference counts would copy that memory into every
data worker; arrays are shared.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from pretrain.images.fingerprint import of_files

BOX_TOLERANCE = 1.0  # pixels by which a box may reach outside its image, as rounding makes it; it is clipped there

# An object's outline: polygons, each (2p,) float64 x0, y0, x1, y1, ...; or COCO's uncompressed run-length encoding,
# {"size": [height, width], "counts": [...]}.
Outline = list[np.ndarray] | dict[str, Any]


class Object(NamedTuple):
    """One annotated object.

    Attributes:
        annotation_id: as in the annotation file.
        box: (4,) float64, x0, y0, x1, y1 in pixels of the image file, outside it by BOX_TOLERANCE at most.
        class_index: from 0 on, in the order of the category ids.
        crowd: a region of many objects of the class (COCO's iscrowd).
        difficult: VOC's flag; always False in COCO.
        outline: None where no masks were asked for.
    """

    annotation_id: int
    box: np.ndarray
    class_index: int
    crowd: bool
    difficult: bool
    outline: Outline | None


class Entry(NamedTuple):
    """One annotated image: its file below the folder, its size in pixels, its objects in the file's order."""

    image_id: int
    file_name: str
    height: int
    width: int
    objects: list[Object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlines:
    """The outlines of m objects, of r rows in the order of the file: each has parts, each part has numbers.

    Attributes:
        rows: (m,) int64, the row of each object; so 25 million numbers need not be moved to the objects' order.
        first_part: (r + 1,) int64; row i has the parts first_part[i], ..., first_part[i + 1] - 1.
        first_number: (p + 1,) int64, the same for a part's numbers.
        numbers: float64; a polygon's coordinates, or the counts of a run-length encoding, which is one part.
        encoded: (r,) bool, whether a row's outline is a run-length encoding.
    """

    rows: np.ndarray
    first_part: np.ndarray
    first_number: np.ndarray
    numbers: np.ndarray
    encoded: np.ndarray

    def parts(self, index: int) -> list[np.ndarray]:
        """The polygons of object `index`, or one array of counts; views, to be left unchanged."""
        row = self.rows[index]
        bounds = self.first_number[self.first_part[row] : self.first_part[row + 1] + 1].tolist()
        return [self.numbers[bounds[i] : bounds[i + 1]] for i in range(len(bounds) - 1)]

    def is_encoded(self, index: int) -> bool:
        """Whether object `index` has a run-length encoding."""
        return bool(self.encoded[self.rows[index]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotations:
    """n annotated images with m objects of K categories, validated.

    Attributes:
        name: the data set's.
        path: the annotation file; the first list of VOC.
        sha256: of the annotation file; of all lists and XML files of VOC, in order.
        folder: where the image files' names start from.
        category_ids: ascending; class index i is category_ids[i].
        category_names: of the class indices.
        notes: what was found and mended or left out, with counts, one line each.
        image_ids, heights, widths: (n,) int64.
        file_names: (n,) bytes.
        first, last: (n,) int64; image i has the objects first[i], ..., last[i] - 1.
        annotation_ids, classes: (m,) int64.
        boxes: (m, 4) float64, x0, y0, x1, y1.
        crowd, difficult: (m,) bool.
        outlines: None where no masks were asked for.
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
    def images(self) -> Sequence[Entry]:
        """The images by number, each made when it is asked for."""
        return _Entries(self)

    def file(self, index: int) -> Path:
        """The file of image `index`."""
        return self.folder / self.file_names[index].decode()

    def fingerprint(self) -> str:
        """SHA-256, as 64 hex digits, of the annotation files, the categories' names and the image files.

        The image files are hashed as `pretrain.images.fingerprint.fingerprint` says.

        Raises:
            InputError: an image file cannot be read.
        """
        about = json.dumps({"annotations": self.sha256, "categories": self.category_names})
        return of_files(self.folder, self.file_names, about.encode())

    def select(self, chosen: np.ndarray, notes: list[str]) -> "Annotations":
        """The images `chosen` (n,) bool, with more notes."""
        per_image = ("image_ids", "heights", "widths", "file_names", "first", "last")
        kept = {field: getattr(self, field)[chosen] for field in per_image}
        return dataclasses.replace(self, **kept, notes=self.notes + notes)


class _Entries(Sequence[Entry]):
    def __init__(self, annotations: Annotations) -> None:
        self.annotations = annotations

    def __len__(self) -> int:
        return len(self.annotations)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self._entry(i) for i in range(len(self))[index]]
        return self._entry(range(len(self))[index])

    def __iter__(self) -> Iterator[Entry]:
        return map(self._entry, range(len(self)))

    def _entry(self, index: int) -> Entry:
        a = self.annotations
        height, width = int(a.heights[index]), int(a.widths[index])
        objects = [
            Object(
                int(a.annotation_ids[i]),
                a.boxes[i],
                int(a.classes[i]),
                bool(a.crowd[i]),
                bool(a.difficult[i]),
                _outline(a.outlines, i, height, width),
            )
            for i in range(a.first[index], a.last[index])
        ]
        return Entry(int(a.image_ids[index]), a.file_names[index].decode(), height, width, objects)


def _outline(outlines: Outlines | None, index: int, height: int, width: int) -> Outline | None:
    if outlines is None:
        return None
    parts = outlines.parts(index)
    if outlines.is_encoded(index):
        return {"size": [height, width], "counts": parts[0].astype(np.int64).tolist()}
    return parts
