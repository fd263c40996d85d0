"""Batches of images: one loader for a whole run; each worker process makes whole batches.

The content of a batch depends on the seed and the step only. It is the same for any number of workers and processes,
and for a run that resumes at any step. Small images in memory are copied to a GPU once and cropped there, which gives
the same pixels and needs no workers.
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
from intl_bench.core.sharing import require_even_batch
from intl_bench.core.signals import STOP_SIGNALS
from pretrain.images import crops
from pretrain.images.ahead import ahead
from pretrain.images.data import ArraySource, BadImageError, ImageSource
from pretrain.images.views import PARAMETER_DRAWS, Prepared, ViewConfig, draw_parameters, normalize, prepare

# Limits of the images that `crops.ResidentImages` crops on a GPU. Its matrices grow with the square of the side, and
# workers can crop larger images. On a CPU, it is slower than resizing image by image.
_RESIDENT_SIDE = 128  # pixels
_FEWEST = 2  # images of a process in the smaller batch at the end of an epoch
_RESIDENT_BYTES = 4 * 2**30
_CPU = torch.device("cpu")


class Batch(NamedTuple):
    """The part of a training batch that one process gets, b images.

    Attributes:
        step: number of the batch, from 0, over all epochs.
        crops: for each view (b, 3, S, S) uint8, in channels-last order; on the GPU if the images stay there.
        parameters: for each view, the parameters of `views.augment`: (b, PARAMETERS) float32 on the CPU, or the result
            of `views.prepare` for images that stay on a GPU.
        labels: (b,) int64 on the CPU.
        bad_files: files that could not be decoded; each was replaced by the next image.
    """

    step: int
    crops: list[Tensor]
    parameters: Sequence[Tensor | Prepared]
    labels: Tensor
    bad_files: list[str]


def steps_per_epoch(images: int, batch_size: int, *, drop_last: bool = True, world_size: int = 1) -> int:
    """Return the number of batches in one epoch.

    Args:
        drop_last: whether an epoch leaves out the images that do not fill a batch. If not, they are a smaller batch, if
            each of the `world_size` processes gets two of them or more, because one image has no batch statistics.

    Raises:
        InputError: there are too few images for a batch.
    """
    whole, rest = divmod(images, batch_size)
    steps = whole + (not drop_last and rest // world_size >= _FEWEST)
    if steps == 0:
        raise InputError(
            f"batch_size={batch_size}: the data set has only {images} images; set batch_size to at most {images}"
        )
    return steps


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
    drop_last: bool = True,
) -> Iterator[Batch]:
    """Return an iterator over the batches first_step, ..., last_step - 1 of a run.

    Each epoch takes the images in a new order. Process `rank` gets part number `rank` of each batch. Of the smaller
    batch at the end of an epoch, all processes get equally many images.

    Args:
        views: settings of each view; an image is decoded once for all views.
        seed: seed of the order and of the random views.
        batch_size: number of images in a batch over all processes.
        workers: number of worker processes; 0 makes the batches in this process.
        device: the device that uses the batches. For a GPU, the batches are in page-locked memory, which can be copied
            without a synchronization. Small images of an `ArraySource` stay on the GPU, without workers.
        drop_last: see `steps_per_epoch`.

    Raises:
        InputError: the data set is smaller than a batch, a batch does not divide evenly, or (while iterating) an
            image cannot be read.
        ResourceError: (while iterating) a worker died.
    """
    require_even_batch(batch_size, world_size)
    sampler = _Sampler(
        images=len(source),
        views=tuple(views),
        seed=seed,
        steps=steps_per_epoch(len(source), batch_size, drop_last=drop_last, world_size=world_size),
        batch_size=batch_size,
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
    interpolation: str = "bilinear",
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    first: int = 0,
    last: int | None = None,
    workers: int = 0,
    device: torch.device = _CPU,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images first, ..., last - 1 (b, 3, H, W) float32 and their labels (b,) int64, in order, without randomness.

    Args:
        resize: length of the shorter side after an antialiased resize (256 for ImageNet); None keeps the size.
        crop: side of the central square crop (224 for ImageNet); None keeps the whole image.
        interpolation: of the resize, "bicubic" or "bilinear".
        mean, std: three values each, for pixels in 0..1.
        batch_size: number of images in a batch; the last batch may be smaller.
        workers: as for `training_batches`.
        device: the device of the yielded images, which are copied there as uint8 and then normalized. The labels stay
            on the CPU.

    Raises:
        InputError: (while iterating) an image cannot be read, or the images of a batch differ in size.
            `data.on_bad_image` is not used here, because a score must not count replaced images.
        ResourceError: (while iterating) a worker died.
    """
    indices = range(len(source))[first:last]
    make = functools.partial(_evaluation_batch, source, indices, batch_size, (resize, crop, interpolation))
    steps = range(math.ceil(len(indices) / batch_size))
    for images, labels in iterate(make, steps, workers, device.type == "cuda"):
        images = images.to(device, non_blocking=True)
        yield normalize(images.to(torch.float32).div_(255), mean, std), labels


