"""COCO's run-length encoding of a bitmap.

The counts are the lengths of runs of 0 and 1 in turn, starting with 0. The pixels are read column by column.
"""

from typing import Any

import numpy as np

from intl_bench.core.inputs import shorten


def decode_counts(text: bytes) -> np.ndarray:
    """Decode the counts of pycocotools' compressed string (`rleToString` of cocoapi).

    A count is written in groups of five bits, the lowest group first. A group is one character with the code 48 plus
    six bits; the sixth bit tells that another group follows. From the fourth count on, the difference to the count two
    places before is written.

    Returns:
        (n,) int64.

    Raises:
        ValueError: `text` is not such a string.
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("not a compressed run-length encoding")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.max() > 10:
        raise ValueError("not a compressed run-length encoding")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, sizes))
    counts = np.add.reduceat((codes & 31) << shifts, starts)
    counts -= np.where(codes[ends] & 16, 1 << (5 * sizes), 0)  # the highest bit of the last group is the sign
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts


def read_counts(encoding: dict[str, Any], height: int, width: int) -> list[int]:
    """Check a COCO encoding {"size": [height, width], "counts": list or string} and return its counts.

    Raises:
        ValueError: it does not encode a bitmap of this size. The message has the form "FOUND; expected EXPECTED".
    """
    size, counts = encoding.get("size"), encoding.get("counts")
    if size != [height, width]:
        raise ValueError(f"size {shorten(size)}; expected the image's [height, width], [{height}, {width}]")
    if isinstance(counts, str):
        try:
            counts = decode_counts(counts.encode())
        except ValueError as error:
            raise ValueError(f"counts {shorten(encoding['counts'])}; expected pycocotools' string") from error
        counts = counts.tolist()
    if isinstance(counts, list) and float in set(map(type, counts)):  # 3.0 is 3, as for pycocotools
        counts = [int(run) if type(run) is float and run.is_integer() else run for run in counts]
    if not isinstance(counts, list) or not set(map(type, counts)) <= {int}:
        raise ValueError(f"counts {shorten(counts)}; expected a list of whole numbers or pycocotools' string")
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(
            f"counts with a sum of {shorten(sum(counts))} (the smallest is {shorten(min(counts, default=0))}); "
            f"expected lengths of runs with a sum of height x width = {height * width}"
        )
    return counts


def to_bitmap(counts: np.ndarray, height: int, width: int) -> np.ndarray:
    """Decode counts (n,) to a bitmap (height, width) bool."""
    counts = np.asarray(counts).astype(np.int64)
    runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return runs.reshape(width, height).T


def from_bitmap(bitmap: np.ndarray) -> dict[str, Any]:
    """Encode a bitmap (height, width) bool, with the counts as a list."""
    pixels = np.concatenate([[False], bitmap.T.ravel(), [not bitmap[-1, -1]]])
    counts = np.diff(np.flatnonzero(pixels[1:] != pixels[:-1]), prepend=0)
    return {"size": list(bitmap.shape), "counts": counts.tolist()}
