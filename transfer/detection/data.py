"""Batches for the detector, the same from any number of workers and processes and from any iteration on.

As in Detectron2 a batch holds images of one of two shapes, wide ones or the others, and is complete when enough of its
kind have come up in an endless sequence of shuffled epochs. Here that plan is index arithmetic on the annotated sizes,
so a run that starts anywhere need not replay what came before.
"""

# ruff: noqa: PT028  (test_images is no test)

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from intl_bench.core.errors import InputError
from intl_bench.core.seeding import generator, permutation
from pretrain.images.loader import iterate
from transfer.detection import transforms
from transfer.detection.annotations.objects import Annotations
from transfer.detection.structures import Image, Mask, Target


class Batch(NamedTuple):
    """One process's part of a training batch.

    Attributes:
        iteration: number of the batch, from 0 on.
        images: with their targets.
        positions: place of each image in the batch of all processes.
    """

    iteration: int
    images: list[Image]
    positions: list[int]


class _Packed(NamedTuple):
    """A batch on its way from a worker: all pixels in one tensor, for each tensor takes a file descriptor.

    Attributes:
        pixels: (sum of 3 h w,) uint8.
        shapes: of the images' pixels.
        sources: height, width and image_id of each.
        targets: boxes, classes and masks of each, as arrays.
    """

    iteration: int
    positions: list[int]
    pixels: Tensor
    shapes: list[tuple[int, ...]]
    sources: list[tuple[int, int, int]]
    targets: list[tuple[np.ndarray, np.ndarray, list[Mask]]]


class BatchOrder(NamedTuple):
    """Which images the batches hold: for each (iterations, batch_size) int64 the image's number and the epoch."""

    images: np.ndarray
    epochs: np.ndarray


def plan_batches(
    wide: np.ndarray, *, seed: int, batch_size: int, first: int, last: int, purpose: str = "order"
) -> BatchOrder:
    """The batches first, ..., last - 1 of a run.

    Args:
        wide: (n,) bool, whether an image is wider than tall.
        purpose: names the stream of random numbers, so that two uses of one seed are independent.
    """
    # So many images surely complete `last` batches: at most batch_size - 1 of each kind wait for others.
    epochs = -(-(last * batch_size + 2 * (batch_size - 1)) // len(wide))
    images = np.concatenate([permutation(seed, purpose, epoch, len(wide)) for epoch in range(epochs)])
    kinds = wide[images]
    groups = []
    for kind in (False, True):
        places = np.flatnonzero(kinds == kind)
        groups.append(places[: len(places) // batch_size * batch_size].reshape(-1, batch_size))
    batches = np.concatenate(groups)
    chosen = batches[np.argsort(batches[:, -1])[first:last]]  # in the order in which their last images come up
    return BatchOrder(images[chosen], chosen // len(wide))


def training_batches(
    annotations: Annotations,
    *,
    seed: int,
    batch_size: int,
    min_sizes: Sequence[int],
    max_size: int,
    masks: bool,
    first_iteration: int,
    last_iteration: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin: bool = False,
    purpose: str = "order",
) -> Iterator[Batch]:
    """The batches first_iteration, ..., last_iteration - 1 of a run; process `rank` gets the rank-th part of each.

    Args:
        batch_size: images in a batch over all processes.
        min_sizes: shorter sides in pixels, one of which is drawn for each image.
        max_size: the longest side.
        workers: processes that make batches; 0 makes them here.
        pin: puts batches into page-locked memory.
        purpose: as for `plan_batches`.

    Raises:
        InputError: a batch cannot be shared out evenly, or (while iterating) an image cannot be read.
        ResourceError: (while iterating) a worker died.
    """
    if batch_size % world_size:
        raise InputError(
            f"batch_size={batch_size}: cannot be shared out evenly among {world_size} processes; "
            f"set batch_size to a multiple of {world_size}"
        )
    wide = annotations.widths > annotations.heights
    plan = plan_batches(
        wide, seed=seed, batch_size=batch_size, first=first_iteration, last=last_iteration, purpose=purpose
    )
    share = batch_size // world_size
    make = functools.partial(
        _training_batch,
        annotations,
        plan,
        first_iteration,
        range(rank * share, (rank + 1) * share),
        seed,
        f"{purpose} views",
        tuple(min_sizes),
        max_size,
        masks,
    )
    return map(_unpacked, iterate(make, range(first_iteration, last_iteration), workers, pin))


def test_images(
    annotations: Annotations,
    *,
    min_size: int,
    max_size: int,
    first: int = 0,
    last: int | None = None,
    workers: int = 0,
    pin: bool = False,
) -> Iterator[Image]:
    """Images first, ..., last - 1 in order, without randomness and without targets.

    Args:
        min_size, max_size: shorter side in pixels, and the longest side.
        pin: puts images into page-locked memory.

    Raises:
        InputError, ResourceError: as for `training_batches`.
    """
    make = functools.partial(_test_image, annotations, min_size, max_size)
    return iterate(make, range(len(annotations))[first:last], workers, pin)


def _training_batch(
    annotations: Annotations,
    plan: BatchOrder,
    first_iteration: int,
    positions: range,
    seed: int,
    purpose: str,
    min_sizes: tuple[int, ...],
    max_size: int,
    masks: bool,
    iteration: int,
) -> _Packed:
    pixels, sources, targets = list[Tensor](), list[tuple[int, int, int]](), list[Any]()
    for position in positions:
        index, epoch = (int(part[iteration - first_iteration, position]) for part in plan)
        stream = generator(seed, purpose, epoch, index)
        min_size = min_sizes[int(stream.integers(len(min_sizes)))]
        flip = bool(stream.random() < 0.5)
        image = _image(annotations, index, min_size, max_size, flip=flip)
        pixels.append(image.pixels)
        sources.append((image.height, image.width, image.image_id))
        height, width = image.pixels.shape[1:]
        boxes, classes, outlines = transforms.make_target(annotations, index, height, width, flip=flip, masks=masks)
        targets.append((boxes.numpy(), classes.numpy(), outlines))
    shapes = [tuple(one.shape) for one in pixels]
    return _Packed(iteration, list(positions), torch.cat([one.flatten() for one in pixels]), shapes, sources, targets)


def _unpacked(packed: _Packed) -> Batch:
    parts = packed.pixels.split([math.prod(shape) for shape in packed.shapes])
    images = [
        Image(pixels.view(shape), *source, Target(torch.from_numpy(boxes), torch.from_numpy(classes), masks))
        for pixels, shape, source, (boxes, classes, masks) in zip(
            parts, packed.shapes, packed.sources, packed.targets, strict=True
        )
    ]
    return Batch(packed.iteration, images, packed.positions)


def _test_image(annotations: Annotations, min_size: int, max_size: int, index: int) -> Image:
    return _image(annotations, index, min_size, max_size, flip=False)


def _image(annotations: Annotations, index: int, min_size: int, max_size: int, *, flip: bool) -> Image:
    """Image `index` without its target."""
    image = transforms.read_image(annotations.file(index))
    width, height = int(annotations.widths[index]), int(annotations.heights[index])
    if image.size != (width, height):
        raise InputError(
            f"{annotations.file(index)}: {image.width} x {image.height} pixels; expected {width} x {height} as in "
            f"{annotations.path}: the file was changed after the annotations were checked; restore it"
        )
    size = transforms.resized_size(height, width, min_size, max_size)
    pixels = transforms.resize_image(image, *size, flip=flip)
    return Image(pixels, height, width, int(annotations.image_ids[index]), None)
