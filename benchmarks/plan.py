"""Compare the time and memory that a plan predicts with measurements.

    python benchmarks/plan.py                     on the CPU, two minutes on 2 cores
    python benchmarks/plan.py --device cuda

The rates of this machine are measured (`pretrain.dry_run.machine`). With these rates, the model of
`intl-bench pretrain --dry-run` predicts the steps of some small runs, which are then measured. The time of a step is
the best of `--repeats`. The memory of each run is measured in a separate process: the peak while the run is built and
does two steps, minus the memory in use before. The C library is configured to return freed memory at once; otherwise it
keeps some 25% more.

The last rows compare the model, with the rates of the data sheet, with the results that NVIDIA published for supervised
training of a ResNet-50 on one A100 80GB (DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5/README.md).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from peak_memory import Rise
from torch.nn import functional as F
from torchvision.models import resnet50

from intl_bench.core.distributed import Process
from pretrain import train
from pretrain.dry_run import costs, machine, plan
from pretrain.images.data import open_source
from pretrain.images.loader import training_batches
from pretrain.recipe import Recipe, load_recipe

SMALL = ["data.kind=shapes", "data.name=shapes", "data.size=512", "workers=0"]
R50 = "views=[{size: 96, min_scale: 0.2}, {size: 96, min_scale: 0.2}]"
RUNS = {
    "ResNet-18, 32 px, batch 64": ("cifar10_r18_intl", ["batch_size=64"]),
    "the same, batch 128": ("cifar10_r18_intl", ["batch_size=128"]),
    "the same, bf16": ("cifar10_r18_intl", ["batch_size=128", "precision=bf16"]),
    "the same, momentum target": ("cifar10_r18_intl", ["batch_size=128", "method.momentum_target=true"]),
    "small ResNet, 32 px, batch 128": ("cifar10_small_intl", ["precision=fp32"]),
    "ResNet-50, 96 px, batch 16": ("imagenet_r50_intl", ["batch_size=16", "precision=fp32", R50]),
}
PUBLISHED = {"mixed precision": (True, 2470), "TF32": (False, 938)}  # images per second


def recipe_of(name: str) -> Recipe:
    base, overrides = RUNS[name]
    return load_recipe(base, [*overrides, *SMALL])


def steps(recipe: Recipe, device: str) -> Callable[[], object]:
    """Build a run at step 0 and one batch; return a function that does a step and waits for the device."""
    source = open_source(recipe.data, "train")
    training = train.build_training(recipe, Process(rank=0, world_size=1, device=torch.device(device)), len(source))
    (batch,) = training_batches(source, recipe.views, seed=0, batch_size=recipe.batch_size, last_step=1)

    def step() -> None:
        training.take_step(batch)
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def best(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def added_bytes(name: str, device: str) -> int:
    """Return the bytes by which building a run and two steps raise the memory of this process (or of the GPU)."""
    steps(load_recipe("demo", ["batch_size=16", *SMALL]), device)()  # libraries load at the first step
    rise = Rise(device)
    step = steps(recipe_of(name), device)
    step()
    step()
    return round(rise.mib() * 2**20)


def supervised(half: bool) -> float:
    """Return images per second that the model predicts for a ResNet-50 with 1000 classes on an A100."""
    with torch.device("meta"):
        network = resnet50()
    with costs.without_data():
        costs.strip(network)
        images, labels = torch.empty(256, 3, 224, 224), torch.empty(256, dtype=torch.int64)

        def forward() -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                return F.cross_entropy(network(images).float(), labels)

        cost = costs.count(forward)
    weights = sum(parameter.numel() * 4 for parameter in network.parameters())
    return 256 / costs.step_seconds(cost, costs.GPUS[0], trained=weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(added_bytes(options.memory_of, options.device)))
        return
    print("| run | img/s predicted | measured | error | MiB predicted | measured | error |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    rates, errors = [], []
    for name in options.runs:
        command = [sys.executable, __file__, "--device", options.device, "--memory-of", name]
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        used = json.loads(done.stdout)
        recipe = recipe_of(name)
        step = steps(recipe, options.device)
        step()
        rates.append(
            machine.measure.__wrapped__(options.device).device
        )  # immediately before the steps, so that other load affects both
        measured = recipe.batch_size / best(step, options.repeats)
        made = plan.make_plan(recipe, devices=rates[-1:])  # without the preparation of images
        predicted = made.estimates[0].images_per_second
        errors.append((predicted / measured - 1, made.peak / used - 1))
        print(
            f"| {name} | {predicted:.1f} | {measured:.1f} | {errors[-1][0]:+.0%} "
            f"| {made.peak / 2**20:.0f} | {used / 2**20:.0f} | {errors[-1][1]:+.0%} |",
            flush=True,
        )
    for name, (half, published) in PUBLISHED.items():
        predicted = supervised(half)
        print(
            f"| supervised ResNet-50, A100, {name} (published) | {predicted:.0f} | {published} "
            f"| {predicted / published - 1:+.0%} | – | – | – |"
        )
    best_rates = {unit: max(rate.flops[unit] for rate in rates) / 1e9 for unit in rates[0].flops}
    print(
        f"{options.device}, {torch.get_num_threads()} threads; products {best_rates['matmul32']:.0f} (float32) and "
        f"{best_rates['half']:.0f} (bf16) GFLOP/s, copy {max(rate.bandwidth for rate in rates) / 1e9:.1f} GB/s"
    )
    for what, some in zip(("img/s", "memory"), zip(*errors, strict=True), strict=True):
        print(f"errors of {what}: {min(some):+.0%} to {max(some):+.0%}")


if __name__ == "__main__":
    main()
