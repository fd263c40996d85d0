"""Reader of the outlines of COCO's annotations: polygons and run-length encodings."""

import itertools
import re
from typing import Any

import numpy as np

from intl_bench.core.inputs import shorten
from transfer.detection import rle
from transfer.detection.annotations.objects import Outlines
from transfer.detection.annotations.rows import Rows

_EXPECTED = "a list of polygons, or a run-length encoding (or set model.masks=false)"
_DIGITS = re.compile("[0-9]+")
_FEWEST = 6  # numbers of a polygon
_NEUTRAL = [[0.0] * _FEWEST]  # stands for an outline that is not valid


def read_outlines(rows: Rows, sizes: np.ndarray, evaluated: bool, notes: list[str]) -> Outlines:
    """Return the outlines of all annotations, in the order of the file.

    Args:
        sizes: (m, 2), width and height of the image of each annotation.
        evaluated: whether pycocotools will read the outlines too; it needs a polygon of at least three points for each
            object.
    """
    values = rows.column("segmentation", {list, dict}, _EXPECTED, _NEUTRAL)
    encoded = np.fromiter((type(value) is dict for value in values), bool, len(values))
    values = values if not encoded.any() else [*values]
    problems: dict[int, tuple[str, str]] = {}  # row -> found, expected
    for index in np.flatnonzero(encoded).tolist():
        width, height = sizes[index].tolist()
        try:
            values[index] = [rle.read_counts(values[index], height, width)]
        except ValueError as error:
            found, _, wanted = str(error).partition("; expected ")
            problems[index] = found, wanted
            values[index], encoded[index] = _NEUTRAL, False
    kinds = {index: _DIGITS.sub("", wanted) for index, (_, wanted) in problems.items() if rows.sound[index]}
    for kind in dict.fromkeys(kinds.values()):
        wrong = [index for index in kinds if kinds[index] == kind]
        rows.report(wrong, "segmentation", lambda i: problems[i][0], lambda i: problems[i][1], kind)
    parts = np.fromiter(map(len, values), np.int64, len(values))
    empty = parts == 0
    if evaluated or empty.all():
        rows.report(np.flatnonzero(empty), "segmentation", lambda i: "empty", _EXPECTED, "empty")
    owner = np.repeat(np.arange(len(values)), parts)
    polygons = list(itertools.chain.from_iterable(values))
    if set(map(type, polygons)) - {list}:
        others: dict[int, object] = {}
        for row, polygon in zip(owner.tolist(), polygons, strict=True):
            if type(polygon) is not list:
                others.setdefault(row, polygon)
        expected = "a list of numbers for each polygon"
        rows.report(others, "segmentation", lambda i: shorten(others[i]), expected)
        polygons = [polygon if type(polygon) is list else _NEUTRAL[0] for polygon in polygons]
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    polygonal = ~encoded[owner]
    odd = polygonal & (lengths % 2 == 1)
    if odd.any():
        _report_parts(rows, owner, odd, lengths, "x0, y0, x1, y1, ..., an even number of numbers")
        for index in np.flatnonzero(odd).tolist():
            polygons[index], lengths[index] = polygons[index][:-1], lengths[index] - 1
    numbers = rows.flatten("segmentation", polygons, owner)
    if not (finite := np.isfinite(numbers)).all():
        infinite = {
            int(owner[np.searchsorted(lengths.cumsum(), i, side="right")]): float(numbers[i])
            for i in np.flatnonzero(~finite)[::-1].tolist()
        }
        rows.report(sorted(infinite), "segmentation", lambda i: shorten(infinite[i]), "finite coordinates")
    short = polygonal & (lengths < _FEWEST)
    if evaluated:  # beside a valid polygon, a shorter one has no pixel for pycocotools
        alone = short & ~odd & (np.bincount(owner[~short], minlength=len(values)) == 0)[owner]
        expected = "at least one of 6 numbers or more, because COCO's metric requires it"
        _report_parts(rows, owner, alone, lengths, expected)
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


def readable(segmentation: list[list[float]] | dict[str, Any]) -> list[list[float]] | dict[str, Any]:
    """Return a checked outline in the form that both evaluators read: no short polygon, and whole numbers of pixels."""
    if isinstance(segmentation, list):
        return [polygon for polygon in segmentation if len(polygon) >= _FEWEST]
    if isinstance(segmentation["counts"], list):
        return {**segmentation, "counts": [*map(int, segmentation["counts"])]}
    return segmentation


def _report_parts(rows: Rows, owner: np.ndarray, wrong: np.ndarray, lengths: np.ndarray, expected: str) -> None:
    """Report polygons of a wrong number of numbers."""
    found = dict(zip(owner[wrong][::-1].tolist(), lengths[wrong][::-1].tolist(), strict=True))
    rows.report(sorted(found), "segmentation", lambda i: f"a polygon of {found[i]} numbers", expected)


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], counts.cumsum()])


