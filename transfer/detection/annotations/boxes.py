"""Reader of the boxes and areas of COCO's annotations, and the comparison of boxes, masks, areas and images."""

from collections.abc import Iterable

import numpy as np

from intl_bench.core.inputs import shorten
from transfer.detection.annotations import geometry
from transfer.detection.annotations.geometry import XYWH, Finding
from transfer.detection.annotations.objects import BOX_TOLERANCE, Outlines
from transfer.detection.annotations.outlines import measure, measure_by_row
from transfer.detection.annotations.rows import Rows


def read_boxes(rows: Rows) -> np.ndarray:
    """Return the boxes (m, 4) float64, x, y, width, height."""
    expected = f"{XYWH} in pixels, four numbers"
    lists = rows.column("bbox", {list}, expected, [0] * 4)
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    if (lengths != 4).any():
        rows.report(np.flatnonzero(lengths != 4), "bbox", lambda i: shorten(lists[i]), expected)
    four = [values if len(values) == 4 else [0] * 4 for values in lists] if (lengths != 4).any() else lists
    boxes = rows.flatten("bbox", four).reshape(-1, 4)
    finite = np.isfinite(boxes).all(1)
    rows.report(np.flatnonzero(~finite), "bbox", lambda i: shorten(lists[i]), "finite numbers")
    boxes[~finite] = 0
    negative = np.flatnonzero((boxes[:, 2:] < 0).any(1))
    rows.report(negative, "bbox", lambda i: shorten(lists[i]), "a width and a height of 0 or more")
    return boxes


def find_corners(boxes: np.ndarray) -> np.ndarray:
    """Convert boxes (m, 4), x, y, width, height, to x0, y0, x1, y1.

    The values are rounded to float32, because Detectron2 computes the corners in float32.
    """
    corners = boxes.astype(np.float32)
    corners[:, 2:] += corners[:, :2]
    return corners.astype(np.float64)


def read_areas(rows: Rows, masks: bool, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the areas of all annotations, (m,) float64, and whether they are missing, (m,) bool.

    Args:
        masks: whether the area of the mask is used for a missing one; else that of the box is used.
    """
    expected = "a number of square pixels"
    values, missing = rows.optional("area", {int, float}, expected, 0)
    if missing.any():
        what = "mask" if masks else "box"
        notes.append(f"annotations without area, which is that of the {what} then: {int(missing.sum())}")
    area = rows.flatten("area", [[value] for value in values])
    wrong = np.flatnonzero(~(area >= 0) | np.isinf(area))
    rows.report(wrong, "area", lambda i: shorten(float(area[i])), "a finite number of square pixels, 0 or more")
    return area, missing


def check_geometry(
    rows: Rows,
    boxes: np.ndarray,
    sizes: np.ndarray,
    outlines: Outlines | None,
    areas: tuple[np.ndarray, np.ndarray] | None,
    notes: list[str],
    *,
    clip: bool,
) -> None:
    """Compare boxes, masks, areas and images; see `geometry`.

    Args:
        boxes: (m, 4), [x, y, width, height].
        sizes: (m, 2), width and height of the image of each annotation.
        outlines: None if they were not read.
        areas: as `read_areas` returns them; None if they were not read.
        clip: whether boxes may be beyond their image.
    """
    sound = rows.sound.copy()  # a wrong box must not hide the mask that shows the cause
    kept = np.flatnonzero(sound)
    _apply(rows, kept, geometry.check_boxes(boxes[kept], sizes[kept], XYWH, clip=clip), notes)
    bounds, expected = geometry.corners(boxes, XYWH), boxes[:, 2] * boxes[:, 3]
    if outlines is not None:
        bounds, expected = measure(outlines, sizes[:, 1], areas=areas is not None)
        sound &= np.diff(outlines.first_part) > 0
        kept = np.flatnonzero(sound)

        def read_by_row() -> np.ndarray:
            return measure_by_row(outlines, sizes[:, 0])[kept]

        _apply(rows, kept, geometry.check_masks(boxes[kept], sizes[kept], bounds[kept], read_by_row), notes)
    if areas is not None:
        area, missing = areas
        kept = np.flatnonzero(sound & ~missing)
        findings = geometry.check_areas(area[kept], expected[kept], bounds[kept], masks=outlines is not None)
        _apply(rows, kept, findings, notes)


def count_corrections(boxes: np.ndarray, sizes: np.ndarray) -> list[str]:
    """Return notes about boxes (m, 4) that are slightly outside their images of `sizes` (m, 2), or empty."""
    corners, notes = geometry.corners(boxes, XYWH), []
    beyond = np.maximum(-corners[:, :2], corners[:, 2:] - sizes).max(1)
    if clipped := int(((beyond > 0) & (beyond <= BOX_TOLERANCE)).sum()):
        notes.append(f"boxes up to {BOX_TOLERANCE:g} pixel outside their image, clipped: {clipped}")
    if empty := int((boxes[:, 2:] == 0).any(1).sum()):
        notes.append(f"boxes without width or height, not used in training: {empty}")
    return notes


def _apply(rows: Rows, kept: np.ndarray, findings: Iterable[Finding], notes: list[str]) -> None:
    """Report findings as faults or notes. Their object i is the row kept[i]."""
    for finding in findings:
        if finding.fault:
            _report(rows, kept, finding)
        else:
            first = int(finding.objects[0])
            cause = f" (likely cause: {finding.cause})" if finding.cause else ""
            notes.append(
                f"{finding.kind}: {len(finding.objects)}, the first is {rows.describe(int(kept[first]))}, "
                f"{finding.found(first)}{cause}"
            )


def _report(rows: Rows, kept: np.ndarray, finding: Finding) -> None:
    place = dict(zip(kept[finding.objects].tolist(), finding.objects.tolist(), strict=True))

    def expected(index: int) -> str:
        cause = f" (likely cause: {finding.cause})" if finding.cause else ""
        return finding.expected(place[index]) + cause

    rows.report(place, finding.field, lambda i: finding.found(place[i]), expected, finding.kind)
