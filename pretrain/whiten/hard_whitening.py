"""Hard whitening and other functions of a covariance's eigenvalues, by eigendecomposition and by Cholesky's.

Pure functions. All of them compute in float64 whatever they are given: a float32 covariance has eigenvalues that are
right to 1e-7 of the largest one only, and whitening divides by their roots.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pretrain.projector import ProjectorConfig

Function = Callable[[torch.Tensor], torch.Tensor]
"""A function of eigenvalues, element by element, differentiable by PyTorch."""

FLOOR = 1e-7
"""Smallest eigenvalue that counts, as a share of the largest: a float32 embedding has no signal below."""

# Nodes and weights of Gauss's rule with three points on [0, 1], and the relative distance of two eigenvalues below
# which it gives their divided difference: there the difference itself would lose more than two digits to cancellation,
# and the rule none.
_NODES = (0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5)
_WEIGHTS = (5 / 18, 8 / 18, 5 / 18)
_NEAR = 1e-2


def power(p: float) -> Function:
    """The function lambda^-p; p = 0.5 whitens."""
    return lambda values: values.pow(-p)


def require_batch(batch_size: int, embedding_dim: int) -> None:
    """Raises ValueError where there is nothing to whiten: fewer than two images or two features."""
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size}: whitening needs a batch; use at least 2")
    if embedding_dim < 2:
        raise ValueError(f"projector.out={embedding_dim}: whitening needs at least 2 features")


def require_width(projector: ProjectorConfig, rank: int) -> None:
    """Raises ValueError where the projector's last layer, a linear map, has too few inputs for a covariance's rank."""
    if projector.layers > 1 and projector.hidden < rank:
        raise ValueError(
            f"projector.hidden={projector.hidden}: a linear map of so few features has a singular covariance; "
            f"use at least {rank}, or a smaller batch_size or projector.out, whichever is whitened"
        )


def require_parts(batch_size: int, sub_batch: int) -> None:
    """Raises ValueError unless a batch divides into equal sub-batches of this size, at least 2."""
    if sub_batch < 2 or batch_size % sub_batch:
        raise ValueError(
            f"sub_batch={sub_batch}: expected at least 2 and a divisor of batch_size={batch_size}; change one of them"
        )


def require_groups(groups: int, embedding_dim: int) -> None:
    """Raises ValueError unless the features divide into so many groups of at least 2."""
    if groups < 1 or embedding_dim % groups or embedding_dim // groups < 2:
        raise ValueError(
            f"groups={groups}: expected a divisor of projector.out={embedding_dim} that leaves 2 features to a group; "
            "change one of them"
        )


def matrix_function(sigma: torch.Tensor, g: Function, *, epsilon: float = FLOOR) -> torch.Tensor:
    """g(Sigma) = U g(Lambda) U^T (paper, Definition 1) of symmetric positive semi-definite matrices.

    The gradient is Daleckii's and Krein's (Higham, Functions of Matrices, Theorem 3.11): divided differences of g, with
    g' where eigenvalues are (nearly) equal. That of `torch.linalg.eigh` divides by their gaps instead, and is NaN where
    two are the same. On a GPU the host waits for `torch.linalg.eigh`, which asks whether it has converged: once for all
    matrices of a call.

    Args:
        sigma: (..., n, n), float64.
        g: see `Function`.
        epsilon: eigenvalues below this share of the matrix's largest count as that, a constant for the gradient.

    Returns:
        (..., n, n); NaN where `sigma` is not finite.
    """
    result: torch.Tensor = _MatrixFunction.apply(sigma, g, epsilon)
    return result


class _MatrixFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sigma: torch.Tensor, g: Function, epsilon: float) -> torch.Tensor:
        finite = sigma.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
        values, vectors = torch.linalg.eigh(torch.where(finite, sigma, 0))
        floor = (epsilon * values[..., -1:]).clamp_min(1e-30)  # of a matrix that is zero, too
        ctx.g = g
        ctx.save_for_backward(values, vectors, floor)
        result = (vectors * g(values.clamp_min(floor))[..., None, :]) @ vectors.mT
        return torch.where(finite, result, torch.nan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        values, vectors, floor = ctx.saved_tensors
        differences = _divided_differences(ctx.g, values, floor)
        return vectors @ (differences * (vectors.mT @ gradients[0] @ vectors)) @ vectors.mT, None, None


def _divided_differences(g: Function, values: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """(g(a) - g(b)) / (a - b) of all pairs of eigenvalues (..., n) -> (..., n, n), g of what is above the floor."""
    a, b = values[..., :, None], values[..., None, :]
    image = g(values.clamp_min(floor))
    gap = a - b
    near = gap.abs() <= _NEAR * (a.abs() + b.abs())
    # A divided difference is the mean of g' between the two.
    mean = torch.zeros_like(gap)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        mean += weight * _derivative(g, b + node * gap, floor[..., None])
    return torch.where(near, mean, (image[..., :, None] - image[..., None, :]) / torch.where(near, 1, gap))


def _derivative(g: Function, values: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        x = values.clamp_min(floor).requires_grad_()
        y = g(x)
        slope = torch.autograd.grad(y.sum(), x)[0] if y.requires_grad else torch.zeros_like(x)
    return torch.where(values > floor, slope, 0)


def cholesky_whiten(x: torch.Tensor, *, epsilon: float = 0.0) -> torch.Tensor:
    """x L^-T of centered features x (..., m, d) in float64, L L^T their shrunk covariance.

    (1 - epsilon) Sigma + epsilon I with Sigma over m - 1, as in the authors' code (htdt/self-supervised,
    `methods/whitening.py`); NaN where that is not positive definite.
    """
    m, d = x.shape[-2:]
    sigma = (1 - epsilon) * (x.mT @ x) / (m - 1) + epsilon * torch.eye(d, dtype=x.dtype, device=x.device)
    factor, failed = torch.linalg.cholesky_ex(sigma)  # that does not wait for the GPU to say whether it failed
    factor = torch.where((failed == 0)[..., None, None], factor, torch.nan)
    return torch.linalg.solve_triangular(factor, x.mT, upper=False).mT


def shuffled(x: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """The features of x (..., m, d) in another order, (..., d), of each matrix's own; None leaves them."""
    return x if order is None else x.gather(-1, order[..., None, :].expand_as(x))


def grouped(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Features in groups: (..., m, d) -> (..., groups, m, d / groups)."""
    return x.unflatten(-1, (groups, -1)).movedim(-2, -3)


def ungrouped(x: torch.Tensor) -> torch.Tensor:
    """Undoes `grouped`."""
    return x.movedim(-3, -2).flatten(-2)


def cosine_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean over all samples of |a / |a| - b / |b||^2 = 2 - 2 cos(a, b) (paper, Eqn. 1): (..., m, d) -> scalar."""
    return 2 - 2 * (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(dim=-1).mean()
