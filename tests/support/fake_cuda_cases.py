"""What is measured on the GPU that is not there (`fake_cuda`): training steps, evaluations, the detector.

Backbones and images are small, for operations do not depend on sizes; recipes are the packaged ones.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from detection_cases import TINY as DETECTOR
from detection_cases import TINY_FPN as PYRAMID
from fake_cuda import CUDA, FakeCuda
from tiny_runs import OVERRIDES, has_recipe
from torch import nn
from transfer_cases import CPU, make_checkpoint

from intl_bench.core import distributed
from intl_bench.core.signals import StopRequest
from pretrain import methods, train
from pretrain.images.data import ArraySource
from pretrain.images.loader import training_batches
from pretrain.images.views import augment
from pretrain.recipe import Recipe, load_recipe
from pretrain.spectrum import batch_spectra
from transfer import features, probe, sgd_classifier
from transfer.detection import build_model, masks
from transfer.detection.annotations import generated
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig, DetectionConfig, ModelConfig
from transfer.detection.engines import builtin as detection
from transfer.neighbors import knn_predict

GPU = distributed.Process(rank=0, world_size=1, device=CUDA)
PRECISIONS = ("fp32", "bf16", "fp16")
SMALL = [
    *("backbone.name=resnet10_narrow", "backbone.stem=imagenet", "projector.hidden=32", "projector.out=64"),
    *("batch_size=32", "epochs=2", "warmup_epochs=1", "workers=0"),
]


class OneOfTwo(distributed.Process):
    """The first of two processes, whose gradients nobody averages."""

    def parallel(self, module: nn.Module) -> nn.Module:
        return module


Trained = nn.Module | None
"""What has gradients after a case."""


def noise(images: int, side: int, classes: int = 10) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), np.uint8)
    return ArraySource(pixels, np.arange(images) % classes, [str(label) for label in range(classes)], "noise")


def recipe(name: str, *overrides: str, sizes: tuple[int, ...] = ()) -> Recipe:
    """A packaged recipe with a small backbone and small views; `sizes` are all 16 pixels otherwise."""
    loaded = load_recipe(name, [*SMALL, *overrides])
    sizes = sizes or (16,) * len(loaded.views)
    views = tuple(dataclasses.replace(view, size=size) for view, size in zip(loaded.views, sizes, strict=True))
    return dataclasses.replace(loaded, views=views)


def second_step(fake: FakeCuda, recipe: Recipe, *, side: int = 16, process: distributed.Process = GPU) -> Trained:
    """The second step of a run, for the first one makes what is kept; the images are there already."""
    source = noise(128, side)
    training = train.build_training(recipe, process, len(source), len(source.class_names))
    batches = training_batches(source, recipe.views, seed=0, batch_size=32, last_step=2, device=CUDA)
    training.take_step(next(batches))
    batch = next(batches)
    fake.counts.clear()
    training.take_step(batch)
    return training.method


def pretraining(fake: FakeCuda, *, name: str, overrides: Sequence[str] = ()) -> Trained:
    return second_step(fake, recipe(name, *overrides))


def intl(fake: FakeCuda, *, precision: str, optimizer: str = "sgd") -> Trained:
    return second_step(fake, recipe("cifar10_r18_intl", f"precision={precision}", f"optimizer={optimizer}"))


def multicrop(fake: FakeCuda, *, precision: str) -> Trained:
    """Six views of the sizes' ratios, cut by the loader and sent to the GPU, and a momentum network."""
    small = recipe("imagenet_r50_intl_multicrop_100ep", f"precision={precision}", sizes=(32, 32, 28, 24, 20, 16))
    return second_step(fake, small, side=136)


@contextlib.contextmanager
def two_processes() -> Iterator[None]:
    """The other process sends what this one does."""

    def gather(parts: list[torch.Tensor], tensor: torch.Tensor) -> None:
        for part in parts:
            part.copy_(tensor)

    def reduce(tensor: torch.Tensor, op: Any = None) -> None:
        tensor.mul_(1 if op == torch.distributed.ReduceOp.MAX else 2)

    def exchange(received: torch.Tensor, sent: torch.Tensor) -> None:
        received.copy_(sent)

    changes: dict[str, Any] = {
        "is_initialized": lambda: True,
        "get_world_size": lambda: 2,
        "get_rank": lambda: 0,
        "all_gather": gather,
        "all_reduce": reduce,
        "all_to_all_single": exchange,
    }
    with mock.patch.multiple(torch.distributed, **changes):
        yield


