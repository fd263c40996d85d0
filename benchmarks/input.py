"""Measure the input pipeline in images per second: the work of a data worker, the work of the device, and both.

    python benchmarks/input.py --images /path/to/imagenet     two minutes on 2 cores

--images is an image folder with train/, of which `--count` images are read in full size. All are in the page cache
after the first pass, so the results do not depend on the disk. The views are those of the recipes
imagenet_r50_intl_multicrop_100ep (six) and imagenet_r50_intl (two).

The reference uses Pillow and the classes of torchvision with the parameters of the recipes, and returns normalized
tensors. The loader of this project draws from the same distributions. Everything runs on CPUs, also the part of the
device. On one core the methods alternate, and the best of `--repeats` counts. With a DataLoader, the rate is measured
over `--seconds` after the first batches.
"""

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms as v1
from torchvision.transforms import v2

from pretrain.images import decode, pack
from pretrain.images.data import DataConfig, FileSource, normalization, open_source
from pretrain.images.loader import Batch, training_batches
from pretrain.images.views import PARAMETERS, ViewConfig, augment, draw_parameters
from pretrain.recipe import load_recipe

RECIPES = {"6 views": "imagenet_r50_intl_multicrop_100ep", "2 views": "imagenet_r50_intl"}
MEAN, STD = normalization(DataConfig())
Transform = Callable[[Image.Image], Tensor]


