"""Spectra of features, of an embedding and of its transformed output, and the collapse that they show.

Eigenvalues are computed in float64 from the Gram matrix of the samples or of the features, whichever is smaller. This
takes a quarter of the time of a singular value decomposition of the matrix. The error is 1e-13 of the largest
eigenvalue, which is less than the resolution of a float32 embedding.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from intl_bench.core import distributed
from pretrain.methods import Method
from pretrain.precision import at_least_float32

# Ranks in the fit of the power-law exponent; they and the weights 1 / rank are those of the authors' code, see `alpha`.
FIRST_RANK, LAST_RANK = 4, 100
# An eigenvalue vanishes below this share of the mean eigenvalue: the direction has less than a hundredth of the mean
# standard deviation.
VANISHING = 1e-4
# Complete collapse: the standard deviation of L2-normalized vectors, times sqrt(d), is below this.
COMPLETE = 0.01
# Dimensional collapse: RankMe is below this share of the largest possible rank, or one direction has more than this
# share of the variance. At these values sister seeds disagree in 2 of the 60 sets of records (results/LOG.md).
LOW_RANK, ONE_DIRECTION = 0.1, 0.95


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """Spectrum of a matrix (m, d), the vectors of m samples.

    Attributes:
        eigenvalues: eigenvalues of the covariance of the d features without those that are zero by construction,
            (k,) float64 on the CPU, descending. k = min(m - 1, d), because centering over the samples removes one
            dimension; k = min(m - 1, d - 1) if each vector sums to zero, as after whitening of samples ("channel").
            NaN if an entry of the matrix is not finite.
        singular_values: singular values of the matrix without centering, (min(m, d),), descending.
        std: mean over the features of the standard deviation of the L2-normalized vectors, times sqrt(d): 1 for
            vectors in all directions, 0 for equal vectors.
        samples, dimension: m and d.
    """

    eigenvalues: torch.Tensor
    singular_values: torch.Tensor
    std: float
    samples: int
    dimension: int

    @property
    def largest_rank(self) -> int:
        """The largest possible rank."""
        return min(self.samples, self.dimension)

    def numbers(self) -> dict[str, float]:
        """Return the values of the function `numbers`, with the singular values for RankMe, and `std`."""
        return {**numbers(self.eigenvalues, self.singular_values), "std": self.std}


@torch.no_grad()
def compute_spectrum(z: torch.Tensor) -> Spectrum:
    """Compute the spectrum of a matrix of samples (m, d), on any device and in any precision.

    Raises:
        ValueError: `z` is not a matrix of at least two samples.
    """
    if z.ndim != 2 or len(z) < 2 or z.shape[1] < 1:
        raise ValueError(f"expected a matrix of at least 2 samples, got {tuple(z.shape)}")
    z = at_least_float32(z)
    m, d = z.shape
    if not z.isfinite().all():  # whitening diverged, or all samples have the same embedding
        nothing = torch.full((min(m, d),), torch.nan, dtype=torch.float64)
        return Spectrum(eigenvalues=nothing, singular_values=nothing, std=float("nan"), samples=m, dimension=d)
    x = z.double()
    mean = x.mean(dim=0)
    x = x - mean
    # Adding the mean to the centered products loses no digits; subtracting it from the raw products would.
    if d < m:
        centered = x.T @ x
        raw = centered + m * mean.outer(mean)
    else:
        centered, cross = x @ x.T, x @ mean
        raw = centered + cross[:, None] + cross + mean @ mean
    # For a few hundred rows, an eigendecomposition on the GPU takes longer than the copy to the CPU.
    values, raw_values = (torch.linalg.eigvalsh(gram.cpu()).flip(0) for gram in (centered, raw))
    # Values below these bounds are zeros with the rounding errors of the products and of the centering.
    eps = len(values) * torch.finfo(torch.float64).eps
    values = values.where(values > max(eps * values[0], eps**2 * raw_values[0]), 0.0)
    raw_values = raw_values.where(raw_values > eps * raw_values[0], 0.0)
    without_sum = bool((z.sum(dim=1).abs() <= 1e-5 * z.abs().sum(dim=1)).all())
    unit = torch.nn.functional.normalize(z, dim=1)
    return Spectrum(
        eigenvalues=values[: max(1, min(m - 1, d - without_sum))] / (m - 1),
        singular_values=raw_values.sqrt(),
        std=float(unit.std(dim=0).mean() * d**0.5),
        samples=m,
        dimension=d,
    )


def eigenvalues(z: torch.Tensor) -> torch.Tensor:
    """Return `Spectrum.eigenvalues` of a matrix (m, d)."""
    return compute_spectrum(z).eigenvalues


def _rank(s: torch.Tensor) -> float:
    """Compute RankMe (Garrido et al., ICML 2023, Eqn. 3): exp of the entropy of the normalized singular values."""
    p = s / s.sum().clamp_min(1e-300) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def condition_number(values: torch.Tensor) -> float:
    """Return the ratio of the largest and the smallest of descending eigenvalues.

    The ratio is infinite if the smallest eigenvalue is not positive, and NaN if it is NaN.
    """
    smallest = float(values[-1])
    return float(values[0]) / smallest if smallest > 0 else float("nan" if smallest != smallest else "inf")


def alpha(values: torch.Tensor) -> float:
    """Fit the exponent a of eigenvalues ~ rank^-a (alpha-ReQ; Agrawal et al., NeurIPS 2022, Section 3).

    -a is the slope of log eigenvalue against log rank by least squares with weights 1 / rank. The fit uses ranks 4 to
    100, counted from 1, as in the authors' code (fastssl, `utils/powerlaw.py`, after Stringer et al., 2019); the paper
    gives no range. Only positive eigenvalues are used; with fewer than 3 of them in this range, the result is NaN.

    Args:
        values: eigenvalues (k,), descending.
    """
    chosen = values[FIRST_RANK - 1 : LAST_RANK].double()
    chosen = chosen[chosen > 0]
    if len(chosen) < 3:
        return float("nan")
    rank = torch.arange(FIRST_RANK, FIRST_RANK + len(chosen), dtype=torch.float64)
    x, y, weight = rank.log(), chosen.log(), 1 / rank
    x, y = (v - (weight * v).sum() / weight.sum() for v in (x, y))
    return -float((weight * x * y).sum() / (weight * x * x).sum())


def numbers(eigenvalues: torch.Tensor, singular_values: torch.Tensor | None = None) -> dict[str, float]:
    """Compute the scalar summaries of a spectrum.

    Args:
        eigenvalues: (k,), descending.
        singular_values: singular values of the matrix without centering, which RankMe uses. None uses the square roots
            of the eigenvalues, which belong to the centered matrix.

    Returns:
        `rank` (RankMe), `condition` and `inverse_condition` (Figure 2 of the paper), `alpha`, `largest` (share of the
        largest eigenvalue in the trace), `vanishing` (share of eigenvalues not above `VANISHING` times their mean),
        `trace`. All are NaN if the eigenvalues are not finite; `largest` is also NaN if all eigenvalues are zero.
    """
    values = eigenvalues.double()
    trace = values.sum()
    condition = condition_number(values)
    return {
        "rank": _rank(values.sqrt() if singular_values is None else singular_values),
        "condition": condition,
        "inverse_condition": 1 / condition,
        "alpha": alpha(values),
        "largest": float(values[0] / trace),
        "vanishing": float((values <= VANISHING * values.mean()).double().mean()) if trace == trace else float("nan"),
        "trace": float(trace),
    }


@torch.no_grad()
def summary(matrices: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Compute `Spectrum.numbers` of several matrices, to monitor the training.

    Args:
        matrices: the features, the embedding and the transformed output of a batch, (m, d) each, by name.

    Returns:
        Values by "matrix/number", such as "embedding/rank".
    """
    return {
        f"{matrix}/{name}": value
        for matrix, x in matrices.items()
        for name, value in compute_spectrum(x).numbers().items()
    }


