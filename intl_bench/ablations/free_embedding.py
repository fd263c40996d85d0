"""The effect of each loss on the eigenvalues of a free embedding, without a network (paper, Section 4.1).

Theorem 2 gives the minimum of INTL "when the range of F is wide enough". Here F is the identity: the embeddings of two
views, m x d with m = 4 d, are the parameters. They are optimized in float64 from an ill-conditioned start. The losses
are INTL, IterNorm alone, hard whitening, no whitening and two soft-whitening losses, each with its alignment of the two
views.
"""

import dataclasses
import functools
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from intl_bench.core.files import write_stream, write_text
from intl_bench.core.seeding import generator, torch_seed
from pretrain.methods._lightly import lightly
from pretrain.methods.intl import INTLLoss
from pretrain.methods.spectral import spectral_transform
from pretrain.spectrum import condition_number, eigenvalues
from pretrain.whiten.hard_whitening import cosine_distance

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

SEEDS = (0, 1, 2)
START_CONDITION = 1e4
BETA = 0.05  # the authors' rule for 256 features; the rule gives zero for 8 features
# Standard deviations of noise, relative to the root mean square of the centered embedding
COPY_NOISE = 0.01  # between the two views at the start
FRESH_NOISE = 0.1  # drawn anew in each step, for `Setting.fresh_noise`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One starting condition.

    Attributes:
        name: the name in tables.
        dimension: the dimension d.
        mean: mean eigenvalue of the start: its trace divided by d.
        fresh_noise: if True, one embedding is optimized, and its two views get new noise in each step. The loss cannot
            remove this noise. If False, the embeddings of both views are optimized; they start as noisy copies.
    """

    name: str
    dimension: int
    mean: float = 0.1
    fresh_noise: bool = False


SETTINGS = (
    *(Setting(name="free views", dimension=d) for d in (8, 32, 128)),
    Setting(name="free views, start 10 times as wide", dimension=32, mean=10.0),
    Setting(name="fresh noise", dimension=32, fresh_noise=True),
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """The result of one optimization.

    Attributes:
        before: eigenvalues (d,) of the covariance before the optimization, descending.
        after: eigenvalues (d,) of the covariance after the optimization, descending.
        correlation: eigenvalues (d,) of the correlation matrix after the optimization, descending.
        first_loss: the loss before the first step.
        last_loss: the last loss that was computed.
    """

    before: torch.Tensor
    after: torch.Tensor
    correlation: torch.Tensor
    first_loss: float
    last_loss: float


def losses() -> dict[str, Loss]:
    """Return {name: loss of the embeddings (m, d) of two views}.

    The soft-whitening losses have the weights of their authors.

    Raises:
        InputError: the package lightly is not installed.
    """
    loss = lightly("loss")
    return {
        "INTL, T = 1": _intl(1, trace=True),
        "INTL, T = 4": _intl(4, trace=True),
        "IterNorm alone, T = 4": _intl(4, trace=False),
        "hard whitening": functools.partial(_transformed, power=0.5),
        "no whitening": functools.partial(_transformed, power=0.0),
        "Barlow Twins": loss.BarlowTwinsLoss(),
        "VICReg": loss.VICRegLoss(),
    }


def _intl(iterations: int, *, trace: bool) -> Loss:
    loss = INTLLoss(iterations=iterations, axis="batch", beta=BETA)

    def of_views(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        terms = loss([a, b])
        return terms["alignment"] + terms["trace"] if trace else terms["alignment"]

    return of_views


def _transformed(a: torch.Tensor, b: torch.Tensor, *, power: float) -> torch.Tensor:
    """Compute the alignment of INTL: the mean squared distance of the normalized outputs of both views.

    The outputs are the embeddings (m, d) transformed with g(lambda) = lambda^-power.
    """
    return cosine_distance(*(spectral_transform(z, power, axis="batch") for z in (a, b)))


def start(setting: Setting, seed: int) -> torch.Tensor:
    """Return an embedding (m, d) whose eigenvalues have the condition number START_CONDITION and the mean of `setting`.

    The logarithms of the eigenvalues are evenly spaced.
    """
    d, m = setting.dimension, 4 * setting.dimension
    rng = generator(seed, "free embedding")
    x = torch.from_numpy(rng.standard_normal((m, d)))
    values = torch.from_numpy(np.geomspace(1, 1 / START_CONDITION, d))
    values *= setting.mean / values.mean()
    rotation = torch.linalg.qr(torch.from_numpy(rng.standard_normal((d, d)))).Q
    return torch.linalg.qr(x - x.mean(dim=0)).Q * ((m - 1) * values).sqrt() @ rotation


def optimize(loss: Loss, setting: Setting, seed: int, *, steps: int) -> Outcome:
    """Optimize a free embedding with L-BFGS, or with Adam if the setting has fresh noise."""
    z = start(setting, seed)
    noise = torch.Generator().manual_seed(torch_seed(seed, "free embedding's noise"))

    def copies(z: torch.Tensor, level: float) -> list[torch.Tensor]:
        deviation = level * (z - z.mean(dim=0)).square().mean().sqrt()
        return [z + deviation * torch.randn(z.shape, generator=noise, dtype=z.dtype) for _ in range(2)]

    if setting.fresh_noise:
        parameters = [z.requires_grad_()]
        before = eigenvalues(z.detach())
        measured = _adam(lambda: loss(*copies(z, FRESH_NOISE)), parameters, setting.mean, steps)
    else:
        parameters = [view.requires_grad_() for view in copies(z, COPY_NOISE)]
        before = eigenvalues(parameters[0].detach())
        measured = _lbfgs(lambda: loss(*parameters), parameters, steps)
    end = parameters[0].detach()
    return Outcome(
        before=before,
        after=eigenvalues(end),
        correlation=eigenvalues(end / end.std(dim=0)),
        first_loss=measured[0],
        last_loss=measured[-1],
    )


def _lbfgs(loss: Callable[[], torch.Tensor], parameters: list[torch.Tensor], steps: int) -> list[float]:
    """Minimize with L-BFGS; return the losses of all evaluations, and the final loss as the last one."""
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=steps,
        history_size=20,
        tolerance_grad=0,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )
    measured = []

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        measured.append(value.item())
        return measured[-1]

    optimizer.step(closure)
    closure()
    return measured


def _adam(loss: Callable[[], torch.Tensor], parameters: list[torch.Tensor], mean: float, steps: int) -> list[float]:
    """Minimize with Adam; return the losses.

    The learning rate starts at 0.03 times the standard deviation of the start and falls to zero along a cosine.
    """
    optimizer = torch.optim.Adam(parameters, lr=0.03 * mean**0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    measured = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        schedule.step()
        measured.append(value.item())
    return measured


def measure(
    settings: Sequence[Setting] = SETTINGS, seeds: Sequence[int] = SEEDS, *, steps: int = 300, noisy_steps: int = 1000
) -> dict[tuple[str, int, str], list[Outcome]]:
    """Run all optimizations; return {(setting, d, loss): the outcome of each seed}."""
    return {
        (setting.name, setting.dimension, name): [
            optimize(loss, setting, seed, steps=noisy_steps if setting.fresh_noise else steps) for seed in seeds
        ]
        for setting in settings
        for name, loss in losses().items()
    }


def table(outcomes: dict[tuple[str, int, str], list[Outcome]]) -> pd.DataFrame:
    """Return a row for each setting and loss: mean ± standard deviation (divisor n - 1) over the seeds."""
    columns: dict[str, Callable[[Outcome], float]] = {
        "condition before": lambda o: condition_number(o.before),
        "condition after": lambda o: condition_number(o.after),
        "of the correlation after": lambda o: condition_number(o.correlation),
        "trace / d before": lambda o: float(o.before.mean()),
        "trace / d after": lambda o: float(o.after.mean()),
        "loss before": lambda o: o.first_loss,
        "loss after": lambda o: o.last_loss,
    }
    return pd.DataFrame(
        [
            {"setting": setting, "d": d, "loss": name}
            | {column: _mean_and_deviation([value(o) for o in group]) for column, value in columns.items()}
            for (setting, d, name), group in outcomes.items()
        ]
    )


def _mean_and_deviation(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def panel(axes: Any, groups: dict[str, list[Outcome]]) -> None:
    """Draw the spectra after the optimization: the geometric mean over seeds, and a band of one standard deviation.

    The standard deviation is that of the logarithms.
    """
    before = next(iter(groups.values()))
    # Some curves coincide. So later curves are thinner, and the dots of the start lie on top.
    for number, (name, group) in enumerate([("start", before), *groups.items()]):
        logs = torch.stack([(o.before if name == "start" else o.after).clamp_min(1e-12).log10() for o in group])
        mean = logs.mean(dim=0)
        deviation = logs.std(dim=0) if len(group) > 1 else torch.zeros_like(mean)
        x = range(1, len(mean) + 1)
        style: dict[str, Any] = {"color": f"C{number - 1}", "linewidth": 4.2 - 0.5 * number}
        if name == "start":
            style = {"color": "black", "linewidth": 1.5, "linestyle": ":", "zorder": 3}
        axes.plot(x, 10**mean, label=name, **style)
        low, high = 10 ** (mean - deviation), 10 ** (mean + deviation)
        axes.fill_between(x, low, high, alpha=0.2, linewidth=0, color=style["color"])
    axes.set_yscale("log")


def _figure(outcomes: dict[tuple[str, int, str], list[Outcome]]) -> Any:
    from matplotlib.figure import Figure

    groups: dict[tuple[str, int], dict[str, list[Outcome]]] = {}
    for (setting, d, name), group in outcomes.items():
        groups.setdefault((setting, d), {})[name] = group
    rows = -(-(len(groups) + 1) // 3)
    figure = Figure(figsize=(11, 3.1 * rows), layout="constrained")
    places = list(figure.subplots(rows, 3, squeeze=False).flat)
    for axes, ((setting, d), by_loss) in zip(places, groups.items(), strict=False):
        panel(axes, by_loss)
        axes.set_title(f"{setting}, d = {d}", fontsize=9)
        axes.set_xlabel("rank of the eigenvalue", fontsize=8)
    for axes in places[len(groups) :]:
        axes.axis("off")
    places[0].set_ylabel("eigenvalue of the embedding's covariance", fontsize=8)
    places[-1].legend(*places[0].get_legend_handles_labels(), loc="center", frameon=False, fontsize=9)
    return figure


def run(folder: Path) -> None:
    """Write free_embedding.png, .md and .json into `folder`. It takes a few minutes on one CPU thread."""
    outcomes = measure()
    figure = _figure(outcomes)
    write_stream(folder / "free_embedding.png", lambda stream: figure.savefig(stream, format="png", dpi=130))
    write_text(folder / "free_embedding.md", table(outcomes).to_markdown(index=False))
    rows = [
        {
            "setting": setting,
            "d": d,
            "loss": name,
            "seed": seed,
            "before": _short(outcome.before),
            "after": _short(outcome.after),
            "correlation": _short(outcome.correlation),
            "first_loss": outcome.first_loss,
            "last_loss": outcome.last_loss,
        }
        for (setting, d, name), group in outcomes.items()
        for seed, outcome in zip(SEEDS, group, strict=True)
    ]
    write_text(folder / "free_embedding.json", json.dumps(rows, allow_nan=False) + "\n")


def _short(values: torch.Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]
