"""Comparison of boxes, masks, areas and images over a whole file, which shows the likely cause of a difference.

The rules, which docs/compatibility.md repeats:

- A box beyond its image by more than BOX_TOLERANCE is a fault, or clipped if `clip` is set.
- Boxes from 0 to 1 or in percent are a fault of the file, or counted if they are few.
- A mask outside its box is a fault, unless at most one in a thousand is. A mask that fits its box badly is a fault if
  half of the masks do and one cause explains them; else it is counted. A loose box around a mask fits.
- Masks without pixels are a fault if all are; else they are counted. Masks beyond the image and areas that differ are
  counted.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from transfer.detection.annotations.objects import BOX_TOLERANCE

XYWH = "[x, y, width, height]"
CORNERS = "corners [x0, y0, x1, y1]"
# The forms of four numbers that people use, as functions to x0, y0, x1, y1.
_FORMS: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
    XYWH: lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]],
    CORNERS: lambda b: [b[0], b[1], b[2], b[3]],
    "[center x, center y, width, height]": lambda b: [
        b[0] - b[2] / 2,
        b[1] - b[3] / 2,
        b[0] + b[2] / 2,
        b[1] + b[3] / 2,
    ],
    "[y, x, height, width]": lambda b: [b[1], b[0], b[1] + b[3], b[0] + b[2]],
    "corners [y0, x0, y1, x1]": lambda b: [b[1], b[0], b[3], b[2]],
}
_UNITS = {"": None, " from 0 to 1": 1.0, " in percent": 100.0}
_ENOUGH = 20  # boxes of which all fit under a cause, that make the cause certain
_FEW, _SEVERAL = 3, 8  # boxes in percent that are counted, and that are a fault
_RARE = 0.02  # of many boxes; if fewer are beyond their image, they do not tell the form of the boxes
_PART = 0.1  # of the boxes that makes a cause certain
_LARGE, _VERY_LARGE = 150, 320  # pixels of the sides of images in which boxes in percent cannot be mistaken
_EDGE = 3.0  # pixels that the edges of a mask and of its box may differ by, whatever their size
_GAP = 2.0  # pixels between a mask and its box from which on the mask is outside
_STRAY = 0.001  # of the masks of a large file, that may be outside their boxes
_FIT = 0.5  # intersection over union of the bounds of a mask and its box from which on they fit
_AREA = 2.0  # factor that areas may differ by
_SMALL_AREA = 0.02  # of the area of a box; if most masks are smaller, the areas are in another unit


def corners(boxes: np.ndarray, form: str) -> np.ndarray:
    """Convert boxes (m, 4) of a form to x0, y0, x1, y1."""
    return np.stack(_FORMS[form](boxes.T), 1)


@dataclasses.dataclass(kw_only=True)
class Finding:
    """Objects that do not fit.

    Attributes:
        kind: what is wrong, for a note "KIND: NUMBER".
        objects: indices of the objects.
        field: name of the field.
        found, expected: describe one object.
        cause: the likely cause, or "".
        fault: whether it is a fault; else it is a note.
    """

    kind: str
    objects: np.ndarray
    field: str
    found: Callable[[int], str]
    expected: Callable[[int], str] = lambda i: ""
    cause: str = ""
    fault: bool = False


def check_boxes(boxes: np.ndarray, sizes: np.ndarray, form: str, *, clip: bool) -> Iterator[Finding]:
    """Compare boxes with their images.

    Args:
        boxes: (m, 4) float64, finite numbers of the given form.
        sizes: (m, 2), width and height of the image of each object.
        form: XYWH or CORNERS.
        clip: whether boxes may be beyond their image.
    """
    edges, found = corners(boxes, form), _describe_box(boxes)

    def expected(i: int) -> str:
        return f"a box {form} inside the image of {sizes[i, 0]} x {sizes[i, 1]} pixels"

    tiny = (np.abs(boxes) <= 1).all(1) & (edges[:, 2:] > edges[:, :2]).all(1) & (sizes > 2).all(1)
    if tiny.any():
        yield Finding(
            kind="boxes in the first pixel",
            objects=np.flatnonzero(tiny),
            field="bbox",
            found=found,
            expected=expected,
            cause="coordinates from 0 to 1",
            fault=bool(tiny.mean() >= _PART),
        )
    elif _are_percent(boxes, edges, sizes):
        yield Finding(
            kind="boxes in the first 100 pixels",
            objects=np.arange(len(boxes)),
            field="bbox",
            found=found,
            expected=expected,
            cause="coordinates in percent",
            fault=len(boxes) >= _SEVERAL,
        )
    outside = np.maximum(-edges[:, :2], edges[:, 2:] - sizes).max(1, initial=-np.inf) > BOX_TOLERANCE
    if outside.any():
        # Small boxes far from the left and upper edges are inside as centers too, so a few boxes beyond prove nothing.
        few = len(boxes) >= _ENOUGH and outside.sum() < max(_FEW, _RARE * len(boxes))
        cause = "" if few else find_box_cause(boxes, sizes, form)
        if not cause and outside.mean() >= 0.5:
            cause = "coordinates of a larger image"
        yield Finding(
            kind="boxes beyond their image, which training clips",
            objects=np.flatnonzero(outside),
            field="bbox",
            found=found,
            expected=expected,
            cause=cause,
            fault=not clip or (bool(cause) and len(boxes) >= _ENOUGH),
        )


def find_box_cause(boxes: np.ndarray, sizes: np.ndarray, form: str) -> str:
    """Name the forms other than `form` in which all boxes are inside their images, or return ""."""
    causes = []
    for other, unit, read in _readings(boxes, sizes, form):
        inside = np.maximum(-read[:, :2], read[:, 2:] - sizes).max() <= BOX_TOLERANCE
        if not unit and inside and (read[:, 2:] >= read[:, :2]).all():
            causes.append(other)
    return f"the boxes are {' or '.join(causes)}" if causes else ""


def _are_percent(boxes: np.ndarray, edges: np.ndarray, sizes: np.ndarray) -> bool:
    """Tell whether all boxes are in percent: they are in the first 100 pixels of large images, and fill them."""
    if len(boxes) < _FEW or boxes.min() < -1 or boxes.max() > 101:
        return False
    if (edges[:, :2].min(0) > 15).any() or (edges[:, 2:].max(0) < 75).any():
        return False
    least = _LARGE if edges.max() <= 101 else _VERY_LARGE
    return bool((sizes >= least).all(1).mean() >= 0.9)


def check_masks(
    boxes: np.ndarray, sizes: np.ndarray, bounds: np.ndarray, read_by_row: Callable[[], np.ndarray]
) -> Iterator[Finding]:
    """Compare masks with their boxes and images.

    Args:
        boxes: (m, 4) float64, [x, y, width, height].
        sizes: (m, 2), width and height of the image of each object.
        bounds: (m, 4), x0, y0, x1, y1 of the masks; NaN for a mask without pixels.
        read_by_row: computes the bounds of run-length encodings as if they were row by row; NaN for polygons.
    """

    def found(i: int) -> str:
        x0, y0, x1, y1 = (f"{value:.4g}" for value in bounds[i])
        return f"a mask from ({x0}, {y0}) to ({x1}, {y1}) with bbox {_describe_box(boxes)(i)}"

    def finding(kind: str, objects: np.ndarray, expected: str = "", cause: str = "", fault: bool = False) -> Finding:
        return Finding(
            kind=kind,
            objects=np.flatnonzero(objects),
            field="segmentation",
            found=found,
            expected=lambda i: expected,
            cause=cause,
            fault=fault,
        )

    edges, cause = corners(boxes, XYWH), ""
    empty = np.logical_not((bounds[:, 2:] > bounds[:, :2]).all(1))
    if empty.any():
        yield finding("masks without pixels", empty, "a mask with pixels", fault=bool(empty.all()))
    gap = np.maximum(bounds[:, :2] - edges[:, 2:], edges[:, :2] - bounds[:, 2:]).max(1)
    outside = ~empty & (gap > _GAP)
    differs = (_overlap(bounds, edges) < _FIT) & (np.abs(bounds - edges).max(1) > _EDGE)
    poor = (differs & ~empty & (boxes[:, 2:] > 0).all(1)) | outside
    if poor.any():
        cause = _find_mask_cause(boxes[poor], sizes[poor], bounds[poor], read_by_row()[poor])
        many = bool(cause) and 2 * poor.sum() >= (~empty).sum()
        inside = (bounds[:, :2] >= edges[:, :2] - _EDGE) & (bounds[:, 2:] <= edges[:, 2:] + _EDGE)
        if "resized" in cause and inside[poor].all(1).mean() >= 0.75:
            many = False  # boxes of whole objects around the masks of their visible parts
        if many or outside.mean() > _STRAY:
            expected = "a mask inside its box, both in pixels of the image file"
            faulty = poor if many else outside
            yield finding("masks outside their boxes", faulty, expected, cause, fault=True)
        elif outside.any():
            yield finding("masks outside their boxes", outside, cause=cause)
        elif cause:
            yield finding("masks that do not fit their boxes", poor, cause=cause)
        else:
            area = np.prod(bounds[:, 2:] - bounds[:, :2], 1)
            if (out := poor & (_common(bounds, edges) < 0.5 * area)).any():
                yield finding("masks mostly outside their boxes", out)
    beyond = ~empty & ~poor & (np.maximum(-bounds[:, :2], bounds[:, 2:] - sizes).max(1) > _GAP)
    if beyond.any():
        yield finding("masks beyond their image", beyond)


def check_areas(areas: np.ndarray, expected: np.ndarray, bounds: np.ndarray, *, masks: bool) -> Iterator[Finding]:
    """Compare annotated areas with those of the masks, or of the boxes, which masks may be smaller than.

    Args:
        areas: (m,) the annotated areas.
        expected: (m,) the areas of the masks or boxes.
        bounds: (m, 4), x0, y0, x1, y1 of the masks or boxes.
    """
    what = "mask" if masks else "box"
    slack = 2 * np.nan_to_num(bounds[:, 2:] - bounds[:, :2]).sum(1)  # a line of pixels along the outline
    wrong = areas > _AREA * expected + slack
    if masks:
        wrong |= areas < expected / _AREA - slack
    elif len(areas) and np.median(areas / np.maximum(expected, 1)) < _SMALL_AREA:
        wrong |= areas < _SMALL_AREA * expected
    if wrong.any():
        yield Finding(
            kind=f"areas, which tell small objects from large ones, that differ from the area of the {what}",
            objects=np.flatnonzero(wrong),
            field="area",
            found=lambda i: f"area {areas[i]:.6g}, {what} {expected[i]:.6g}",
        )


def _find_mask_cause(boxes: np.ndarray, sizes: np.ndarray, bounds: np.ndarray, by_row: np.ndarray) -> str:
    """Find the reading of masks or boxes under which those that do not fit do; "" if there is none."""
    edges = corners(boxes, XYWH)
    both = np.concatenate([sizes, sizes], 1)
    candidates: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "the masks are from 0 to 1": (bounds * both, edges),
        "the masks are in percent": (bounds * both / 100, edges),
        "x and y of the masks are swapped": (bounds[:, [1, 0, 3, 2]], edges),
    }
    for form, unit, read in _readings(boxes, sizes, XYWH):
        candidates[f"the boxes are {form}{unit}"] = (bounds, read)
    candidates["the run-length encodings go row by row, not column by column"] = (by_row, edges)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (edges[:, :2] + edges[:, 2:]) / (bounds[:, :2] + bounds[:, 2:])
        factor, side = np.median(ratios, 0), np.median(sizes / ratios, 0)
    if len(boxes) >= 3 and np.isfinite(factor).all() and np.isfinite(side).all():
        text = f"the masks are of an image resized by {1 / factor[0]:.3g} x {1 / factor[1]:.3g}, or the boxes are"
        candidates[text] = (bounds * np.tile(factor, 2), edges)
        text = f"the masks are of images resized to {side[0]:.4g} x {side[1]:.4g}, or the boxes are"
        candidates[text] = (bounds * both / np.tile(side, 2), edges)
    fits = {text: np.nan_to_num(_overlap(*pair)) for text, pair in candidates.items()}
    # The first of the best ones: the simple causes are before those with estimated factors.
    best = max(fits, key=lambda text: round(float(fits[text].mean()), 2))
    return best if (fits[best] >= _FIT).mean() >= 0.75 and fits[best].mean() >= 0.6 else ""


def _readings(boxes: np.ndarray, sizes: np.ndarray, form: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """Read boxes in every form and unit other than pixels of `form`: form, unit and corners."""
    both = np.concatenate([sizes, sizes], 1)
    for other in _FORMS:
        for unit, divisor in _UNITS.items():
            if other != form or unit:
                swapped = both[:, [1, 0, 3, 2]] if "y, x" in other or "y0, x0" in other else both
                yield other, unit, corners(boxes if divisor is None else boxes * swapped / divisor, other)


def _common(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Compute the area (m,) that boxes have in common. Each has x0, y0, x1, y1."""
    low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    return np.prod((high - low).clip(0), 1)


def _overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Compute the intersection over union (m,) of boxes. Each has x0, y0, x1, y1."""
    common = _common(one, other)
    area = [np.prod((boxes[:, 2:] - boxes[:, :2]).clip(0), 1) for boxes in (one, other)]
    return common / np.maximum(area[0] + area[1] - common, 1e-9)


def _describe_box(boxes: np.ndarray) -> Callable[[int], str]:
    return lambda i: f"[{', '.join(f'{value:.6g}' for value in boxes[i])}]"
