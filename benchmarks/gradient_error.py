"""Compare the INTL loss and its gradients in float32 with the authors' code, and both with float64.

    python benchmarks/gradient_error.py --authors PATH          256 x 2048, two views, three draws; PATH is a checkout

Each difference is the norm of the difference of two gradients divided by the norm of the second one, over all views.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from loss import Loss, authors_loss, ours, paper


def loss_and_gradient(loss: Loss, views: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, (1,), and the gradients of all views as one vector, float64."""
    views = [z.detach().requires_grad_() for z in views]
    value = loss(views)
    return value.detach().double()[None], torch.cat([g.flatten() for g in torch.autograd.grad(value, views)]).double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", metavar="PATH", required=True, help="a checkout of github.com/winci-ai/INTL")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    theirs = authors_loss(options.authors, "cpu")
    ways: dict[str, Callable[[list[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]] = {
        "ours": lambda views: loss_and_gradient(ours, views),
        "authors'": lambda views: loss_and_gradient(theirs, views),
        "float64": lambda views: loss_and_gradient(paper_in_float64, [z.double() for z in views]),
    }
    print(f"{options.samples} x {options.features}, two views, {torch.get_num_threads()} threads")
    print("| seed | compared | loss | gradients |")
    print("| --- | --- | --- | --- |")
    for seed in range(options.seeds):
        generator = torch.Generator().manual_seed(seed)
        common, *own = torch.randn(3, options.samples, options.features, generator=generator)
        found = {name: way([common + 0.5 * part for part in own]) for name, way in ways.items()}
        for one, other in itertools.combinations(found, 2):
            errors = [(a - b).norm() / b.norm() for a, b in zip(found[one], found[other], strict=True)]
            print(f"| {seed} | {one}, {other} | {errors[0]:.1e} | {errors[1]:.1e} |")
    dist.destroy_process_group()


def paper_in_float64(views: list[torch.Tensor]) -> torch.Tensor:
    """Compute `paper` with a float64 identity matrix."""
    torch.set_default_dtype(torch.float64)
    try:
        return paper(views)
    finally:
        torch.set_default_dtype(torch.float32)


if __name__ == "__main__":
    main()
