"""Batches of images: one loader for a whole run, whose worker processes each make whole batches.

What a batch holds is a function of the seed and the step alone, the same for any number of workers and processes, and
for a run that starts anywhere in between. Small images in memory are sent to a GPU once and cut into views there, which
gives the same pixels and needs no workers.
"""

import dataclasses
import functools
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from intl_bench.core.copies import pinned
from intl_bench.core.errors import BenchError, InputError, ResourceError
from intl_bench.core.seeding import permutation, uniforms
from pretrain.images import crops
from pretrain.images.ahead import ahead
from pretrain.images.data import ArraySource, BadImageError, ImageSource
from pretrain.images.views import PARAMETER_DRAWS, Prepared, ViewConfig, draw_parameters, normalize, prepare

# On a CPU, resizing small images one by one is faster than by the matrices of `crops.ResidentImages`; on a GPU these
# grow with the square of the side, and larger images are no burden for workers.
_RESIDENT_SIDE = 128  # pixels
_RESIDENT_BYTES = 4 * 2**30
_CPU = torch.device("cpu")


class Batch(NamedTuple):
    """One process's part of a training batch of b images.

    Attributes:
        step: number of the batch, from 0 on over all epochs.
        crops: for each view (b, 3, S, S) uint8, in channels-last order; on the GPU already if its images are.
        parameters: for each view (b, PARAMETERS) float32 on the CPU, for `views.augment`; of images that stay on a GPU
            as `views.prepare` makes them.
        labels: (b,) int64 on the CPU.
        bad_files: files of this batch that could not be decoded, in whose place the next image stands.
    """

    step: int
    crops: list[Tensor]
    parameters: Sequence[Tensor | Prepared]
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
    device: torch.device = _CPU,
) -> Iterator[Batch]:
    """The batches first_step, ..., last_step - 1 of a run.

    Each epoch takes the images in a new order; process `rank` gets the rank-th part of each batch, in order.

    Args:
        views: how to make each view; an image is decoded once for all of them.
        batch_size: images in a batch over all processes.
        workers: processes that make batches; 0 makes them here.
        device: where the batches will be used. For a GPU they come in page-locked memory, from which it copies without
            waiting; small images of an `ArraySource` are kept on it, and workers are not started.

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
    sampler = _Sampler(
        images=len(source),
        views=tuple(views),
        seed=seed,
        steps=steps_per_epoch(len(source), batch_size),
        share=batch_size // world_size,
        rank=rank,
        world_size=world_size,
    )
    steps, on_gpu = range(first_step, last_step), device.type == "cuda"
    if on_gpu and isinstance(source, ArraySource) and _is_small(source.images):
        return _resident_batches(source, sampler, steps, device)
    return iterate(functools.partial(_decoded_batch, source, sampler), steps, workers, on_gpu)


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
    device: torch.device = _CPU,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images first, ..., last - 1 in order and without randomness, with their labels: (b, 3, H, W) float32, (b,) int64.

    Args:
        resize: the shorter side's length after an antialiased bilinear resize (256 for ImageNet); None leaves it.
        crop: side of the square that is cut from the middle (224 for ImageNet); None leaves the whole.
        mean, std: three values each, for pixels in 0..1.
        batch_size: images in a batch; the last one holds what is left.
        workers: as for `training_batches`.
        device: where the images are normalized and handed out; they travel as bytes. The labels stay on the CPU.

    Raises:
        InputError: (while iterating) an image cannot be read, whatever `data.on_bad_image` says, for a score must not
            count stand-ins; or the images of a batch differ in size.
        ResourceError: (while iterating) a worker died.
    """
    indices = range(len(source))[first:last]
    make = functools.partial(_evaluation_batch, source, indices, batch_size, resize, crop)
    steps = range(math.ceil(len(indices) / batch_size))
    for images, labels in iterate(make, steps, workers, device.type == "cuda"):
        images = images.to(device, non_blocking=True)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sampler:
    """Which images a process's part of a batch is made of, and the random numbers of their views."""

    images: int
    views: tuple[ViewConfig, ...]
    seed: int
    steps: int
    share: int
    rank: int
    world_size: int

    def draw(self, step: int) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Numbers of the images (share,); for each view its shapes (share, BOX_DRAWS) and rows (share, PARAMETERS)."""
        epoch, position = divmod(step, self.steps)
        start = (position * self.world_size + self.rank) * self.share
        indices = _order(self.seed, epoch, self.images)[start : start + self.share]
        shapes, parameters = [], []
        for number, view in enumerate(self.views):
            draws = PARAMETER_DRAWS + crops.BOX_DRAWS
            uniform = uniforms(self.seed, "views", epoch, indices, number, draws)
            parameters.append(draw_parameters(view, uniform[:, :PARAMETER_DRAWS]))
            shapes.append(crops.draw_shapes(view, uniform[:, PARAMETER_DRAWS:]))
        return indices, shapes, parameters


def _decoded_batch(source: ImageSource, sampler: _Sampler, step: int) -> Batch:
    indices, shapes, parameters = sampler.draw(step)
    made = [_empty((len(indices), view.size, view.size, 3), torch.uint8).permute(0, 3, 1, 2) for view in sampler.views]
    labels, bad_files = _empty((len(indices),), torch.int64), list[str]()
    for row, (index, of_views) in enumerate(zip(indices.tolist(), np.stack(shapes, axis=1), strict=True)):
        image, labels[row], bad = _readable(source, index)
        bad_files += bad
        boxes = crops.fit_boxes(of_views, *image.shape[:2])
        for view, box, pixels in zip(sampler.views, boxes.tolist(), made, strict=True):
            pixels[row] = crops.crop(image, box, view.size, view.interpolation)
    rows = [_empty(part.shape, torch.float32).copy_(torch.from_numpy(part)) for part in parameters]
    return Batch(step, made, rows, labels, bad_files)


def _resident_batches(
    source: ArraySource, sampler: _Sampler, steps: Iterable[int], device: torch.device
) -> Iterator[Batch]:
    """Batches of images that stay on a GPU; a thread draws the next one's crops and parameters meanwhile."""
    images = crops.ResidentImages(source.images, device)

    def draw(step: int) -> tuple[int, list[Tensor], list[Prepared], Tensor]:
        indices, shapes, parameters = sampler.draw(step)
        boxes = (crops.fit_boxes(of_view, *source.images.shape[1:3]) for of_view in shapes)
        places = [pinned(torch.from_numpy(np.column_stack([indices, of_view])), device) for of_view in boxes]
        prepared = [prepare(torch.from_numpy(rows), device) for rows in parameters]
        return step, places, prepared, pinned(torch.from_numpy(source.labels[indices]), device)

    for step, places, prepared, labels in ahead(map(draw, steps), device):
        made = [
            images.crops(of_view, view.size, view.interpolation)
            for view, of_view in zip(sampler.views, places, strict=True)
        ]
        yield Batch(step, made, prepared, labels, [])


def _is_small(images: np.ndarray) -> bool:
    return max(images.shape[1:3]) <= _RESIDENT_SIDE and images.nbytes <= _RESIDENT_BYTES


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A new tensor; a worker's is in the memory that it shares with the main process, which gets it without a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    try:
        storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    except RuntimeError as error:
        raise ResourceError(
            f"a data worker cannot share its batch ({' '.join(str(error).split())[:150]}); /dev/shm may be too small: "
            "give it more room, or use fewer workers or a smaller batch"
        ) from error
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(dtype).view(shape)


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
    images = [crops.center(source.image(index), resize, crop) for index in some]
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{source.file(some[0])} and the images after it differ in size; set resize and crop")
    labels = _empty((len(some),), torch.int64).copy_(torch.from_numpy(source.labels[some.start : some.stop]))
    return torch.stack(images, out=_empty((len(some), *images[0].shape), torch.uint8)), labels
