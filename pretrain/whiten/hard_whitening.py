"""Hard whitening and other functions of the eigenvalues of a covariance, by eigendecomposition or by Cholesky.

All functions are pure. `matrix_function` and `cholesky_whiten` expect float64, because the eigenvalues of a float32
covariance have errors of 1e-7 of the largest one, and whitening divides by their square roots.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pretrain.projector import ProjectorConfig

Function = Callable[[torch.Tensor], torch.Tensor]
"""An elementwise function of eigenvalues that PyTorch can differentiate."""

FLOOR = 1e-7
"""Floor of the eigenvalues relative to the largest one: a float32 embedding has no signal below it."""

# Nodes and weights of the Gauss-Legendre rule with three points on [0, 1]. The rule gives the divided difference of two
# eigenvalues with a relative distance below _NEAR: there, the difference quotient loses more than two digits to
# cancellation, and the rule loses none.
_NODES = (0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5)
_WEIGHTS = (5 / 18, 8 / 18, 5 / 18)
_NEAR = 1e-2


def power(p: float) -> Function:
    """Return the function lambda^-p of an eigenvalue lambda; p = 0.5 whitens."""
    return lambda values: values.pow(-p)


def require_batch(batch_size: int, embedding_dim: int) -> None:
    """Raise ValueError if there are fewer than two images or two features to whiten."""
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size}: whitening needs a batch; expected at least 2")
    if embedding_dim < 2:
        raise ValueError(f"projector.out={embedding_dim}: too few features to whiten; expected at least 2")


def require_width(projector: ProjectorConfig, rank: int) -> None:
    """Raise ValueError if the last layer of the projector, a linear map, has fewer inputs than the required `rank`."""
    if projector.layers > 1 and projector.hidden < rank:
        raise ValueError(
            f"projector.hidden={projector.hidden}: a linear map of so few features has a singular covariance; "
            f"use at least {rank}, or a smaller batch_size (if samples are whitened) or projector.out (if features are)"
        )


def require_parts(batch_size: int, sub_batch: int) -> None:
    """Raise ValueError unless `sub_batch` is at least 2 and divides `batch_size`."""
    if sub_batch < 2 or batch_size % sub_batch:
        raise ValueError(
            f"sub_batch={sub_batch}: expected at least 2 and a divisor of batch_size={batch_size}; change one of them"
        )


def require_groups(groups: int, embedding_dim: int) -> None:
    """Raise ValueError unless the features can be divided into `groups` equal groups of at least 2 features."""
    if groups < 1 or embedding_dim % groups or embedding_dim // groups < 2:
        raise ValueError(
            f"groups={groups}: expected a divisor of projector.out={embedding_dim} that leaves 2 features per group; "
            "change one of them"
        )


def matrix_function(sigma: torch.Tensor, g: Function, *, epsilon: float = FLOOR) -> torch.Tensor:
    """Compute g(Sigma) = U g(Lambda) U^T (paper, Definition 1) of symmetric positive semi-definite matrices.

    The gradient is that of Daleckii and Krein (Higham, Functions of Matrices, Theorem 3.11): divided differences of g,
    or g' for (nearly) equal eigenvalues. The gradient of `torch.linalg.eigh` divides by the gaps of the eigenvalues,
    and is NaN if two are equal. On a GPU, `torch.linalg.eigh` synchronizes with the host once per call, to check its
    convergence.

    Args:
        sigma: (..., n, n), float64.
        g: see `Function`.
        epsilon: floor of the eigenvalues, relative to the largest eigenvalue of the matrix. Smaller eigenvalues are
            replaced by the floor, which is a constant for the gradient.

    Returns:
        (..., n, n); NaN for a matrix that is not finite.
    """
    result: torch.Tensor = _MatrixFunction.apply(sigma, g, epsilon)
    return result


class _MatrixFunction(torch.autograd.Function):
    """Matrix function with the gradient of `matrix_function`."""

    @staticmethod
    def forward(ctx: Any, sigma: torch.Tensor, g: Function, epsilon: float) -> torch.Tensor:
        finite = sigma.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
        values, vectors = torch.linalg.eigh(torch.where(finite, sigma, 0))
        floor = (epsilon * values[..., -1:]).clamp_min(1e-30)  # positive for a zero matrix
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
    """Return (g(a) - g(b)) / (a - b) of all pairs of eigenvalues, (..., n) -> (..., n, n); g is flat below `floor`."""
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
    """Return g' at `values`; 0 at or below `floor`."""
    with torch.enable_grad():
        x = values.clamp_min(floor).requires_grad_()
        y = g(x)
        slope = torch.autograd.grad(y.sum(), x)[0] if y.requires_grad else torch.zeros_like(x)
    return torch.where(values > floor, slope, 0)


def cholesky_whiten(x: torch.Tensor, *, epsilon: float = 0.0) -> torch.Tensor:
    """Whiten features by Cholesky decomposition: x L^-T with L L^T = (1 - epsilon) Sigma + epsilon I.

    Sigma is the covariance over m - 1, as in the authors' code (htdt/self-supervised, `methods/whitening.py`).

    Args:
        x: centered features (..., m, d), float64.
        epsilon: shrinkage of the covariance, 0 to 1.

    Returns:
        (..., m, d); NaN for a matrix whose shrunk covariance is not positive definite.
    """
    m, d = x.shape[-2:]
    sigma = (1 - epsilon) * (x.mT @ x) / (m - 1) + epsilon * torch.eye(d, dtype=x.dtype, device=x.device)
    factor, failed = torch.linalg.cholesky_ex(sigma)  # `cholesky` would wait for the GPU to check for failure
    factor = torch.where((failed == 0)[..., None, None], factor, torch.nan)
    return torch.linalg.solve_triangular(factor, x.mT, upper=False).mT


def shuffled(x: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Reorder the features of x (..., m, d) by `order` (..., d), one order per matrix; None keeps the order."""
    return x if order is None else x.gather(-1, order[..., None, :].expand_as(x))


def grouped(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Split the features into groups: (..., m, d) -> (..., groups, m, d / groups)."""
    return x.unflatten(-1, (groups, -1)).movedim(-2, -3)


def ungrouped(x: torch.Tensor) -> torch.Tensor:
    """Undo `grouped`: (..., groups, m, d / groups) -> (..., m, d)."""
    return x.movedim(-3, -2).flatten(-2)


def cosine_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute the mean of |a / |a| - b / |b||^2 = 2 - 2 cos(a, b) over all samples (..., m, d) (paper, Eqn. 1)."""
    return 2 - 2 * (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(dim=-1).mean()
