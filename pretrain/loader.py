"""Batches of images: one loader for a whole run, whose worker processes each make whole batches.

What a batch holds is a function of the seed and the step alone, the same for any number of workers and processes, and
for a run that starts anywhere in between.
"""

import functools
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from intl_bench.core.errors import BenchError, InputError, ResourceError
from intl_bench.core.seeding import generator, permutation
from pretrain.data import BadImageError, ImageSource
from pretrain.views import PARAMETERS, ViewConfig, centre, crop, draw_parameters, normalize, random_resized_crop_box


class Batch(NamedTuple):
    """One process's part of a training batch of b images.

    Attributes:
        step: number of the batch, from 0 on over all epochs.
        crops: for each view (b, 3, S, S) uint8.
        parameters: for each view (b, PARAMETERS) float32, for `views.augment`.
        labels: (b,) int64.
        bad_files: files of this batch that could not be decoded, in whose place the next image stands.
    """

    step: int
    crops: list[Tensor]
    parameters: list[Tensor]
    labels: Tensor
    bad_files: list[str]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Number of whole batches in one pass over the images; the rest is left out of that pass.

    Raises:
        InputError: there are fewer images than a batch holds.
    """
    if batch_size > images:
        raise InputError(
            f"batch_size={batch_size}: the data set has {images} images only; set batch_size to at most {images}"
        )
    return images // batch_size


def training_batches(
    source: ImageSource,
    views: Sequence[ViewConfig],
    *,
    seed: int,
    batch_size: int,
    first_step: int = 0,
    last_step: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin: bool = False,
) -> Iterator[Batch]:
    """The batches first_step, ..., last_step - 1 of a run.

    Each epoch takes the images in a new order; process `rank` gets the rank-th part of each batch, in order.

    Args:
        views: how to make each view; an image is decoded once for all of them.
        batch_size: images in a batch over all processes.
        workers: processes that make batches; 0 makes them here.
        pin: puts batches into page-locked memory, from which a GPU copies without waiting.

    Raises:
        InputError: the data set is smaller than a batch, a batch cannot be shared out evenly, or (while iterating) an
            image cannot be read.
        ResourceError: (while iterating) a worker died.
    """
    if batch_size % world_size:
        raise InputError(
            f"batch_size={batch_size}: cannot be shared out evenly among {world_size} processes; "
            f"set batch_size to a multiple of {world_size}"
        )
    steps = steps_per_epoch(len(source), batch_size)
    make = functools.partial(
        _training_batch, source, tuple(views), seed, steps, batch_size // world_size, rank, world_size
    )
    return iterate(make, range(first_step, last_step), workers, pin)


def evaluation_batches(
    source: ImageSource,
    *,
    resize: int | None = None,
    crop: int | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    first: int = 0,
    last: int | None = None,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images first, ..., last - 1 in order and without randomness, with their labels: (b, 3, H, W) float32, (b,) int64.

    Args:
        resize: the shorter side's length after an antialiased bilinear resize (256 for ImageNet); None leaves it.
        crop: side of the square that is cut from the middle (224 for ImageNet); None leaves the whole.
        mean, std: three values each, for pixels in 0..1.
        batch_size: images in a batch; the last one holds what is left.
        workers: as for `training_batches`.

    Raises:
        InputError: (while iterating) an image cannot be read, whatever `data.on_bad_image` says, for a score must not
            count stand-ins; or the images of a batch differ in size.
        ResourceError: (while iterating) a worker died.
    """
    indices = range(len(source))[first:last]
    make = functools.partial(_evaluation_batch, source, indices, batch_size, resize, crop)
    steps = range(math.ceil(len(indices) / batch_size))
    for images, labels in iterate(make, steps, workers, False):
        yield normalize(images.to(torch.float32).div_(255), mean, std), labels