def several_processes(fake: FakeCuda) -> Trained:
    with two_processes():
        return second_step(fake, recipe("cifar10_r18_intl"), process=OneOfTwo(rank=0, world_size=2, device=CUDA))


def crops(fake: FakeCuda) -> Trained:
    """The crops of a batch of images that stay on the GPU."""
    views = recipe("cifar10_r18_intl").views
    batches = training_batches(noise(128, 32), views, seed=0, batch_size=32, last_step=2, device=CUDA)
    next(batches)
    fake.counts.clear()
    next(batches)
    return None


def augmentation(fake: FakeCuda) -> Trained:
    """All that a view may be changed by, blur and solarization included, for two views."""
    views = load_recipe("imagenet_r50_intl", ["workers=0"]).views
    views = tuple(dataclasses.replace(view, size=32) for view in views)
    batches = training_batches(noise(64, 136), views, seed=0, batch_size=64, last_step=1, device=CUDA)
    batch = next(batches)
    fake.counts.clear()
    for pixels, parameters in zip(batch.crops, batch.parameters, strict=True):
        augment(pixels.to(CUDA, non_blocking=True), parameters, (0.5,) * 3, (0.2,) * 3)
    return None


def same_numbers(fake: FakeCuda) -> Trained:
    """What has code of its own for a GPU gives the CPU's numbers: a step on resident images, and pasted masks."""
    small, source, losses = recipe("cifar10_r18_intl"), noise(64, 16), list[list[float]]()
    for process in (GPU, CPU):
        training = train.build_training(small, process, len(source))
        batches = training_batches(source, small.views, seed=0, batch_size=32, last_step=2, device=process.device)
        losses.append([training.take_step(batch).values()["loss"] for batch in batches])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)

    draw = torch.Generator().manual_seed(0)
    probabilities, corners = torch.rand(5, 7, 7, generator=draw), torch.rand(5, 2, generator=draw) * 20
    boxes = torch.cat([corners, corners + 5 + torch.rand(5, 2, generator=draw) * 20], dim=1)
    pasted = masks.paste(probabilities.to(CUDA), boxes.to(CUDA), 40, 50)
    assert torch.equal(pasted.cpu(), masks.paste(probabilities, boxes, 40, 50))
    fake.counts.clear()
    return None


def spectra(fake: FakeCuda) -> Trained:
    """What is watched every `spectrum_every` steps."""
    training = train.build_training(recipe("cifar10_r18_intl"), GPU, 128)
    training.method.embedding = torch.randn(32, 64, device=CUDA)
    fake.counts.clear()
    batch_spectra(training.method, torch.randn(32, 24, device=CUDA))
    return None


def classifier(*, frozen: bool, precision: str = "fp32") -> Any:
    """A supervised run on 64 images at step 0."""
    settings = sgd_classifier.Settings(
        seed=0,
        epochs=2,
        batch_size=32,
        head_lr=0.1,
        backbone_lr=0.0 if frozen else 0.01,
        weight_decay=0.0,
        milestones=(1,),
        resize=None,
        crop=16,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        precision=precision,
    )
    return sgd_classifier._prepare(make_checkpoint(), noise(64, 16), noise(64, 16), settings, GPU)


def supervised_step(fake: FakeCuda, *, frozen: bool, precision: str = "fp32") -> Trained:
    run = classifier(frozen=frozen, precision=precision)
    view = sgd_classifier.ViewConfig(size=16, interpolation="bilinear", jitter_p=0.0, grayscale_p=0.0)
    batches = training_batches(noise(64, 16), [view], seed=0, batch_size=32, last_step=2, device=CUDA)
    run.take_step(next(batches))
    batch = next(batches)
    fake.counts.clear()
    run.take_step(batch)
    trained: nn.Module = run.classifier.trained
    return trained


def supervised_test(fake: FakeCuda) -> Trained:
    """Two batches and a part of one."""
    run = classifier(frozen=True)
    fake.counts.clear()
    run.test(noise(600, 16), 0)
    return None


def extraction(fake: FakeCuda) -> Trained:
    """Features of two more batches: three without the first, for which the weights are sent."""
    look = ((0.5,) * 3, (0.2,) * 3)
    for images in (256, 768):
        before = fake.counts.copy()
        fake.counts.clear()
        features.extract(
            make_checkpoint(), noise(images, 16), normalization=look, resize=None, crop=None, process=GPU, workers=0
        )
    fake.counts.subtract(before)
    return None