class _Steps(Dataset[Any]):
    """The result of `make` for each step; a `BenchError` is returned instead of raised.

    A DataLoader raises an exception of a worker again with the traceback in its text, instead of in one line.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Any:
        try:
            return self.make(step)
        except BenchError as error:
            return error


def _unchanged(item: Any) -> Any:
    """Return `item`; this replaces the conversion of a DataLoader, which makes a tensor of every array."""
    return item


def iterate(make: Callable[[int], Any], steps: range, workers: int, pin: bool) -> Iterator[Any]:
    """Yield make(step) for each step, in order.

    Args:
        make: a function that runs in the workers, or in this process if there are no workers.
        workers: number of worker processes.
        pin: whether to put the tensors of the results into page-locked memory.

    Raises:
        BenchError: `make` raised it.
        ResourceError: a worker died.
    """
    loader = DataLoader(
        _Steps(make),
        batch_size=None,
        collate_fn=_unchanged,
        sampler=steps,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # without it, the loader would draw from the global generator
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
        time.sleep(1)  # PyTorch raises a RuntimeError about a dead worker a moment after the broken transfer
        raise


def ignore_signals(_: int) -> None:
    """Ignore stop signals, except SIGTERM of the parent process.

    Ctrl-C in a terminal, its closing, and the warning of a cluster reach every process. The parent decides when its
    workers end.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS does not tell which process sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for SIGTERM of the parent process, and end this process."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        continue
    os._exit(0)


@functools.lru_cache(maxsize=1)
def _order(seed: int, epoch: int, images: int) -> np.ndarray:
    return permutation(seed, "order", epoch, images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sampler:
    """The images in the part of a batch that a process gets, and the random parameters of their views."""

    images: int
    views: tuple[ViewConfig, ...]
    seed: int
    steps: int
    batch_size: int
    rank: int
    world_size: int

    def draw(self, step: int) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Draw the image indices (n,), and for each view (n, BOX_DRAWS) shapes and (n, PARAMETERS) rows.

        n is the number of images of the process: a part of a batch, or of the rest of an epoch.
        """
        epoch, position = divmod(step, self.steps)
        first = position * self.batch_size
        share = min(self.batch_size, self.images - first) // self.world_size
        first += self.rank * share
        indices = _order(self.seed, epoch, self.images)[first : first + share]
        return indices, *draw_views(self.views, self.seed, epoch, indices)


def draw_views(
    views: Sequence[ViewConfig], seed: int, epoch: int, indices: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Draw for each view the shapes (n, BOX_DRAWS) and parameters (n, PARAMETERS) of n images of an epoch."""
    shapes, parameters = [], []
    for number, view in enumerate(views):
        uniform = uniforms(seed, "views", epoch, indices, number, PARAMETER_DRAWS + crops.BOX_DRAWS)
        parameters.append(draw_parameters(view, uniform[:, :PARAMETER_DRAWS]))
        shapes.append(crops.draw_shapes(view, uniform[:, PARAMETER_DRAWS:]))
    return shapes, parameters


def _decoded_batch(source: ImageSource, sampler: _Sampler, step: int) -> Batch:
    indices, shapes, parameters = sampler.draw(step)
    made = [_empty((len(indices), view.size, view.size, 3), torch.uint8).permute(0, 3, 1, 2) for view in sampler.views]
    labels, bad_files = _empty((len(indices),), torch.int64), list[str]()
    for row, (index, of_views) in enumerate(zip(indices.tolist(), np.stack(shapes, axis=1), strict=True)):
        image, labels[row], bad = _readable(source, index)
        # Records hold text. The bytes of a name may be something else.
        bad_files += [name.encode(errors="backslashreplace").decode() for name in bad]
        boxes = crops.fit_boxes(of_views, *image.shape[:2])
        for view, box, pixels in zip(sampler.views, boxes.tolist(), made, strict=True):
            pixels[row] = crops.crop(image, box, view.size, view.interpolation)
    rows = [_empty(part.shape, torch.float32).copy_(torch.from_numpy(part)) for part in parameters]
    return Batch(step, made, rows, labels, bad_files)


def _resident_batches(
    source: ArraySource, sampler: _Sampler, steps: Iterable[int], device: torch.device
) -> Iterator[Batch]:
    """Yield batches of images that stay on a GPU; a thread draws the random numbers of the next batch."""
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
    """Create a tensor; in a worker, it is in shared memory, which the main process receives without a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    try:
        storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    except RuntimeError as error:
        raise ResourceError(
            f"a data worker cannot share its batch ({' '.join(str(error).split())[:150]}); /dev/shm may be too small: "
            "enlarge it, or use fewer workers or a smaller batch"
        ) from error
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(dtype).view(shape)


def _readable(source: ImageSource, index: int) -> tuple[np.ndarray, int, list[str]]:
    """Return the first readable image from `index` on, its label, and the bad files before it.

    Raises:
        BadImageError: image `index` cannot be decoded, and `source.skip_bad` is False.
        InputError: no image can be decoded.
    """
    bad: list[str] = []
    for candidate in itertools.chain(range(index, len(source)), range(index)):
        try:
            return source.image(candidate), int(source.labels[candidate]), bad
        except BadImageError as error:
            if not source.skip_bad:
                raise BadImageError(f"{error}; data.on_bad_image=skip trains on the next image instead") from error
            bad.append(source.file(candidate))
    raise InputError(f"{source.file(index)}: no image of the data set can be decoded; check data.root")


def _evaluation_batch(
    source: ImageSource, indices: range, batch_size: int, look: tuple[int | None, int | None, str], step: int
) -> tuple[Tensor, Tensor]:
    some = indices[step * batch_size : (step + 1) * batch_size]
    try:
        images = [crops.center(source.image(index), *look) for index in some]
    except BadImageError as error:
        if not source.skip_bad:
            raise
        raise BadImageError(f"{error}; scoring needs every image: data.on_bad_image=skip is for training") from error
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{source.file(some[0])}: the next images have other sizes; set resize and crop")
    labels = _empty((len(some),), torch.int64).copy_(torch.from_numpy(source.labels[some.start : some.stop]))
    return torch.stack(images, out=_empty((len(some), *images[0].shape), torch.uint8)), labels