class PillowBlur:
    """Gaussian blur by Pillow with a random radius."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(self.low, self.high)))


def with_v1(view: ViewConfig, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Transform:
    """Return the reference: v1 transforms of torchvision on a Pillow image."""
    jitter = v1.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    return v1.Compose(
        [
            v1.RandomResizedCrop(
                view.size, (view.min_scale, view.max_scale), interpolation=v1.InterpolationMode.BICUBIC
            ),
            v1.RandomApply([jitter], view.jitter_p),
            v1.RandomGrayscale(view.grayscale_p),
            v1.RandomApply([PillowBlur(view.blur_sigma_min, view.blur_sigma_max)], view.blur_p),
            v1.RandomSolarize(128, view.solarize_p),
            v1.RandomHorizontalFlip(view.flip_p),
            v1.ToTensor(),
            v1.Normalize(mean, std),
        ]
    )


def with_v2(view: ViewConfig) -> Transform:
    """Return v2 transforms of torchvision on a uint8 tensor."""
    jitter = v2.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    return v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(
                view.size, (view.min_scale, view.max_scale), interpolation=v2.InterpolationMode.BICUBIC
            ),
            v2.RandomApply([jitter], view.jitter_p),
            v2.RandomGrayscale(view.grayscale_p),
            v2.RandomApply([v2.GaussianBlur(kernel(view), (view.blur_sigma_min, view.blur_sigma_max))], view.blur_p),
            v2.RandomSolarize(128, view.solarize_p),
            v2.RandomHorizontalFlip(view.flip_p),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def with_kornia(view: ViewConfig) -> Callable[[Tensor], Tensor] | None:
    """Return batched transforms of kornia with parameters per sample; None if kornia is not installed."""
    try:
        from kornia import augmentation as kornia
    except ImportError:
        return None
    return kornia.AugmentationSequential(
        kornia.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue, p=view.jitter_p),
        kornia.RandomGrayscale(p=view.grayscale_p),
        kornia.RandomGaussianBlur((kernel(view),) * 2, (view.blur_sigma_min, view.blur_sigma_max), p=view.blur_p),
        kornia.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=view.solarize_p),
        kornia.RandomHorizontalFlip(p=view.flip_p),
        kornia.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        data_keys=["input"],
    )


def kernel(view: ViewConfig) -> int:
    """Return the kernel width of the blur of this project, for packages that need it."""
    return 2 * int(np.ceil(4 * view.blur_sigma_max)) + 1


class Reference(Dataset[list[Tensor]]):
    """Image files; Pillow decodes each once for all views."""

    def __init__(self, files: Sequence[str], transforms: Sequence[Transform]) -> None:
        self.files, self.transforms = files, transforms

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> list[Tensor]:
        with Image.open(self.files[index]) as image:
            pixels = image.convert("RGB")
        return [transform(pixels) for transform in self.transforms]


@contextlib.contextmanager
def pillow_alone() -> Iterator[None]:
    """Disable simplejpeg within the block."""
    turbo, decode.turbo = decode.turbo, None
    try:
        yield
    finally:
        decode.turbo = turbo


def best_rates(ways: dict[str, Callable[[], object]], images: int, repeats: int) -> dict[str, float]:
    """Return images per second of each method, the best of several rounds in which the methods alternate."""
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return {name: images / best for name, best in seconds.items()}


def worker_ways(sources: dict[str, FileSource], views: Sequence[ViewConfig]) -> dict[str, Callable[[], object]]:
    """Return the methods to prepare all images on one core, up to the copy to the device."""
    folder, count = sources["folder"], len(sources["folder"])
    files = [folder.file(index) for index in range(count)]

    def reference(make: Callable[[ViewConfig], Transform]) -> Callable[[], object]:
        dataset = Reference(files, [make(view) for view in views])
        return lambda: [dataset[index] for index in range(count)]

    def ours(source: FileSource, pillow: bool) -> Callable[[], object]:
        def run() -> None:
            with pillow_alone() if pillow else contextlib.nullcontext():
                list(training_batches(source, views, seed=0, batch_size=count, last_step=1))

        return run

    def floor(pillow: bool) -> Callable[[], object]:
        def run() -> None:
            with pillow_alone() if pillow else contextlib.nullcontext():
                for index in range(count):
                    folder.image(index)

        return run

    decoders = ("Pillow",) if decode.turbo is None else ("Pillow", "simplejpeg")
    ways: dict[str, Callable[[], object]] = {
        "Pillow, torchvision v1 transforms": reference(with_v1),
        "Pillow, torchvision v2 on uint8 tensors": reference(with_v2),
    }
    for decoder in decoders:
        for name, source in sources.items():
            ways[f"ours, {name}, {decoder}"] = ours(source, decoder == "Pillow")
    for decoder in decoders:
        ways[f"floor: decode once, {decoder}"] = floor(decoder == "Pillow")
    return ways


def device_ways(views: Sequence[ViewConfig], count: int) -> dict[str, Callable[[], object] | None]:
    """Return the methods to make network inputs of the uint8 crops of `count` images."""
    generator = np.random.default_rng(0)
    crops = [
        torch.from_numpy(generator.integers(0, 256, (count, view.size, view.size, 3), np.uint8)).permute(0, 3, 1, 2)
        for view in views
    ]
    theirs = [with_kornia(view) for view in views]

    def kornia() -> None:
        for transform, pixels in zip(theirs, crops, strict=True):
            assert transform is not None
            transform(pixels.to(torch.float32).div_(255))

    def ours() -> None:
        for view, pixels in zip(views, crops, strict=True):
            rows = draw_parameters(view, generator.random((count, PARAMETERS + 1)))
            augment(pixels, torch.from_numpy(rows), MEAN, STD)

    return {"kornia": None if None in theirs else kornia, "ours": ours}


def loader_rate(batches: Iterator[object], batch_size: int, seconds: float, warm_up: int) -> float:
    """Return images per second after `warm_up` batches."""
    for _ in range(warm_up):
        next(batches)
    started, count = time.perf_counter(), 0
    for _ in batches:
        count += 1
        if (elapsed := time.perf_counter() - started) > seconds:
            break
    return count * batch_size / elapsed


def loader_ways(
    sources: dict[str, FileSource], views: Sequence[ViewConfig], options: argparse.Namespace
) -> dict[str, float]:
    """Return images per second that a DataLoader with `--workers` processes delivers to this process."""
    size = options.batch
    folder = sources["folder"]
    dataset = Reference([folder.file(index) for index in range(len(folder))], [with_v1(view) for view in views])
    sampler = RandomSampler(dataset, replacement=True, num_samples=1_000_000)

    def ours(finished: bool) -> Iterator[object]:
        source = sources["pack"]
        for batch in training_batches(
            source, views, seed=0, batch_size=size, last_step=1_000_000, workers=options.workers
        ):
            yield made(batch) if finished else batch

    def rate(batches: Iterator[object]) -> float:
        found = loader_rate(batches, size, options.seconds, 2 * options.workers + 1)
        del batches  # ends the workers before the next measurement
        return found

    return {
        "DataLoader of the reference": rate(
            iter(DataLoader(dataset, size, sampler=sampler, num_workers=options.workers))
        ),
        "ours": rate(ours(False)),
        "ours, views finished by the main process": rate(ours(True)),
    }


def made(batch: Batch) -> list[Tensor]:
    """Return the input of the network."""
    return [augment(crops, rows, MEAN, STD) for crops, rows in zip(batch.crops, batch.parameters, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="an image folder with train/")
    parser.add_argument("--count", type=int, default=128, help="number of images")
    parser.add_argument("--batch", type=int, default=32, help="batch size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        whole = open_source(DataConfig(root=str(options.images)), "train")
        assert isinstance(whole, FileSource)
        some = whole.choose(np.linspace(0, len(whole) - 1, options.count).astype(int))
        contents = [some.content(index) for index in range(len(some))]
        pack.write(Path(place) / "train.pack", contents, some.files, some.labels, some.class_names)
        packed = open_source(DataConfig(root=place), "train")
        assert isinstance(packed, FileSource)
        sources = {"folder": some, "pack": packed}
        rows: dict[tuple[str, str], list[float | None]] = {}
        for recipe in RECIPES.values():
            views = load_recipe(recipe).views
            parts: dict[str, dict[str, float | None]] = {
                "worker, one core": {**best_rates(worker_ways(sources, views), options.count, options.repeats)}
            }
            device = device_ways(views, options.batch)
            there = {name: way for name, way in device.items() if way is not None}
            parts["device, one thread"] = dict.fromkeys(device) | best_rates(there, options.batch, options.repeats)
            parts[f"DataLoader, {options.workers} workers"] = {**loader_ways(sources, views, options)}
            for part, rates in parts.items():
                for name, rate in rates.items():
                    rows.setdefault((part, name), []).append(rate)
        height, width = np.mean([some.image(index).shape[:2] for index in range(len(some))], axis=0)
    kilobytes = np.mean([len(content) for content in contents]) / 1000
    print(f"{len(set(some.files.tolist()))} JPEGs of {width:.0f} x {height:.0f} pixels, {kilobytes:.0f} kB on average")
    heads = [f"{name}, images/s | x reference" for name in RECIPES]
    print(f"| part | method | {' | '.join(heads)} |\n| --- | --- |{' --- |' * 2 * len(heads)}")
    reference: list[float | None] = []
    before = ""
    for (part, name), found in rows.items():
        reference, before = (found if part != before else reference), part
        cells = [
            "not installed | –" if rate is None else f"{rate:.0f} | {'–' if one is None else f'{rate / one:.2f}'}"
            for rate, one in zip(found, reference, strict=True)
        ]
        print(f"| {part} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
