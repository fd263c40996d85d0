"""The training images whose labels are used: drawn at random, or the numbers of a list."""

from pathlib import Path

import numpy as np

from intl_bench.core import inputs
from intl_bench.core.errors import InputError
from pretrain.images import sample
from pretrain.images.data import ArraySource, FileSource, ImageSource
from pretrain.images.names import read_lines


def draw(source: ImageSource, percent: int, seed: int) -> np.ndarray:
    """Draw a percentage of the images, with the same share of every class; see `sample.stratified`.

    Returns:
        (n,) int64, the indices of the images in ascending order.

    Raises:
        InputError: the images are fewer than the classes.
    """
    count = sample.count_of(percent / 100, len(source))
    setting = f"train_percent={percent}"
    return sample.stratified(source.labels, count, seed=seed, purpose="labels", setting=setting)


def write_list(source: ImageSource, indices: np.ndarray) -> bytes:
    """Return the content of a file list of images: CLASS/FILE a line, or the number of an image without a file."""
    names = source.files[indices].tolist() if isinstance(source, FileSource) else [b"%d" % i for i in indices]
    return b"".join(name + b"\n" for name in names)


def numbered_images(source: ArraySource, path: Path, percent: int) -> ArraySource:
    """Return the images whose numbers are in a list, in its order. The first training image has the number 0.

    Raises:
        InputError: the list cannot be read, a line is no number of an image, a number is there twice, or the images are
            not `percent` of all.
    """
    lines = [line.strip() for line in read_lines(path, "the file list")]
    wrong = [line for line in lines if not (line.isdecimal() and len(line) < 12 and int(line) < len(source))]
    if wrong:
        raise InputError(
            f"file list {path}: found {inputs.shorten(wrong[0])}; expected the number of a training image, 0 to "
            f"{len(source) - 1}, in each line"
        )
    if not 0.5 <= len(lines) / (percent / 100 * len(source)) <= 2:
        raise InputError(
            f"file list {path}: {len(lines)} numbers for {len(source)} images are not {percent}%; use another list, or "
            "draw the images with label_seed=0"
        )
    indices = np.array([int(line) for line in lines])
    numbers, counts = np.unique(indices, return_counts=True)
    if (counts > 1).any():
        raise InputError(f"file list {path}: has {numbers[counts > 1][0]} more than once; remove the second line")
    return source.choose(indices)