def measure(outlines: Outlines, heights: np.ndarray, *, areas: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Compute the bounds of all outlines, and their areas if `areas` is set, in the order of the file.

    Args:
        heights: (r,) int64, height of the image of each row.

    Returns:
        (r, 4) x0, y0, x1, y1, NaN for an outline without pixels; (r,) pixels. Polygons that overlap count twice.
    """
    count = len(heights)
    bounds, area = np.full((count, 4), np.nan), np.zeros(count)
    owner = np.repeat(np.arange(count), np.diff(outlines.first_part))
    lengths = np.diff(outlines.first_number)
    encoded = outlines.encoded[owner]
    if not encoded.all():
        points = _numbers(outlines, ~encoded).reshape(-1, 2)
        sides, owners = lengths[~encoded] // 2, owner[~encoded]
        used = np.flatnonzero(np.bincount(owners, sides, minlength=count))
        starts = _starts(np.bincount(owners, sides, minlength=count).astype(np.int64))[used]
        bounds[used, :2] = np.minimum.reduceat(points, starts, axis=0)
        bounds[used, 2:] = np.maximum.reduceat(points, starts, axis=0)
        if areas:
            first = _starts(sides)
            following = np.arange(1, len(points) + 1)
            following[first[1:] - 1] = first[:-1]
            crossed = points[:, 0] * points[following, 1] - points[following, 0] * points[:, 1]
            area += np.bincount(owners, np.abs(np.add.reduceat(crossed, first[:-1])) / 2, minlength=count)
    if encoded.any():
        numbers = _numbers(outlines, encoded).astype(np.int64)
        row, ends, ones = _runs(numbers, lengths[encoded], owner[encoded])
        first, last = (ends - numbers)[ones], ends[ones] - 1
        row, runs = row[ones], numbers[ones]
        bounds[outlines.encoded] = _run_bounds(row, first, last, heights[row], count)[outlines.encoded]
        area += np.bincount(row, runs, minlength=count)
    return bounds, area if areas else None


def measure_by_row(outlines: Outlines, widths: np.ndarray) -> np.ndarray:
    """Compute the bounds (r, 4) of run-length encodings, as if they were row by row; NaN for polygons."""
    owner = np.repeat(np.arange(len(widths)), np.diff(outlines.first_part))
    lengths = np.diff(outlines.first_number)
    encoded = outlines.encoded[owner]
    numbers = _numbers(outlines, encoded).astype(np.int64)
    row, ends, ones = _runs(numbers, lengths[encoded], owner[encoded])
    first, last, row = (ends - numbers)[ones], ends[ones] - 1, row[ones]
    return _run_bounds(row, first, last, widths[row], len(widths))[:, [1, 0, 3, 2]]


def _numbers(outlines: Outlines, parts: np.ndarray) -> np.ndarray:
    """Return the numbers of some parts, (p,) bool. Neighbors are copied together, which is fast if most are chosen."""
    edges = np.flatnonzero(np.diff(parts, prepend=False, append=False))
    bounds = outlines.first_number[edges].tolist()
    pieces = [outlines.numbers[first:last] for first, last in zip(bounds[::2], bounds[1::2], strict=True)]
    return pieces[0] if len(pieces) == 1 else np.concatenate([outlines.numbers[:0], *pieces])


def _runs(numbers: np.ndarray, lengths: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the row of each run, the pixel after its last one in its bitmap, and whether it has pixels of 1."""
    starts = _starts(lengths)[:-1]
    ends = numbers.cumsum()
    before = np.concatenate([[0], ends])[starts]
    place = np.arange(len(numbers)) - np.repeat(starts, lengths)
    return np.repeat(owner, lengths), ends - np.repeat(before, lengths), (place % 2 == 1) & (numbers > 0)


def _run_bounds(row: np.ndarray, first: np.ndarray, last: np.ndarray, column: np.ndarray, count: int) -> np.ndarray:
    """Compute the bounds (count, 4) of runs from pixel `first` to pixel `last`; `column` is the height of a column."""
    bounds = np.full((count, 4), np.nan)
    whole = first // column != last // column  # a run over more than one column covers all rows
    low = [first // column, np.where(whole, 0, first % column)]
    high = [last // column + 1, np.where(whole, column, last % column + 1)]
    rows, starts = np.unique(row, return_index=True)
    for axis in range(2) if len(rows) else ():
        bounds[rows, axis] = np.minimum.reduceat(low[axis], starts)
        bounds[rows, axis + 2] = np.maximum.reduceat(high[axis], starts)
    return bounds
