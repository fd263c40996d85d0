"""Compare time and peak memory of the INTL loss, forward and backward, with the steps of the paper.

    python benchmarks/loss.py                                   256 x 8192, 2 and 6 views, about a minute on 2 cores
    python benchmarks/loss.py --samples 128 --features 2048 --views 4
    python benchmarks/loss.py --authors PATH                    also the code of the authors, a checkout at PATH
    python benchmarks/loss.py --device cuda

The steps of the paper compute the whitened output. If lightly is installed, its losses Barlow Twins and VICReg of two
views are added for scale. Times are the best of `--repeats` in one run; the methods alternate. The memory of each
method is measured in a separate process: the peak minus the memory in use before the call, that is, with the gradients
of the embeddings but without the embeddings.
"""

import argparse
import contextlib
import functools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from peak_memory import Rise
from torch.nn import functional as F

from pretrain.methods.intl import INTLLoss

ITERATIONS = 4
Loss = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def paper(views: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compute Equations 3 and 6 and the MSE of normalized vectors, one after the other."""
    m, d = views[0].shape
    beta = 0.01 * (math.log2(m) - 3)
    units, traces = [], []
    for z in views:
        x = z - z.mean(dim=1, keepdim=True)
        sigma = x @ x.T / (d - 1)
        normalized = sigma / sigma.trace()
        p = torch.eye(m, device=z.device)
        for _ in range(ITERATIONS):
            p = (3 * p - p @ p @ p @ normalized) / 2
        white = (p / sigma.trace().sqrt()) @ x
        traces.append((1 - white.var(dim=1)).square().sum())
        units.append(F.normalize(white, dim=1))
    pairs = [
        (unit - units[0]).square().sum(dim=1).mean() + beta * (trace + traces[0])
        for unit, trace in zip(units[1:], traces[1:], strict=True)
    ]
    return torch.stack(pairs).mean()


def ours(views: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(INTLLoss(iterations=ITERATIONS)(views).values())).sum()


@functools.cache
def authors_loss(path: str, device: str) -> Loss:
    """Compute the loss as in `INTL.forward` of the authors; their gather needs a process group, here of one process."""
    sys.path.insert(0, path)
    from methods.base import norm_mse_loss
    from methods.intl import TL
    from methods.whitening import Whitening2dIterNorm

    store = dist.FileStore(tempfile.mkstemp()[1], 1)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=0, world_size=1)
    whiten = Whitening2dIterNorm(axis=0, iterations=ITERATIONS)

    def loss(views: Sequence[torch.Tensor]) -> torch.Tensor:
        beta = 0.01 * (math.log2(len(views[0])) - 3)
        white = [whiten(z) for z in views]
        traces = [TL(w, 0) for w in white]
        pairs = [
            norm_mse_loss(w, white[0]) + beta * (trace + traces[0])
            for w, trace in zip(white[1:], traces[1:], strict=True)
        ]
        return sum(pairs) / len(pairs)

    return loss


def ways(views: int, options: argparse.Namespace) -> dict[str, Callable[[], Loss]]:
    """Return the functions that build each loss, by name; the first is the reference."""
    found: dict[str, Callable[[], Loss]] = {"paper, whitened output formed": lambda: paper}
    if options.authors:
        found["authors' code"] = lambda: authors_loss(options.authors, options.device)
    found["ours"] = lambda: ours
    with contextlib.suppress(ImportError):
        from lightly.loss import BarlowTwinsLoss, VICRegLoss

        if views == 2:
            found["Barlow Twins (lightly)"] = lambda: lambda pair: BarlowTwinsLoss()(*pair)
            found["VICReg (lightly)"] = lambda: lambda pair: VICRegLoss()(*pair)
    return found


def embeddings(views: int, m: int, d: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(m, d, generator=generator)
    own = [torch.randn(m, d, generator=generator) for _ in range(views)]
    return [(common + 0.5 * part).to(device).requires_grad_() for part in own]


def step(loss: Loss, views: Sequence[torch.Tensor]) -> float:
    """Do the forward and backward pass; return the seconds."""
    for z in views:
        z.grad = None
    synchronize = torch.cuda.synchronize if views[0].is_cuda else lambda: None
    synchronize()
    started = time.perf_counter()
    loss(views).backward()
    synchronize()
    return time.perf_counter() - started


def added_mib(name: str, options: argparse.Namespace) -> float:
    """Return the MiB by which a step raises the memory of this process (or of the GPU)."""
    (count,) = options.views
    loss = ways(count, options)[name]()
    step(loss, embeddings(count, 32, 64, options.device))  # libraries load at the first call
    views = embeddings(count, options.samples, options.features, options.device)
    rise = Rise(options.device)
    step(loss, views)
    return rise.mib()


def memory_of(name: str, views: int) -> float:
    command = [sys.executable, __file__, *sys.argv[1:], "--views", str(views), "--memory-of", name]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--features", type=int, default=8192)
    parser.add_argument("--views", type=int, nargs="+", default=[2, 6])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--authors", metavar="PATH", help="a checkout of github.com/winci-ai/INTL")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(added_mib(options.memory_of, options)))
        return
    print(f"{options.samples} x {options.features}, {options.device}, {torch.get_num_threads()} threads")
    print("| views | method | milliseconds | / paper | added MiB | / paper | loss |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for count in options.views:
        views = embeddings(count, options.samples, options.features, options.device)
        losses = {name: make() for name, make in ways(count, options).items()}
        times: dict[str, list[float]] = {name: [] for name in losses}
        for repeat in range(options.repeats):
            for name, loss in losses.items():
                if "lightly" not in name or repeat < 2:  # many times slower than the others
                    times[name].append(step(loss, views))
        memory = {name: memory_of(name, count) for name in losses}
        best = {name: min(values) for name, values in times.items()}
        reference = next(iter(losses))
        for name, loss in losses.items():
            ratios = best[name] / best[reference], memory[name] / memory[reference]
            with torch.no_grad():
                value = float(loss(views))
            print(
                f"| {count} | {name} | {1000 * best[name]:.1f} | {ratios[0]:.2f} | {memory[name]:.0f} | "
                f"{ratios[1]:.2f} | {value:.6f} |"
            )
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
