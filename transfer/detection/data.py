"""Batches of images for the detector. They do not depend on the number of workers and processes.

As in Detectron2, a batch holds either wide images or images that are not wide. The images come from an endless sequence
of shuffled epochs. Each of the two kinds fills its own batch, and a batch is given out when it is full. Here the order
of the batches is computed from the annotated sizes alone, so a resumed run can start at any iteration.
"""

# ruff: noqa: PT028  (test_images is not a test)

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from intl_bench.core.errors import InputError
from intl_bench.core.seeding import generator, permutation
from intl_bench.core.sharing import require_even_batch
from pretrain.images.loader import iterate
from transfer.detection import transforms
from transfer.detection.annotations.objects import Annotations
from transfer.detection.structures import Image, Mask, Target


class Batch(NamedTuple):
    """The part of a training batch that one process gets.

    Attributes:
        iteration: number of the batch, counted from 0.
        images: the images with their targets.
        positions: position of each image in the batch of all processes.
    """

    iteration: int
    images: list[Image]
    positions: list[int]

    def split(self, parts: int) -> list["Batch"]:
        """Divide the images into equal parts, in their order."""
        size = len(self.images) // parts
        ends = [slice(first, first + size) for first in range(0, len(self.images), size)]
        return [Batch(self.iteration, self.images[part], self.positions[part]) for part in ends]


class _PackedBatch(NamedTuple):
    """A `Batch` as a worker sends it, with all pixels in one tensor, because each tensor takes a file descriptor.

    Attributes:
        pixels: (sum of 3 h w,) uint8.
        shapes: (3, h, w) of each image.
        sources: height, width and image_id of each image.
        targets: boxes, classes and masks of each image, as arrays.
    """

    iteration: int
    positions: list[int]
    pixels: Tensor
    shapes: list[tuple[int, ...]]
    sources: list[tuple[int, int, int]]
    targets: list[tuple[np.ndarray, np.ndarray, list[Mask]]]


class BatchOrder(NamedTuple):
    """The images of consecutive batches.

    Attributes:
        images: (iterations, batch_size) int64, index of each image in the annotations.
        epochs: (iterations, batch_size) int64, the epoch that each image comes from.
    """

    images: np.ndarray
    epochs: np.ndarray


def plan_batches(
    wide: np.ndarray, *, seed: int, batch_size: int, first: int, last: int, purpose: str = "order"
) -> BatchOrder:
    """Choose the images of the batches first, ..., last - 1 of a run.

    Args:
        wide: (n,) bool, whether an image is wider than tall.
        purpose: name of the stream of random numbers. Streams of different names are independent.
    """
    # This number of images is enough for `last` batches: at most batch_size - 1 images of each kind are left over.
    epochs = -(-(last * batch_size + 2 * (batch_size - 1)) // len(wide))
    images = np.concatenate([permutation(seed, purpose, epoch, len(wide)) for epoch in range(epochs)])
    kinds = wide[images]
    groups = []
    for kind in (False, True):
        places = np.flatnonzero(kinds == kind)
        groups.append(places[: len(places) // batch_size * batch_size].reshape(-1, batch_size))
    batches = np.concatenate(groups)
    chosen = batches[np.argsort(batches[:, -1])[first:last]]  # a batch is full when its last image comes
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
    """Load the batches first_iteration, ..., last_iteration - 1 of a run, one after the other.

    Args:
        batch_size: images in a batch over all processes. Process `rank` of `world_size` gets the rank-th part.
        min_sizes: shorter sides in pixels, one of which is drawn for each image.
        max_size: the largest longer side in pixels.
        masks: whether the targets have masks.
        workers: number of data workers; 0 loads the batches in this process.
        pin: whether the images are put into page-locked memory.
        purpose: name of the stream of random numbers, as in `plan_batches`.

    Raises:
        InputError: the batch size is not a multiple of the number of processes, or (while iterating) an image cannot be
            read.
        ResourceError: (while iterating) a worker died.
    """
    require_even_batch(batch_size, world_size)
    wide = annotations.widths > annotations.heights
    plan = plan_batches(
        wide, seed=seed, batch_size=batch_size, first=first_iteration, last=last_iteration, purpose=purpose
    )
    share = batch_size // world_size
    load = functools.partial(
        _load_training_batch,
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
    return map(_unpack, iterate(load, range(first_iteration, last_iteration), workers, pin))


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
    """Load the images first, ..., last - 1 in order, without targets and without random changes.

    Args:
        min_size, max_size: the shorter side in pixels, and the largest longer side.
        last: None loads all images from `first` on.
        workers: number of data workers; 0 loads the images in this process.
        pin: whether the images are put into page-locked memory.

    Raises:
        InputError: (while iterating) an image cannot be read.
        ResourceError: (while iterating) a worker died.
    """
    load = functools.partial(_load_test_image, annotations, min_size, max_size)
    return iterate(load, range(len(annotations))[first:last], workers, pin)


def _load_training_batch(
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
) -> _PackedBatch:
    """Load the images `positions` of one batch and make their targets."""
    pixels, sources, targets = list[Tensor](), list[tuple[int, int, int]](), list[Any]()
    for position in positions:
        index, epoch = (int(part[iteration - first_iteration, position]) for part in plan)
        stream = generator(seed, purpose, epoch, index)
        min_size = min_sizes[int(stream.integers(len(min_sizes)))]
        flip = bool(stream.random() < 0.5)
        image = _load_image(annotations, index, min_size, max_size, flip=flip)
        pixels.append(image.pixels)
        sources.append((image.height, image.width, image.image_id))
        height, width = image.pixels.shape[1:]
        boxes, classes, outlines = transforms.make_target(annotations, index, height, width, flip=flip, masks=masks)
        targets.append((boxes.numpy(), classes.numpy(), outlines))
    shapes = [tuple(part.shape) for part in pixels]
    joined = torch.cat([part.flatten() for part in pixels])
    return _PackedBatch(iteration, list(positions), joined, shapes, sources, targets)


def _unpack(packed: _PackedBatch) -> Batch:
    parts = packed.pixels.split([math.prod(shape) for shape in packed.shapes])
    images = [
        Image(pixels.view(shape), *source, Target(torch.from_numpy(boxes), torch.from_numpy(classes), masks))
        for pixels, shape, source, (boxes, classes, masks) in zip(
            parts, packed.shapes, packed.sources, packed.targets, strict=True
        )
    ]
    return Batch(packed.iteration, images, packed.positions)


def _load_test_image(annotations: Annotations, min_size: int, max_size: int, index: int) -> Image:
    return _load_image(annotations, index, min_size, max_size, flip=False)


def _load_image(annotations: Annotations, index: int, min_size: int, max_size: int, *, flip: bool) -> Image:
    """Read and resize image `index`. The result has no target."""
    width, height = int(annotations.widths[index]), int(annotations.heights[index])
    image = transforms.read_image(annotations.file(index), (width, height))
    if image.size != (width, height):
        raise InputError(
            f"{annotations.file(index)}: {image.width} x {image.height} pixels; expected {width} x {height} as in "
            f"{annotations.path}; the file changed after the annotations were checked: restore it"
        )
    new_size = transforms.resized_size(height, width, min_size, max_size)
    pixels = transforms.resize_image(image, *new_size, flip=flip)
    return Image(pixels, height, width, int(annotations.image_ids[index]), None)
