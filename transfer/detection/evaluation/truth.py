"""The annotations that detections are compared with, in the form of both evaluators.

The evaluators treat the id 0 as "not matched", and faster-coco-eval keeps ids in few bits. So images, categories and
annotations get the numbers 1, 2, 3, ... in the order of their ids.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from transfer.detection.annotations.boxes import check_geometry, read_areas, read_boxes
from transfer.detection.annotations.coco import load_document, open_rows, read_crowds, read_sizes
from transfer.detection.annotations.faults import Faults
from transfer.detection.annotations.outlines import read_outlines, readable


class Truth(NamedTuple):
    """Annotated images for an evaluation.

    Attributes:
        image_numbers, category_numbers: the number of each id.
        sizes: [height, width] of each image id.
        dataset: images, categories and annotations in COCO's form, with numbers instead of ids.
        notes: messages of one line each.
    """

    image_numbers: dict[int, int]
    category_numbers: dict[int, int]
    sizes: dict[int, list[int]]
    dataset: dict[str, list[dict[str, Any]]]
    notes: list[str]

    def renumber(self, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return COCO results with numbers instead of ids."""
        images, categories = self.image_numbers, self.category_numbers
        return [
            {**result, "image_id": images[result["image_id"]], "category_id": categories[result["category_id"]]}
            for result in results
        ]


def read_truth(path: Path, iou_types: Sequence[str], order: Sequence[int] | None = None) -> Truth:
    """Read and check an instances JSON, of which images files and names are not needed.

    Annotations of images or categories that are not in the file do not count, as in pycocotools. A missing iscrowd is
    0. A missing area is that of the mask if `iou_types` has "segm", else that of the box.

    Args:
        order: the category ids in the order of their numbers, by default in increasing order.

    Raises:
        InputError: the file cannot be read, or entries are invalid.
    """
    document, _ = load_document(path)
    faults, notes = Faults(f"{path}: "), list[str]()
    categories, images, rows = open_rows(faults, document, no_objects=True)
    category_ids, image_ids, sizes = categories.ids(), images.ids(), read_sizes(images)
    faults.raise_any()
    category_numbers = _number(sorted(category_ids.tolist()) if order is None else order)
    image_numbers = _number(sorted(image_ids.tolist()))
    owners = rows.whole_numbers("image_id", "a whole number", 0)
    labels = rows.whole_numbers("category_id", "a whole number", 0)
    place = {image_id: index for index, image_id in enumerate(image_ids.tolist())}
    known = np.array(
        [o in image_numbers and label in category_numbers for o, label in zip(owners, labels, strict=True)], bool
    )
    of_row = sizes[[place.get(owner, 0) for owner in owners]]
    crowds = read_crowds(rows, notes)
    areas, missing = read_areas(rows, "segm" in iou_types, notes)
    boxes = read_boxes(rows) if "bbox" in iou_types else None
    rows.sound &= known
    outlines = read_outlines(rows, of_row, True, notes) if "segm" in iou_types else None
    if boxes is not None:
        check_geometry(rows, boxes, of_row, outlines, (areas, missing), notes, clip=True)
    faults.raise_any()
    entries = list[dict[str, Any]]()
    for index in np.flatnonzero(known).tolist():
        row = rows.rows[index]
        entry: dict[str, Any] = {
            "id": len(entries) + 1,
            "image_id": image_numbers[owners[index]],
            "category_id": category_numbers[labels[index]],
            "iscrowd": int(crowds[index]),
            "area": float(areas[index]),
        }
        if boxes is not None:
            entry["bbox"] = row["bbox"]
        if outlines is not None:
            entry["segmentation"] = readable(row["segmentation"])
        if missing[index]:
            entry["area"] = _compute_area(entry, *of_row[index].tolist())
        entries.append(entry)
    heights_widths = sizes[:, ::-1].tolist()
    dataset = {
        "images": [
            {"id": image_numbers[image_id], "height": height, "width": width}
            for image_id, (height, width) in zip(image_ids.tolist(), heights_widths, strict=True)
        ],
        "categories": [{"id": number} for number in category_numbers.values()],
        "annotations": entries,
    }
    by_id = dict(zip(image_ids.tolist(), heights_widths, strict=True))
    return Truth(image_numbers, category_numbers, by_id, dataset, notes)


def _number(ids: Sequence[int]) -> dict[int, int]:
    return {one: number for number, one in enumerate(ids, start=1)}


def _compute_area(entry: dict[str, Any], width: int, height: int) -> float:
    """Compute the area of the mask of an annotation; of the box if it has no mask."""
    if "segmentation" not in entry:
        return float(entry["bbox"][2] * entry["bbox"][3])
    outline = entry["segmentation"]
    if isinstance(outline, dict) and isinstance(outline["counts"], str):
        return float(coco_mask.area(outline))
    encoding = coco_mask.frPyObjects(outline, height, width)
    return float(coco_mask.area(coco_mask.merge(encoding) if isinstance(outline, list) else encoding))
