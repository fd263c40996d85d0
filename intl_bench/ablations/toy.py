"""Figure 2(a): points in the plane, mapped by a small network trained with g(lambda) = lambda^-p.

The set-up of the paper is in its supplement, which was not available. The set-up here: 200 points of five Gaussian
clusters on a circle; views with Gaussian noise; a network 2-64-64-2; 400 steps of Adam on all points; the loss of
`pretrain.methods.spectral` with transformed features (axis "batch").
"""

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from intl_bench.core import files
from intl_bench.core.seeding import generator, torch_seed
from pretrain.methods.spectral import spectral_transform
from pretrain.spectrum import eigenvalues
from pretrain.whiten.hard_whitening import cosine_distance

POWERS = (0.0, 0.25, 0.4, 0.45, 0.5, 0.55, 0.6, 0.75, 1.0, 1.5)
SEEDS = (0, 1, 2)
CLUSTERS, POINTS = 5, 40
_RADIUS, _DEVIATION, _NOISE = 2.0, 0.25, 0.3
_STEPS, _LR = 400, 1e-2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A trained network.

    Attributes:
        outputs: its outputs (n, 2) for the points without noise.
        inverse_condition: the smallest eigenvalue of the covariance of the outputs, divided by the largest.
    """

    outputs: torch.Tensor
    inverse_condition: float


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points (n, 2) and the number of the cluster of each point (n,)."""
    clusters = torch.arange(CLUSTERS).repeat_interleave(POINTS)
    angles = 2 * math.pi * clusters / CLUSTERS
    offsets = torch.from_numpy(generator(seed, "toy data").standard_normal((len(clusters), 2)))
    return _RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1) + _DEVIATION * offsets, clusters


def train(power: float, seed: int, *, steps: int = _STEPS) -> Outcome:
    """Train the network.

    It is trained in float64, because the eigenvalues span many orders of magnitude unless p is near 0.5.

    Args:
        power: the power p.
        seed: decides the points, the initial weights and the noise.
        steps: number of steps of the optimizer.
    """
    points, _ = data(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "toy init"))
        network = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)).double()
    noise = torch.Generator().manual_seed(torch_seed(seed, "toy noise"))
    optimizer = torch.optim.Adam(network.parameters(), lr=_LR)
    for _ in range(steps):
        views = points + _NOISE * torch.randn(2, *points.shape, generator=noise, dtype=points.dtype)
        white = spectral_transform(network(views), power, axis="batch")
        optimizer.zero_grad()
        cosine_distance(white[1:], white[:1]).backward()
        optimizer.step()
    with torch.no_grad():
        outputs = network(points)
    values = eigenvalues(outputs)
    return Outcome(outputs=outputs, inverse_condition=float(values[-1] / values[0]))


def run(folder: Path) -> None:
    """Write `toy.png`, with a panel for each p, and `toy.json`, with the inverse condition numbers of all seeds."""
    found = {power: [train(power, seed) for seed in SEEDS] for power in POWERS}
    figure = draw(found)
    files.write_stream(folder / "toy.png", lambda stream: figure.savefig(stream, format="png", dpi=130))
    values = {f"{power:g}": [outcome.inverse_condition for outcome in group] for power, group in found.items()}
    files.write_text(folder / "toy.json", json.dumps({"inverse_condition": values, "seeds": SEEDS}, indent=1) + "\n")


def draw(found: dict[float, list[Outcome]]) -> Any:
    """Draw the outputs of the first seed, colored by cluster and divided by the largest absolute value.

    A title shows p, the inverse condition number of the first seed, and mean and standard deviation over the seeds.
    """
    from matplotlib.figure import Figure

    clusters = data(SEEDS[0])[1].numpy()
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    for axes, (power, group) in zip(figure.subplots(2, 5).flat, found.items(), strict=False):
        outputs = group[0].outputs - group[0].outputs.mean(dim=0)
        x, y = (outputs / outputs.abs().max()).T.numpy()
        axes.scatter(x, y, c=clusters, cmap="tab10", s=4)
        axes.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xticks=[], yticks=[], aspect="equal")
        values = np.array([outcome.inverse_condition for outcome in group])
        over_seeds = f"{len(values)} seeds: {values.mean():.2g} ± {statistics.stdev(values):.1g}"
        axes.set_title(f"p = {power:g}\n1 / condition {values[0]:.2g}\n{over_seeds}", fontsize=8)
    return figure