def neighbors(fake: FakeCuda, **settings: Any) -> Trained:
    """Three parts of the training features, as it is with many; none is at the same distance as another."""
    draw = torch.Generator().manual_seed(0)
    train, test = torch.randn(600, 16, generator=draw), torch.randn(50, 16, generator=draw)
    knn_predict(train, torch.arange(600) % 10, test, k=5, chunk_bytes=4 * 50 * 250, device=CUDA, **settings)
    return None


def probing(fake: FakeCuda) -> Trained:
    """Two epochs of two batches."""
    draw = torch.Generator().manual_seed(0)
    train, test = torch.randn(128, 16, generator=draw), torch.randn(32, 16, generator=draw)
    labels = torch.arange(128) % 10
    probe.train_probe(train, labels, test, labels[:32], classes=10, seed=0, epochs=2, batch_size=64, device=CUDA)
    return None


def detector(precision: str, base: ModelConfig = DETECTOR) -> tuple[Any, Any]:
    """A detection run at iteration 0, and generated images."""
    generated.write(Path("figures"), train=4, test=1)
    config = DetectionConfig(
        data=AnnotatedDataConfig(root="figures", name="figures"),
        model=dataclasses.replace(base, num_classes=5),
        precision=precision,
        engine="builtin",
        iterations=2,
        milestones=(),
        batch_size=2,
        min_sizes=(64,),
        max_size=120,
        test_min_size=64,
        test_max_size=120,
        workers=0,
    )
    weights = build_model(dataclasses.replace(DETECTOR, num_classes=5)).state_dict()
    backbone = {
        key.removeprefix("backbone.").removeprefix("roi_heads."): value
        for key, value in weights.items()
        if key.startswith(("backbone.", "roi_heads.res5.")) and not key.startswith("roi_heads.res5.norm")
    }
    return detection._prepare(backbone, config, 0, GPU, {}), config


def detector_step(fake: FakeCuda, *, precision: str, base: ModelConfig = DETECTOR) -> Trained:
    """The second step, of two images."""
    run, config = detector(precision, base)
    images = read_split(config.data, "train", masks=True)
    batches = detection._batches(run, images, 0, 2, "detection order")
    run.take_step(next(batches))
    batch = next(batches)
    fake.counts.clear()
    run.take_step(batch)
    model: nn.Module = run.model
    return model


def detect(fake: FakeCuda, *, precision: str, base: ModelConfig = DETECTOR) -> Trained:
    """One image, from its pixels to its detections as they are scored."""
    run, config = detector(precision, base)
    fake.counts.clear()
    with StopRequest() as stop:
        found = detection._detect(run, read_split(config.data, "test", masks=True), stop)
    assert found, "nothing is detected"
    return None


CASES: dict[str, Callable[[FakeCuda], Trained]] = {
    **{
        f"pretrain {name}": partial(pretraining, name=f"cifar10_r18_{name}", overrides=OVERRIDES.get(name, []))
        for name in methods.names()
        if has_recipe(name)
    },
    **{f"INTL {precision}": partial(intl, precision=precision) for precision in PRECISIONS},
    **{f"INTL six views {precision}": partial(multicrop, precision=precision) for precision in PRECISIONS},
    **{f"INTL {name} fp16": partial(intl, precision="fp16", optimizer=name) for name in ("lars", "adam")},
    "INTL two processes": several_processes,
    "crops": crops,
    "augmentation": augmentation,
    "same numbers": same_numbers,
    "spectra": spectra,
    "linear step": partial(supervised_step, frozen=True),
    "linear step bf16": partial(supervised_step, frozen=True, precision="bf16"),
    "finetune step": partial(supervised_step, frozen=False),
    "supervised test": supervised_test,
    "features": extraction,
    "knn": neighbors,
    "knn inverse": partial(neighbors, weights="inverse"),
    "knn softmax": partial(neighbors, distance="cosine", weights="softmax"),
    "probe": probing,
    **{f"detector step {precision}": partial(detector_step, precision=precision) for precision in ("fp32", "bf16")},
    **{f"detect {precision}": partial(detect, precision=precision) for precision in ("fp32", "bf16")},
    "pyramid step bf16": partial(detector_step, precision="bf16", base=PYRAMID),
    "pyramid detect bf16": partial(detect, precision="bf16", base=PYRAMID),
}
