"""COCO's run-length encoding of a bitmap: lengths of runs of 0 and 1 in turn, from 0 on, down the columns."""

from typing import Any

import numpy as np


def decode_string(text: bytes) -> np.ndarray:
    """The counts, (n,) int64, that pycocotools has compressed into a string.

    Each is written in groups of five bits, lowest first, as characters from "0" on, whose sixth bit says that another
    follows; from the fourth count on it is the difference to the one two before (cocoapi's `rleToString`).

    Raises:
        ValueError: it is not such a string.
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
    counts -= np.where(codes[ends] & 16, 1 << (5 * sizes), 0)  # the sign
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts


def counts_of(encoding: dict[str, Any], height: int, width: int) -> list[int]:
    """The counts of a COCO encoding {"size": [height, width], "counts": list or string} after checking it.

    Raises:
        ValueError: it does not encode a bitmap of this size; the message says what was found and expected.
    """
    size, counts = encoding.get("size"), encoding.get("counts")
    if size != [height, width]:
        raise ValueError(f"size {_short(size)}; expected the image's [height, width], [{height}, {width}]")
    if isinstance(counts, str):
        try:
            counts = decode_string(counts.encode())
        except ValueError as error:
            raise ValueError(f"counts {_short(encoding['counts'])}; expected pycocotools' string") from error
        counts = counts.tolist()
    if not isinstance(counts, list) or not set(map(type, counts)) <= {int}:
        raise ValueError(f"counts {_short(counts)}; expected a list of whole numbers or pycocotools' string")
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(
            f"counts that add up to {_short(sum(counts))} (the smallest is {_short(min(counts, default=0))}); "
            f"expected lengths that add up to height x width = {height * width}"
        )
    return counts


def to_bitmap(counts: np.ndarray, height: int, width: int) -> np.ndarray:
    """The bitmap (height, width) bool."""
    counts = np.asarray(counts).astype(np.int64)
    runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return runs.reshape(width, height).T


def from_bitmap(bitmap: np.ndarray) -> dict[str, Any]:
    """The encoding, with a list of counts, of a bitmap (height, width) bool."""
    pixels = np.concatenate([[False], bitmap.T.ravel(), [not bitmap[-1, -1]]])
    counts = np.diff(np.flatnonzero(pixels[1:] != pixels[:-1]), prepend=0)
    return {"size": list(bitmap.shape), "counts": counts.tolist()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
