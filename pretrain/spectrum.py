"""Spectra of features, of an embedding and of its transformed output, and what they say about collapse.

Eigenvalues come from the Gram matrix of samples or features, whichever is smaller, in float64: a quarter of the time of
singular values of the matrix itself, and exact to 1e-13 of the largest, below what a float32 embedding resolves.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from intl_bench.core import distributed
from pretrain.precision import at_least_float32

# Ranks of the fit of the power-law exponent, and its weights 1 / rank, are those of the authors' code (see `alpha`).
FIRST_RANK, LAST_RANK = 4, 100
# An eigenvalue is called vanishing below this share of the mean eigenvalue: a direction with less than a hundredth of
# the mean standard deviation.
VANISHING = 1e-4
# Complete collapse: the standard deviation of L2-normalized vectors, times sqrt(d), is below this.
COMPLETE = 0.01
# Dimensional collapse: more than this share of the eigenvalues vanish.
DIMENSIONAL = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """The spectrum of a matrix (m, d) of m samples' vectors.

    Attributes:
        eigenvalues: of the covariance of the d features, those that are not zero by construction, (k,) float64 on the
            CPU, descending; k = min(m - 1, d), for centring over the samples takes a direction, and another one of the
            d where each vector sums to zero, as after whitening samples ("channel"). NaN where an entry is not finite.
        singular_values: of the matrix itself, not centered, (min(m, d),), descending.
        std: mean over the features of the standard deviation of the L2-normalized vectors, times sqrt(d): 1 where they
            are spread out, 0 where all are the same.
        samples, dimension: m and d.
    """

    eigenvalues: torch.Tensor
    singular_values: torch.Tensor
    std: float
    samples: int
    dimension: int

    def numbers(self) -> dict[str, float]:
        """Those of the function `numbers`, the rank RankMe's own, and `std`."""
        return {**numbers(self.eigenvalues, self.singular_values), "std": self.std}


@torch.no_grad()
def compute_spectrum(z: torch.Tensor) -> Spectrum:
    """The spectrum of a matrix of samples (m, d), on any device and in any precision.

    Raises:
        ValueError: not a matrix of at least two samples.
    """
    if z.ndim != 2 or len(z) < 2 or z.shape[1] < 1:
        raise ValueError(f"expected a matrix of at least 2 samples, got {tuple(z.shape)}")
    z = at_least_float32(z)
    m, d = z.shape
    if not z.isfinite().all():  # a diverged whitening, or one of an embedding that is the same for all samples
        nothing = torch.full((min(m, d),), torch.nan, dtype=torch.float64)
        return Spectrum(eigenvalues=nothing, singular_values=nothing, std=float("nan"), samples=m, dimension=d)
    x = z.double()
    mean = x.mean(dim=0)
    x = x - mean
    # Adding the mean to the centered products loses no digit, where taking it off the raw ones would.
    if d < m:
        centered = x.T @ x
        raw = centered + m * mean.outer(mean)
    else:
        centered, cross = x @ x.T, x @ mean
        raw = centered + cross[:, None] + cross + mean @ mean
    # Sorting out a few hundred rows takes a GPU longer than copying them.
    values, raw_values = (torch.linalg.eigvalsh(gram.cpu()).flip(0) for gram in (centered, raw))
    # What float64 leaves in the place of zeros, by the products and by taking off the mean.
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
    """`Spectrum.eigenvalues` of (m, d)."""
    return compute_spectrum(z).eigenvalues


def _rank(s: torch.Tensor) -> float:
    """RankMe (Garrido et al., ICML 2023, Eqn. 3): exp of the entropy of the normalized singular values."""
    p = s / s.sum().clamp_min(1e-300) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def condition_number(values: torch.Tensor) -> float:
    """Largest over smallest of descending eigenvalues; infinite where the smallest is not positive."""
    smallest = float(values[-1])
    return float(values[0]) / smallest if smallest > 0 else float("nan" if smallest != smallest else "inf")


def alpha(values: torch.Tensor) -> float:
    """The exponent a of eigenvalues ~ rank^-a (alpha-ReQ; Agrawal et al., NeurIPS 2022, Section 3).

    The slope of log eigenvalue against log rank by least squares with weights 1 / rank, over ranks 4 to 100 counted
    from 1, as in the authors' code (fastssl, `utils/powerlaw.py`, after Stringer et al., 2019); the paper states no
    range. Fewer where there are fewer positive eigenvalues, NaN where these are fewer than 3.
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
    """What descending eigenvalues (k,) say.

    Args:
        singular_values: of the matrix that is not centered, as RankMe takes them; None takes the roots of the
            eigenvalues, which are those of the centered one.

    Returns:
        `rank` (RankMe), `condition` and `inverse_condition` (the paper's Figure 2), `alpha`, `largest` (share of the
        largest eigenvalue in the trace), `vanishing` (share of eigenvalues below `VANISHING` of their mean), `trace`.
        NaN where they are not finite; `largest` too where all are zero.
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
    """Numbers to watch while training: those of a batch's features, embedding and transformed output, (m, d) each.

    Their names are those of `Spectrum.numbers` after the matrix's, as `embedding/rank`.
    """
    return {
        f"{what}/{name}": value for what, x in matrices.items() for name, value in compute_spectrum(x).numbers().items()
    }


def kind(numbers: Mapping[str, float]) -> str:
    """The collapse that the numbers of a `Spectrum` say: "complete", "dimensional" or "none"; "undefined" for NaN.

    Complete: all vectors are nearly the same (`COMPLETE`). Dimensional: most directions are hardly used (`DIMENSIONAL`,
    `VANISHING`; Hua et al., ICCV 2021, and Jing et al., ICLR 2022, who name it, give no threshold).
    """
    if numbers["std"] != numbers["std"]:
        return "undefined"
    if numbers["std"] < COMPLETE:
        return "complete"
    return "dimensional" if numbers["vanishing"] > DIMENSIONAL else "none"


def collapse(numbers: Mapping[str, float]) -> str | None:
    """A plain sentence where the numbers of `summary` say that the embedding has collapsed, else None."""
    of_embedding = {name: numbers[f"embedding/{name}"] for name in ("std", "vanishing")}
    found = kind(of_embedding)
    if found == "complete":
        return "complete collapse: all images get the same embedding"
    if found == "dimensional":
        return f"dimensional collapse: {of_embedding['vanishing']:.0%} of the embedding's eigenvalues vanish"
    return None


@contextlib.contextmanager
def capture_first_output(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within the block the list receives what `module` returns first: in a step, the features behind the embedding that
    a method keeps."""
    outputs: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if not outputs:
            outputs.append(output.detach())

    hook = module.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        hook.remove()


def batch_spectra(method: Any, features: torch.Tensor, step: int) -> dict[str, float]:
    """`summary` of the batch of all processes, on the first; nothing on the others. Warns of a collapse."""
    parts = {"features": features, "embedding": method.embedding}
    matrices = {name: distributed.gather(part) for name, part in parts.items()}
    if not distributed.is_main_process():
        return {}
    if hasattr(method, "transform"):
        # Watching must not end a run: what cannot be transformed has no numbers.
        with contextlib.suppress(ValueError, torch.linalg.LinAlgError), torch.no_grad():
            matrices["transformed"] = method.transform(matrices["embedding"].float())
    values = summary(matrices)
    sentence = collapse(values)
    if sentence:
        print(f"warning: step {step}: {sentence}", file=sys.stderr)
    return values