class _Steps(Dataset[Any]):
    """What `make` returns for each step; one of our errors is returned too.

    A DataLoader would raise an exception again with the worker's traceback in its text, instead of one line.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Any:
        try:
            return self.make(step)
        except BenchError as error:
            return error


def _unchanged(item: Any) -> Any:
    """Instead of the DataLoader's own conversion, which would make a tensor of every array."""
    return item


def iterate(make: Callable[[int], Any], steps: range, workers: int, pin: bool) -> Iterator[Any]:
    """make(step) for each of the steps, in their order.

    Args:
        make: runs in the workers, or here where there are none.
        workers: processes.
        pin: puts the tensors of what was made into page-locked memory.

    Raises:
        BenchError: what `make` raised.
        ResourceError: a worker died.
    """
    loader = DataLoader(
        _Steps(make),
        batch_size=None,
        collate_fn=_unchanged,
        sampler=steps,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_heed_parent_only,
        generator=torch.Generator(),  # its own, so that the process's generator is left as it is
    )
    try:
        for item in _transferred(loader):
            if isinstance(item, BenchError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise ResourceError(
            f"a data worker died ({' '.join(str(error).split())}); memory or /dev/shm may be too small: "
            "use fewer workers or a smaller batch"
        ) from error


def _transferred(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        yield from loader
    except (EOFError, ConnectionError):
        time.sleep(1)  # where a worker's death breaks off a transfer, PyTorch's RuntimeError about it follows at once
        raise


def _heed_parent_only(_: int) -> None:
    """A terminal's Ctrl-C and a cluster's warning reach every process; the main one decides when its workers end."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has no way to tell who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        continue
    os._exit(0)


@functools.lru_cache(maxsize=1)
def _order(seed: int, epoch: int, images: int) -> np.ndarray:
    return permutation(seed, "order", epoch, images)


def _training_batch(
    source: ImageSource,
    views: Sequence[ViewConfig],
    seed: int,
    steps: int,
    share: int,
    rank: int,
    world_size: int,
    step: int,
) -> Batch:
    epoch, position = divmod(step, steps)
    start = (position * world_size + rank) * share
    crops = [torch.empty((share, 3, view.size, view.size), dtype=torch.uint8) for view in views]
    parameters = [torch.empty((share, PARAMETERS)) for _ in views]
    labels, bad_files = torch.empty(share, dtype=torch.int64), list[str]()
    for row, index in enumerate(_order(seed, epoch, len(source))[start : start + share].tolist()):
        image, labels[row], bad = _readable(source, index)
        bad_files += bad
        for number, view in enumerate(views):
            stream = generator(seed, "views", epoch, index, number)
            box = random_resized_crop_box(image.shape[0], image.shape[1], view, stream)
            crops[number][row] = crop(image, box, view.size, view.interpolation)
            parameters[number][row] = torch.from_numpy(draw_parameters(view, stream))
    return Batch(step, crops, parameters, labels, bad_files)


def _readable(source: ImageSource, index: int) -> tuple[np.ndarray, int, list[str]]:
    """Image `index`, its label and no bad files; or the first readable one that follows, and the bad ones before it."""
    bad: list[str] = []
    for candidate in itertools.chain(range(index, len(source)), range(index)):
        try:
            return source.image(candidate), int(source.labels[candidate]), bad
        except BadImageError:
            if not source.skip_bad:
                raise
            bad.append(source.file(candidate))
    raise InputError(f"{source.file(index)}: neither this image nor any other of the data set can be read")


def _evaluation_batch(
    source: ImageSource, indices: range, batch_size: int, resize: int | None, crop: int | None, step: int
) -> tuple[Tensor, Tensor]:
    some = indices[step * batch_size : (step + 1) * batch_size]
    images = [centre(source.image(index), resize, crop) for index in some]
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{source.file(some[0])} and the images after it differ in size; set resize and crop")
    return torch.stack(images), torch.from_numpy(source.labels[some.start : some.stop])