def kind(numbers: Mapping[str, float], largest_rank: int) -> str:
    """Return the kind of collapse: "complete", "dimensional" or "none"; "undefined" for NaN.

    Complete collapse: all vectors are nearly equal (`COMPLETE`). Dimensional collapse: the vectors use few of the
    directions that they could use (`LOW_RANK`, `ONE_DIRECTION`). Hua et al. (ICCV 2021) and Jing et al. (ICLR 2022),
    who name it, give no threshold. RankMe does not subtract the mean, so a large common part lowers it too.

    Args:
        numbers: the result of `Spectrum.numbers`.
        largest_rank: `Spectrum.largest_rank`.
    """
    if numbers["std"] != numbers["std"]:
        return "undefined"
    if numbers["std"] < COMPLETE:
        return "complete"
    low = numbers["rank"] < LOW_RANK * largest_rank or numbers["largest"] > ONE_DIRECTION
    return "dimensional" if low else "none"


def collapse(numbers: Mapping[str, float], largest_rank: int) -> str | None:
    """Return a sentence if the embedding has collapsed by the numbers of `summary`, else None.

    `largest_rank` is that of `kind`, for the embedding.
    """
    of_embedding = {name: numbers[f"embedding/{name}"] for name in ("std", "rank", "largest")}
    found = kind(of_embedding, largest_rank)
    if found == "complete":
        return "complete collapse: all images get the same embedding"
    if found == "dimensional":
        return (
            f"dimensional collapse: the embedding has an effective rank of {of_embedding['rank']:.1f} of "
            f"{largest_rank}, and one direction has {of_embedding['largest']:.0%} of its variance"
        )
    return None


@contextlib.contextmanager
def capture_first_output(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Yield a list that receives the first output of `module` within the block.

    In a training step, the first output of the backbone is the features of the embedding that the method keeps.
    """
    outputs: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if not outputs:
            outputs.append(output.detach())

    hook = module.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        hook.remove()


def batch_spectra(method: Method, features: torch.Tensor) -> tuple[dict[str, float], int]:
    """Return the `summary` of the batch of all processes, and the largest possible rank of the embedding.

    Only the first process returns values; the other processes return {} and 0.

    Args:
        method: the method after a step; its `embedding` is that of this process.
        features: features of this process, (m, F).
    """
    assert method.embedding is not None, "called before the first step"
    parts = {"features": features, "embedding": method.embedding}
    matrices = {name: distributed.gather(part) for name, part in parts.items()}
    if not distributed.is_main_process():
        return {}, 0
    # Monitoring must not end a run: an embedding that cannot be transformed has no values.
    with contextlib.suppress(ValueError, torch.linalg.LinAlgError), torch.no_grad():
        transformed = method.transform(matrices["embedding"].float())
        if transformed is not None:
            matrices["transformed"] = transformed
    return summary(matrices), min(matrices["embedding"].shape)
