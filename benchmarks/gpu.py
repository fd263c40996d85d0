"""Everything that a GPU changes, in one run of at most nine minutes; prints markdown, part by part.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --cifar PATH       then trains cifar10_r18_intl as long as the time lasts, and scores it
    python benchmarks/gpu.py --device cpu --small 32      the same code paths on a CPU, to see that they run

Times are medians of steps between two synchronisations. A share of the ceiling is floating-point operations (those of
`pretrain --dry-run`) per second over those of a bf16 matrix product of 8192 x 8192.
"""

import argparse
import contextlib
import dataclasses
import itertools
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import torch
from detection_cases import ground_truth, picture
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from intl_bench import runs
from intl_bench.core import distributed
from pretrain import train
from pretrain.data import ArraySource
from pretrain.loader import training_batches
from pretrain.methods.intl import INTLLoss
from pretrain.plan import make_plan
from pretrain.recipe import load_recipe
from pretrain.views import augment
from transfer.detection import build_model
from transfer.detection.config import ModelConfig

SECONDS = 540
STARTED = time.perf_counter()


def left() -> float:
    return SECONDS - (time.perf_counter() - STARTED)


def seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of a call, after three that set kernels up."""
    times = []
    for number in range(repeats + 3):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 3:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def peak_mib(device: str) -> str:
    if device != "cuda":
        return "–"
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return f"{peak:.0f}"


def ceiling(options: argparse.Namespace) -> float:
    """Floating-point operations a second of a large bf16 matrix product."""
    n = 8192 if options.small == 1 else 512
    a, b = (torch.randn(n, n, device=options.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, options.device, 10)


def training_step(options: argparse.Namespace, name: str, overrides: list[str], peak: float) -> Iterator[str]:
    """The step of a recipe as a whole and by part, from uint8 crops on the device."""
    recipe = load_recipe(name, [*overrides, f"device={options.device}", "warmup_epochs=0"])
    device, sizes = options.device, [view.size for view in recipe.views]
    with distributed.start(device) as process:
        training = train.build(recipe, process, 100 * recipe.batch_size)
        pixels = np.random.default_rng(0).integers(0, 256, (2 * recipe.batch_size, 256, 256, 3), np.uint8)
        source = ArraySource(pixels, np.zeros(len(pixels), np.int64), ["none"], "noise")
        (batch,) = training_batches(source, recipe.views, seed=0, batch_size=recipe.batch_size, last_step=1)
    batch = batch._replace(crops=[crops.to(device) for crops in batch.crops])
    encoder = nn.Sequential(training.method.backbone, training.method.projector)
    views = [
        augment(crops, parameters, *training.normalization).contiguous(memory_format=torch.channels_last)
        for crops, parameters in zip(batch.crops, batch.parameters, strict=True)
    ]
    target = getattr(training.method, "target", None)
    z = [torch.randn(recipe.batch_size, recipe.projector.out, device=device, requires_grad=True) for _ in views]

    def augmentation() -> None:
        for crops, parameters in zip(batch.crops, batch.parameters, strict=True):
            augment(crops, parameters, *training.normalization)

    def network() -> None:
        training.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=training.autocast, enabled=training.autocast is not None):
            if target is not None:
                with torch.no_grad():
                    target(views[0])
            outputs = [encoder(view) for view in (views if target is None else views[1:])]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    def loss() -> None:
        sum(training.method.loss(z).values()).backward()

    repeats = 20 if device == "cuda" else 1
    network()  # gradients for the optimiser
    parts = {
        "networks, forward and backward": network,
        "loss, forward and backward": loss,
        "augmentation on the device": augmentation,
        "optimiser": training.optimizer.step,
    }
    times = {part: seconds(work, device, repeats) for part, work in parts.items()}
    views.clear()
    z.clear()
    peak_mib(device)
    whole = {"whole step": seconds(lambda: training.take_step(batch), device, repeats)}
    memory = peak_mib(device)
    if device == "cuda" and left() > 150:
        training.model = torch.compile(training.model)
        whole["whole step, torch.compile"] = seconds(lambda: training.take_step(batch), device, repeats)
    flops = make_plan(recipe).flops * recipe.batch_size
    yield f"\n{name}, batch {recipe.batch_size}, views {sizes}, {recipe.precision}, peak memory {memory} MiB"
    yield "| part | ms | share of the step | img/s | share of the ceiling |\n| --- | --- | --- | --- | --- |"
    for part, time_ in (times | whole).items():
        rate, share = f"{recipe.batch_size / time_:.0f}", f"{100 * flops / time_ / peak:.0f}%"
        shown = (rate, share) if part in whole or part.startswith("networks") else ("", "")
        yield f"| {part} | {1e3 * time_:.2f} | {100 * time_ / whole['whole step']:.1f}% | {shown[0]} | {shown[1]} |"


def cifar(options: argparse.Namespace, peak: float) -> Iterator[str]:
    """CIFAR-10 ResNet-18 from the data set in memory to the weights, at the recipe's batch of 256."""
    batch, warm, steps = (256, 20, 200) if options.device == "cuda" else (32, 1, 1)
    recipe = load_recipe("cifar10_r18_intl", [f"device={options.device}", "precision=bf16", f"batch_size={batch}"])
    pixels = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    source = ArraySource(pixels, np.zeros(len(pixels), np.int64), ["none"], "noise")
    for compiled in (False, True) if options.device == "cuda" else (False,):
        with distributed.start(options.device) as process:
            training = train.build(recipe, process, len(source))
            if compiled:
                training.model = torch.compile(training.model)
            batches = training_batches(
                source, recipe.views, seed=0, batch_size=batch, last_step=warm + steps, device=process.device
            )
            for crops in itertools.islice(batches, warm):
                training.take_step(crops).values()
            started = time.perf_counter()
            for crops in batches:
                reading = training.take_step(crops)
            reading.values()
            rate = batch * steps / (time.perf_counter() - started)
        yield f"CIFAR-10 ResNet-18, bf16, loader + step, compile={compiled}: {rate:.0f} img/s (goal on an H200: 28,000)"
    yield from training_step(options, "cifar10_r18_intl", ["precision=bf16", f"batch_size={batch}"], peak)


