"""Spectra of an embedding and of its whitened output, and what they say about collapse."""

import torch

from pretrain.iternorm import iter_norm


def singular_values(z: torch.Tensor) -> torch.Tensor:
    """Singular values of an (m, d) matrix, descending, (min(m, d),), in float64; NaN if an entry is not finite.

    Whitening a completely collapsed embedding gives such a matrix, which LAPACK refuses.
    """
    z = z.double()
    return torch.linalg.svdvals(z) if z.isfinite().all() else z.new_full((min(z.shape),), torch.nan)


def eigenvalues(z: torch.Tensor) -> torch.Tensor:
    """Non-trivial eigenvalues of the feature covariance of an embedding (m, d), descending, (min(m - 1, d),).

    Centring over the samples always makes one of the m directions zero; it is left out.
    """
    m, d = z.shape
    values = singular_values(z.double() - z.double().mean(dim=0)).square() / (m - 1)
    return values[: min(m - 1, d)]


def effective_rank(z: torch.Tensor) -> float:
    """RankMe (Garrido et al., ICML 2023, Eqn. 3): exp of the entropy of the normalised singular values of (m, d)."""
    s = singular_values(z)
    p = s / s.sum().clamp_min(1e-300) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def condition_number(values: torch.Tensor) -> float:
    """Largest over smallest of descending eigenvalues; infinite where the smallest is not positive."""
    smallest = float(values[-1])
    return float(values[0]) / smallest if smallest > 0 else float("inf")


@torch.no_grad()
def summary(z: torch.Tensor, *, iterations: int = 4, axis: str = "channel") -> dict[str, float]:
    """Numbers to watch while training, of one batch's embedding (m, d).

    Returns:
        `embedding/rank` and `whitened/rank` (RankMe), `embedding/condition` and `whitened/condition`,
        `embedding/largest` (share of the largest eigenvalue in the trace), `embedding/std` (mean standard deviation
        over the samples of the L2-normalised embedding times sqrt(d): 1 where it is spread out, 0 where collapsed).
    """
    z = z.float()
    d = z.shape[1]
    values = eigenvalues(z)
    white = iter_norm(z, iterations=iterations, axis=axis)
    unit = torch.nn.functional.normalize(z, dim=1)
    return {
        "embedding/rank": effective_rank(z),
        "embedding/condition": condition_number(values),
        "embedding/largest": float(values[0] / values.sum().clamp_min(1e-300)),
        "embedding/std": float(unit.std(dim=0).mean() * d**0.5),
        "whitened/rank": effective_rank(white),
        "whitened/condition": condition_number(eigenvalues(white)),
    }


def collapse(numbers: dict[str, float]) -> str | None:
    """A plain sentence where the numbers of `summary` say that the embedding has collapsed, else None."""
    if numbers["embedding/std"] < 0.01:
        return "complete collapse: all images get the same embedding"
    if numbers["embedding/rank"] < 2:
        return f"dimensional collapse: the embedding's effective rank is {numbers['embedding/rank']:.2f}"
    return None
