"""A random part of labeled images in which every class keeps its share."""

import numpy as np

from intl_bench.core.errors import InputError
from intl_bench.core.seeding import generator, permutation


def count_of(limit: float, images: int) -> int:
    """Return the number of images that a limit means: a share below 1, or a number of images."""
    return round(limit * images) if limit < 1 else int(limit)


def stratified(labels: np.ndarray, count: int, *, seed: int, purpose: str, setting: str) -> np.ndarray:
    """Choose images at random so that every class keeps its share, and at least one image.

    The choices of one seed are nested: a smaller one is a part of a larger one.

    Args:
        labels: (n,) int64, of all images. Every class from 0 on has images.
        count: number of images to choose.
        seed, purpose: name the stream of random numbers.
        setting: the setting that asks for this number, for the message.

    Returns:
        (count,) int64, the chosen indices in ascending order.

    Raises:
        InputError: there are more classes than `count`, or fewer images.
    """
    sizes = np.bincount(labels)
    if not len(sizes) <= count <= len(labels):
        raise InputError(
            f"{setting}: means {count:,} of the {len(labels):,} images of {len(sizes):,} classes; expected at least "
            f"{len(sizes):,}, an image of each class, and at most {len(labels):,}"
        )
    # Image number r of a class of m images comes when the share r / m of all images is chosen, so the first image of
    # every class comes first. The order within a class, and of classes with equal shares, is random.
    order = permutation(seed, purpose, 0, len(labels))
    members = order[np.argsort(labels[order], kind="stable")]  # class by class
    first = np.concatenate([[0], sizes.cumsum()[:-1]])
    place = np.empty(len(labels))
    place[members] = (np.arange(len(labels)) - np.repeat(first, sizes)) / np.repeat(sizes, sizes)
    ties = generator(seed, purpose, 1).permutation(len(sizes))[labels]
    return np.sort(np.lexsort((ties, place))[:count])


def held_out(labels: np.ndarray, share: float, *, seed: int, setting: str) -> np.ndarray:
    """Choose a part of the training images for choosing settings. Every class keeps its share in both parts.

    Both parts have at least one image of each class.

    Args:
        labels: (n,) int64, of all images.
        share: of the images, between 0 and 1.
        seed: of the draw. The part of a smaller share is a part of that of a larger one.
        setting: the setting that asks for the part, for the message.

    Returns:
        (n,) bool, whether an image is in the part.

    Raises:
        InputError: the share means fewer images than classes, or a class has a single image, or none would be left.
    """
    count = round(share * len(labels))
    mask = np.zeros(len(labels), bool)
    mask[stratified(labels, count, seed=seed, purpose="holdout", setting=setting)] = True
    check_both_parts(labels, mask, setting=setting)
    return mask


def check_both_parts(labels: np.ndarray, held: np.ndarray, *, setting: str) -> None:
    """Refuse a part of the training images, (n,) bool, that holds all images of a class.

    Raises:
        InputError: there is such a class.
    """
    sizes = np.bincount(labels)
    missing = np.flatnonzero((np.bincount(labels[~held], minlength=len(sizes)) == 0) & (sizes > 0))
    if len(missing) and sizes[missing[0]] == 1:
        raise InputError(
            f"{setting}: class number {missing[0]} has a single training image; expected at least "
            "two of each class, one for each part; add images, or use more of the labels"
        )
    if len(missing):
        raise InputError(f"{setting}: leaves a class without images; expected a smaller share")
