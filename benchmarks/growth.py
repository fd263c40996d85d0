"""Measure how the cost of a training step grows with batch, views, embedding dimension d, iterations T and processes.

    python benchmarks/growth.py --plot growth.png                   a small ResNet, under 5 minutes on 2 cores
    python benchmarks/growth.py --plot growth.png --device cuda     ResNet-50 at ImageNet size

One factor changes at a time; the others have the values of the base recipe. Each point is a separate run with steps on
one batch of generated images. The batch is made beforehand, so the time does not include the data loader. The best of
`--repeats` steps after two warm-up steps counts. The batch is that of all processes; the processes share the cores, or
have one GPU each. Memory is the peak of the process with the highest peak: resident memory without that of PyTorch, or
memory allocated on the GPU.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from peak_memory import Rise

from intl_bench.core import distributed
from pretrain import train
from pretrain.images.data import ArraySource
from pretrain.images.loader import training_batches
from pretrain.recipe import load_recipe

RECIPES = {"cpu": "cifar10_small_intl", "cuda": "imagenet_r50_intl"}
IMAGES = 50_000
# factor -> label, values; the base is the value of the recipe
FACTORS: dict[str, dict[str, tuple[str, list[int]]]] = {
    "cpu": {
        "batch": ("batch", [32, 64, 128, 256]),
        "views": ("views", [2, 3, 4, 6]),
        "d": ("d, the projector's output", [256, 1024, 4096, 8192]),
        "iterations": ("T, iterations", [1, 4, 8, 16]),
        "processes": ("processes", [1, 2]),
    },
    "cuda": {
        "batch": ("batch", [64, 128, 256, 512]),
        "views": ("views", [2, 3, 4, 6]),
        "d": ("d, the projector's output", [1024, 4096, 8192, 16384]),
        "iterations": ("T, iterations", [1, 4, 8, 16]),
        "processes": ("processes", [n for n in (1, 2, 4, 8) if n <= max(torch.cuda.device_count(), 1)]),
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """Settings of one run."""

    batch: int
    views: int
    d: int
    iterations: int
    processes: int


def base(device: str) -> Point:
    recipe = load_recipe(RECIPES[device])
    return Point(
        batch=recipe.batch_size,
        views=len(recipe.views),
        d=recipe.projector.out,
        iterations=recipe.method["iterations"],
        processes=1,
    )


def measure(point: Point, device: str, repeats: int) -> None:
    """Do the steps in each process of a run; the first process prints images per second and the highest peak in MiB."""
    overrides = [f"batch_size={point.batch}", f"projector.out={point.d}", f"method.iterations={point.iterations}"]
    recipe = load_recipe(RECIPES[device], overrides)
    recipe = dataclasses.replace(recipe, views=(recipe.views[0],) * point.views)
    side = recipe.views[0].size
    pixels = np.random.default_rng(0).integers(0, 256, (point.batch, side, side, 3), np.uint8)
    source = ArraySource(pixels, np.zeros(point.batch, np.int64), ["none"], "noise")
    with distributed.start(device) as process:
        share = {"rank": process.rank, "world_size": process.world_size}
        batches = training_batches(source, recipe.views, seed=0, batch_size=point.batch, last_step=1, **share)
        (batch,) = list(batches)
        rise = Rise(device)
        training = train.build_training(recipe, process, IMAGES)
        seconds = []
        for _ in range(2 + repeats):
            distributed.barrier()
            started = time.perf_counter()
            training.take_step(batch)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        memory = distributed.collect([rise.mib()])
        if process.is_main:
            print(json.dumps([point.batch / min(seconds[2:]), max(memory)]))


def run(point: Point, options: argparse.Namespace) -> tuple[float, float]:
    """Return images per second, and the highest peak of a process in MiB."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(point.processes)]
    arguments = ["--device", options.device, "--repeats", str(options.repeats)]
    command = [sys.executable, *(launcher if point.processes > 1 else []), __file__, *arguments]
    command += ["--point", json.dumps(dataclasses.asdict(point))]
    threads = max(1, len(os.sched_getaffinity(0)) // point.processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{point} failed:\n{done.stderr}")
    speed, memory = json.loads(done.stdout.splitlines()[-1])
    return speed, memory


def draw(path: str, title: str, device: str, start: Point, results: dict[Point, tuple[float, float]]) -> None:
    """Draw one column per factor: images per second above, memory below; the base recipe is marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator, ScalarFormatter

    factors = FACTORS[device]
    figure, axes = pyplot.subplots(2, len(factors), figsize=(3 * len(factors), 5.2), sharex="col", sharey="row")
    for column, (factor, (label, values)) in enumerate(factors.items()):
        points = [dataclasses.replace(start, **{factor: value}) for value in values]
        for row, color in enumerate(("tab:blue", "tab:red")):
            panel = axes[row, column]
            panel.plot(values, [results[point][row] for point in points], "o-", color=color, markersize=4)
            panel.plot(getattr(start, factor), results[start][row], "o", color=color, markersize=9)
            panel.set_xscale("log", base=2)
            panel.set_xticks(values)
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_ylim(0, 1.08 * max(result[row] for result in results.values()))
            panel.grid(alpha=0.3)
        axes[1, column].set_xlabel(label)
    axes[0, 0].set_ylabel("images per second")
    axes[1, 0].set_ylabel("peak MiB per process")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="a PNG file")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        measure(Point(**json.loads(options.point)), options.device, options.repeats)
        return
    start = base(options.device)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{len(os.sched_getaffinity(0))} CPU cores"
    title = (
        f"{RECIPES[options.device]}: batch {start.batch}, {start.views} views, d {start.d}, T {start.iterations}, "
        f"1 process; {device}, PyTorch {torch.__version__}"
    )
    print(f"{title}\n")
    print("| factor | value | img/s | / base | MiB per process | / base |\n| --- | --- | --- | --- | --- | --- |")
    results = {start: run(start, options)}
    for factor, (_, values) in FACTORS[options.device].items():
        for value in values:
            point = dataclasses.replace(start, **{factor: value})
            speed, memory = results[point] if point in results else results.setdefault(point, run(point, options))
            ratios = speed / results[start][0], memory / results[start][1]
            print(
                f"| {factor} | {value} | {speed:.1f} | {ratios[0]:.2f} | {memory:.0f} | {ratios[1]:.2f} |", flush=True
            )
    if options.plot:
        draw(options.plot, title, options.device, start, results)


if __name__ == "__main__":
    main()
