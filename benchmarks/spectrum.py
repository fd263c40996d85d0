"""Measure the cost of the spectra in training: values of features, embedding and transformed output of a batch.

    python benchmarks/spectrum.py                     256 x 8192 and 256 x 2048, under a minute on 2 cores
    python benchmarks/spectrum.py --device cuda

The references are the singular values of the same matrices by LAPACK in float64, and the training between two spectra:
`spectrum_every` steps of the recipe cifar10_r18_intl. Times are the best of `--repeats` in one run. On a CPU, a step
with `--step-batch` images is measured and scaled to the batch of the recipe, because convolutions take most of it.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from intl_bench.core.distributed import Process
from pretrain import train
from pretrain.images.data import open_source
from pretrain.images.loader import training_batches
from pretrain.iternorm import iter_norm
from pretrain.recipe import load_recipe
from pretrain.spectrum import summary

SHAPES = [(256, 8192), (256, 2048)]


def best(work: Callable[[], object], repeats: int, device: str) -> float:
    """Return the best seconds of a call, after one warm-up call."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def singular(features: torch.Tensor, z: torch.Tensor) -> None:
    """Compute the values by SVD of the centered and the raw matrices, without Gram matrices."""
    for x in (features.double(), z.double(), iter_norm(z).double()):
        torch.linalg.svdvals(x - x.mean(dim=0))
        torch.linalg.svdvals(x)


def watched(features: torch.Tensor, z: torch.Tensor) -> None:
    """Compute the values as in training."""
    summary({"features": features, "embedding": z, "transformed": iter_norm(z)})


def step_seconds(options: argparse.Namespace) -> tuple[float, int]:
    """Return the seconds of a step with the batch of the recipe, and the number of steps between two spectra."""
    recipe = load_recipe("cifar10_r18_intl", ["data.kind=shapes", "data.name=shapes"])
    whole = recipe.batch_size
    size = whole if options.device == "cuda" else min(whole, options.step_batch)
    recipe = load_recipe("cifar10_r18_intl", [f"batch_size={size}", "data.kind=shapes", "data.name=shapes"])
    source = open_source(recipe.data, "train")
    training = train.build_training(
        recipe, Process(rank=0, world_size=1, device=torch.device(options.device)), len(source)
    )
    (batch,) = training_batches(source, recipe.views, seed=0, batch_size=size, last_step=1)
    return whole / size * best(lambda: training.take_step(batch), 2, options.device), recipe.spectrum_every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step-batch", type=int, default=32)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    step, every = step_seconds(options)
    print(f"{options.device}, {torch.get_num_threads()} threads; a step of cifar10_r18_intl: {step:.2f} s\n")
    print(f"| embedding | transform and spectra, ms | / SVD | / {every} steps |\n| --- | --- | --- | --- |")
    for m, d in SHAPES:
        generator = torch.Generator().manual_seed(0)
        both = [torch.randn(m, size, generator=generator).to(options.device) for size in (2048, d)]
        ours, svd = (best(lambda f=f, b=both: f(*b), options.repeats, options.device) for f in (watched, singular))
        print(f"| {m} x {d} | {1e3 * ours:.0f} | {ours / svd:.2f} | {ours / (every * step):.4%} |")


if __name__ == "__main__":
    main()
