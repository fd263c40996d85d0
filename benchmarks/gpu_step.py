"""Time training steps of a recipe on noise; print a line of JSON for each group of settings.

    python benchmarks/gpu_step.py cifar10_r18_intl precision=bf16 precision=fp16,graph=true
    python benchmarks/gpu_step.py imagenet_r50_intl precision=bf16 --parts
    python benchmarks/gpu_step.py cifar10_r18_intl precision=bf16 --profile kernels.txt
    python benchmarks/gpu_step.py cifar10_r18_intl precision=bf16 --device cpu --small

CIFAR images come from the training loader, as in a run. For ImageNet, one batch on the device is used for all steps.
Milliseconds per step are measured over many steps between two synchronizations; the median of three rounds counts.
`host_ms` is the time that the host needs to launch a step. If it equals the time of the step, the GPU waits for Python.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpu_timing
import numpy as np
import torch
from torch import nn
from torch.autograd import DeviceType

from intl_bench.core import distributed
from pretrain import accelerate, train
from pretrain.images.data import ArraySource
from pretrain.images.loader import Batch, training_batches
from pretrain.images.views import augment
from pretrain.recipe import Recipe, load_recipe

TURNS = 3
SMALL = [
    "batch_size=16",
    "backbone={name: resnet10_narrow, stem: imagenet}",
    "projector={hidden: 64, out: 64}",
]


def recipe_of(name: str, settings: str, device: str, small: bool) -> Recipe:
    """Load a packaged recipe with overrides key=value,key=value."""
    # A low learning rate, which does not diverge on noise and does not change the time.
    overrides = [*(SMALL if small else []), "base_lr=0.001", f"device={device}", *settings.split(",")]
    recipe = load_recipe(name, overrides)
    if not small:
        return recipe
    views = tuple(dataclasses.replace(view, size=max(32, view.size // 7)) for view in recipe.views)
    return dataclasses.replace(recipe, views=views)


def noise(count: int, side: int) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return ArraySource(pixels, np.zeros(count, np.int64), ["none"], "noise")


def batches_of(recipe: Recipe, device: torch.device, small: bool) -> Iterator[Batch]:
    """Yield batches without end, as in the training loop."""
    if recipe.data.kind != "imagefolder":
        source = noise(64 if small else 50_000, 32)
        options: dict[str, Any] = {"seed": 0, "batch_size": recipe.batch_size, "last_step": 10**9, "device": device}
        return training_batches(source, recipe.views, **options)
    source = noise(recipe.batch_size, 256)
    (batch,) = training_batches(source, recipe.views, seed=0, batch_size=recipe.batch_size, last_step=1)
    return itertools.repeat(batch._replace(crops=[crops.to(device) for crops in batch.crops]))


def warm_up(training: train.Training, batches: Iterator[Batch]) -> float:
    """Do the steps that compile, select kernels and record; return the seconds of the first step."""
    started = time.perf_counter()
    training.take_step(next(batches)).values()
    first = time.perf_counter() - started
    on_gpu = training.process.device.type == "cuda"
    for batch in itertools.islice(batches, accelerate.WARM_UP + 1 if on_gpu else 0):
        training.take_step(batch).values()
    return first


def timed(training: train.Training, batches: Iterator[Batch], steps: int) -> dict[str, Any]:
    """Measure time, rate and memory of whole steps; metrics are read while the next step is computed, as in a run."""
    device = training.process.device.type
    whole, host, loss = [], [], 0.0
    for _ in range(TURNS):
        gpu_timing.wait(device)
        started, handing, before = time.perf_counter(), 0.0, None
        for batch in itertools.islice(batches, steps):
            begun = time.perf_counter()
            metrics = training.take_step(batch)
            handing += time.perf_counter() - begun
            if before is not None:
                before.values()
            before = metrics
        loss = metrics.values()["loss"]
        whole.append((time.perf_counter() - started) / steps)
        host.append(handing / steps)
    step = statistics.median(whole)
    return {
        "ms": 1e3 * step,
        "img/s": training.recipe.batch_size / step,
        "host_ms": 1e3 * statistics.median(host),
        "range_percent": 100 * (max(whole) - min(whole)) / step,
        "peak_mib": gpu_timing.peak_mib(device),
        "loss": loss,
    }


def parts(training: train.Training, batch: Batch) -> dict[str, float]:
    """Measure the milliseconds of each part of a step alone."""
    recipe, device = training.recipe, training.process.device
    views = [
        augment(crops, parameters, *training.normalization).contiguous(memory_format=torch.channels_last)
        for crops, parameters in zip(batch.crops, batch.parameters, strict=True)
    ]
    encoder = nn.Sequential(training.method.backbone, training.method.projector)
    momentum_encoder = training.method.momentum_encoder
    z = [torch.randn(recipe.batch_size, recipe.projector.out, device=device, requires_grad=True) for _ in views]

    def augmentation() -> None:
        for crops, parameters in zip(batch.crops, batch.parameters, strict=True):
            augment(crops, parameters, *training.normalization)

    def networks() -> None:
        training.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=training.autocast, enabled=training.autocast is not None):
            if momentum_encoder is not None:
                with torch.no_grad():
                    momentum_encoder(views[0])
            outputs = [encoder(view) for view in (views if momentum_encoder is None else views[1:])]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    def loss() -> None:
        sum(training.method.loss(z).values()).backward()

    networks()  # computes gradients for the optimizer
    works: dict[str, Callable[[], object]] = {
        "augmentation": augmentation,
        "networks, forward and backward": networks,
        "loss, forward and backward": loss,
        "optimizer": training.optimizer.step,
    }
    repeats = 20 if device.type == "cuda" else 1
    return {part: 1e3 * gpu_timing.seconds(work, device.type, repeats) for part, work in works.items()}


def profiled(training: train.Training, batches: Iterator[Batch], path: Path, about: str) -> dict[str, float]:
    """Count kernels and copies per step and the idle share of the GPU; append a table of kernels to `path`.

    Only the activity of the GPU is recorded, because recording that of the host slows down the step.
    """
    on_gpu, steps = training.process.device.type == "cuda", 5
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profiler:
        for batch in itertools.islice(batches, steps):
            metrics = training.take_step(batch)
        metrics.values()
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [e for e in profiler.events() if e.device_type == wanted and not e.is_user_annotation]
    copies = [e for e in events if e.name.startswith(("Memcpy", "Memset"))]
    busy = reached = 0.0
    for start, end in sorted((e.time_range.start, e.time_range.end) for e in events):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    span = reached - min(e.time_range.start for e in events)
    times, counts = collections.Counter[str](), collections.Counter[str]()
    for event in events:
        times[event.name] += event.time_range.end - event.time_range.start
        counts[event.name] += 1
    lines = [f"{'us a step':>10} {'times':>7}  kernel"]
    lines += [f"{time_ / steps:10.1f} {counts[name] / steps:7.1f}  {name[:150]}" for name, time_ in times.most_common()]
    with path.open("a") as stream:
        print(f"\n{training.recipe.name} {about}", *lines, sep="\n", file=stream)
    return {
        "kernels": (len(events) - len(copies)) / steps,
        "copies": len(copies) / steps,
        "busy_ms": busy / steps / 1e3,
        "idle_percent": 100 * (1 - busy / span),
    }


def measure(options: argparse.Namespace, settings: str) -> dict[str, Any]:
    device, small = options.device, options.small
    recipe = recipe_of(options.recipe, settings, device, small)
    gpu_timing.forget(device)
    fixed_shapes = not options.no_cudnn_benchmark
    with distributed.start(device, deterministic=recipe.deterministic, fixed_shapes=fixed_shapes) as process:
        training = train.build_training(recipe, process, 100 * recipe.batch_size)
        accelerate.apply(training)
        batches = batches_of(recipe, process.device, small)
        found: dict[str, Any] = {"batch": recipe.batch_size, "views": [view.size for view in recipe.views]}
        found["first_step_s"] = warm_up(training, batches)
        if options.profile:
            return found | profiled(training, batches, options.profile, settings)
        found |= timed(training, batches, 1 if small else options.steps)
        if options.parts:
            found["parts"] = parts(training, next(batches))
    return found


def main() -> None:
    parser = gpu_timing.device_options(__doc__)
    parser.add_argument("recipe")
    parser.add_argument(
        "settings", nargs="+", help="overrides of the recipe, key=value,key=value: one measurement each"
    )
    parser.add_argument("--steps", type=int, default=100, help="number of steps in a round")
    parser.add_argument("--parts", action="store_true", help="also measure each part alone")
    parser.add_argument(
        "--profile", type=Path, metavar="PATH", help="list kernels instead of times; append the table to PATH"
    )
    parser.add_argument("--no-cudnn-benchmark", action="store_true", help="let cuDNN select kernels by its heuristics")
    options = parser.parse_args()
    for settings in options.settings:
        about = {"recipe": options.recipe, "settings": settings}
        print(json.dumps(about | measure(options, settings)), flush=True)


if __name__ == "__main__":
    main()
