"""The rates of this machine, measured in a second, and the time to prepare images on it."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from intl_bench.core import machine
from pretrain.dry_run.costs import Device
from pretrain.images.data import ArraySource, ImageSource
from pretrain.images.loader import training_batches
from pretrain.images.views import ViewConfig, augment

_REPEATS = 5
_SAMPLE = 16  # images that are prepared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """The time that the preparation of an image takes.

    Attributes:
        loading: seconds of one core to read, decode and crop an image.
        augmenting: seconds to augment it on the device; 0 for a GPU, where it was not measured.
    """

    loading: float = 0.0
    augmenting: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine.

    Attributes:
        device: its measured rates, for one of the processes of a run.
        on_gpu: whether the device is a GPU.
        cores: number of its cores.
    """

    device: Device
    on_gpu: bool
    cores: int

    def seconds(self, computing: float, images: int, preparation: Preparation, workers: int) -> float:
        """Return the time of some work with the preparation of its images.

        Without workers, one follows the other. Workers of a GPU prepare images meanwhile. Workers on the cores that
        also compute take their time from them.

        Args:
            computing: seconds of the work alone.
            images: number of images of all processes.
            workers: number of workers of all processes.
        """
        loading = images * preparation.loading
        if workers == 0:
            return computing + images * preparation.augmenting + loading
        limit = loading / min(workers, self.cores)
        if self.on_gpu:
            return max(computing, limit)
        return max(computing + images * preparation.augmenting + loading / self.cores, limit)


@functools.cache
def measure(device: str = "auto", *, processes: int = 1) -> Machine:
    """Measure the rates of this machine: the best of five products and copies.

    Args:
        device: "auto", "cpu" or "cuda".
        processes: number of processes of a run; on a CPU they share the rates.
    """
    gpu = device != "cpu" and torch.cuda.is_available()
    where, cores = torch.device("cuda" if gpu else "cpu"), machine.cores()

    def best(work: Callable[[], object]) -> float:
        def whole() -> None:
            work()
            if gpu:
                torch.cuda.synchronize()

        return min(_seconds(whole) for _ in range(_REPEATS))

    def product(n: int, dtype: torch.dtype) -> float:
        a, b = (torch.randn(n, n, device=where, dtype=dtype) for _ in range(2))
        return 2 * n**3 / best(lambda: a @ b)

    single = conv = product(8192 if gpu else 1024, torch.float32)
    half = product(8192 if gpu else 512, torch.bfloat16)
    if gpu:  # convolutions may use TF32
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        conv = product(8192, torch.float32)
        torch.set_float32_matmul_precision(before)
    source = torch.ones((1 << 28) if gpu else (1 << 25), device=where)
    target = torch.empty_like(source)
    copy = best(lambda: target.copy_(source))
    share = 1 if gpu else processes
    rates = {"half": half, "conv32": conv, "matmul32": single}
    name = torch.cuda.get_device_name() if gpu else f"this CPU, {cores} core{'s' if cores > 1 else ''}"
    memory = torch.cuda.get_device_properties(0).total_memory if gpu else machine.memory_bytes() / processes
    return Machine(
        device=Device(
            name=name,
            flops={unit: rate / share for unit, rate in rates.items()},
            bandwidth=2 * source.numel() * 4 / copy / share,
            memory=memory,
        ),
        on_gpu=gpu,
        cores=cores,
    )


def time_views(source: ImageSource, views: Sequence[ViewConfig], *, on_gpu: bool) -> Preparation:
    """Measure the preparation of random views of some images.

    Raises:
        InputError: an image cannot be read.
    """
    if on_gpu and isinstance(source, ArraySource):
        return Preparation()  # small images stay on the GPU
    size = min(_SAMPLE, len(source))
    batches = training_batches(source, views, seed=0, batch_size=size, last_step=_REPEATS)
    batch = next(batches)  # loads libraries
    loading = min(_seconds(lambda: next(batches)) for _ in range(_REPEATS - 1)) / size
    if on_gpu:
        return Preparation(loading=loading)

    def once() -> None:
        for crops, parameters in zip(batch.crops, batch.parameters, strict=True):
            augment(crops, parameters, (0.5,) * 3, (0.25,) * 3)

    return Preparation(loading=loading, augmenting=min(_seconds(once) for _ in range(_REPEATS)) / size)


def time_batches(batches: Iterable[object], size: int) -> Preparation:
    """Measure the preparation of two or more batches of `size` images each, without that of the first one."""
    items = iter(batches)
    next(items)
    times = []
    while True:
        try:
            times.append(_seconds(lambda: next(items)))
        except StopIteration:
            return Preparation(loading=min(times) / size)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