def r50(options: argparse.Namespace, peak: float) -> Iterator[str]:
    """ResNet-50, two views and multi-crop with a momentum target, at the recipes' batch of 256 on one GPU."""
    batch = max(16, 256 // options.small)
    for name in ("imagenet_r50_intl", "imagenet_r50_intl_multicrop_100ep"):
        yield from training_step(options, name, ["precision=bf16", f"batch_size={batch}"], peak)


def loss_alone(options: argparse.Namespace, peak: float) -> Iterator[str]:
    """The loss of 2 and of 6 views, forward and backward, float32, m = 256, d = 8192."""
    for count in (2, 6):
        z = [torch.randn(256, 8192, device=options.device, requires_grad=True) for _ in range(count)]
        loss = INTLLoss().to(options.device)
        peak_mib(options.device)
        time_ = seconds(lambda z=z, loss=loss: sum(loss(z).values()).backward(), options.device, 5)
        yield f"INTL loss, {count} views of 256 x 8192: {1e3 * time_:.2f} ms, peak {peak_mib(options.device)} MiB"


def detection(options: argparse.Namespace, peak: float) -> Iterator[str]:
    """A training step of the built-in Mask R-CNN R50-C4 beside torchvision's own, which is R50-FPN: another network."""
    n, size = (2, (800, 1067)) if options.device == "cuda" else (1, (96, 128))
    images = [picture(number, *size).to(options.device) for number in range(n)]
    targets = [ground_truth(number, *size, objects=8, kind="bitmap", classes=80) for number in range(n)]
    targets = [
        target._replace(boxes=target.boxes.to(options.device), classes=target.classes.to(options.device))
        for target in targets
    ]
    labelled = [
        {
            "boxes": target.boxes,
            "labels": target.classes + 1,
            "masks": torch.from_numpy(np.stack(target.masks).astype(np.uint8)).to(options.device),
        }
        for target in targets
    ]
    draws = [torch.Generator(options.device).manual_seed(number) for number in range(n)]

    def built_in() -> Callable[[], object]:
        model = build_model(ModelConfig()).to(options.device).train()
        return lambda: sum(model(images, targets, draws).values()).backward()

    def torchvisions() -> Callable[[], object]:
        model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81).to(options.device).train()
        return lambda: sum(model([image / 255 for image in images], labelled).values()).backward()

    yield f"\nMask R-CNN training step, {n} images of {size[0]} x {size[1]}, bf16"
    yield "| detector | ms | peak MiB |\n| --- | --- | --- |"
    for name, make in {"built-in, R50-C4": built_in, "torchvision, R50-FPN": torchvisions}.items():
        work = make()
        peak_mib(options.device)
        with torch.autocast(options.device, torch.bfloat16):
            time_ = seconds(work, options.device, 10 if options.device == "cuda" else 1)
        yield f"| {name} | {1e3 * time_:.1f} | {peak_mib(options.device)} |"
        del work


def accuracy(options: argparse.Namespace, peak: float) -> Iterator[str]:
    """As many epochs of cifar10_r18_intl as the time that is left allows, then 5-NN and the linear probe."""
    if options.cifar is None or left() < 150:
        yield "CIFAR-10 accuracy: not measured (no --cifar, or the time is up)"
        return
    root = Path(options.cifar)
    data = [f"data.kind={'npz' if root.suffix == '.npz' else 'cifar10'}", f"data.root={root}", "data.name=cifar10"]
    recipe = load_recipe("cifar10_r18_intl", [*data, f"device={options.device}", "precision=bf16", "epochs=2"])
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        started = time.perf_counter()
        train.run(dataclasses.replace(recipe, name="trial"))
        epochs = max(2, int((left() - 90) / ((time.perf_counter() - started) / 2)))
        path = train.run(dataclasses.replace(recipe, epochs=epochs))
        yield f"\ncifar10_r18_intl on {root.name}, bf16, {epochs} epochs"
        for task in ("knn", "linear"):
            (record,) = runs.run(runs.Plan(task=task, checkpoint=path))
            yield f"{task}: {record.metrics}"


PARTS = {"cifar": cifar, "loss": loss_alone, "detection": detection, "r50": r50, "accuracy": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--cifar", help="folder of cifar-10-batches-py, or an .npz file")
    parser.add_argument("--small", type=int, default=1, metavar="N", help="cut batches to an N-th")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}", flush=True)
    peak = ceiling(options)
    print(f"bf16 matrix product: {peak / 1e12:.1f} TFLOP/s", flush=True)
    for part in options.parts:
        if left() < 60:
            print(f"{part}: not measured, the time is up")
            continue
        try:
            for line in PARTS[part](options, peak):
                print(line, flush=True)
        except Exception:  # one part that fails must not take the others' numbers with it
            traceback.print_exc()


if __name__ == "__main__":
    main()
