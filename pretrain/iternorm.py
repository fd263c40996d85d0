"""IterNorm: whitening by Newton's iteration (paper, Eqn. 3; Huang et al., CVPR 2019), and its T-whitening function.

All functions are pure. They compute in float32 or float64, also inside autocast, because half precision costs three to
four digits of the loss.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from intl_bench.core.ranges import Choice
from pretrain.precision import at_least_float32

__all__ = [
    *("AXES", "VARIANTS", "Axis", "Variant", "Whitening"),
    *("covariance", "iter_norm", "t_whitening_function", "whiten"),
]
AXES = ("channel", "batch")
VARIANTS = ("coupled", "paper")
Axis = Annotated[str, Choice(AXES)]
Variant = Annotated[str, Choice(VARIANTS)]


class Whitening(NamedTuple):
    """Result of IterNorm for one n x n covariance matrix or a batch of them.

    Attributes:
        matrix: Phi_T, approximately the inverse square root of the covariance, (..., n, n).
        variance: diagonal of Phi_T Sigma Phi_T, the variances of the whitened output, (..., n).
    """

    matrix: torch.Tensor
    variance: torch.Tensor


def require_embedding(shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `shape` is the shape of a matrix of at least two samples and two features."""
    if len(shape) != 2 or min(shape) < 2:
        raise ValueError(f"expected an embedding of at least 2 x 2 (samples, features), got {tuple(shape)}")


def center(z: torch.Tensor, axis: str) -> torch.Tensor:
    """Center `z` (m, d), in float32 or float64.

    Args:
        axis: "channel" centers each sample over its d features; "batch" centers each feature over the m samples. These
            are `axis` 0 and 1 of the authors (`methods/whitening.py`).
    """
    if axis not in AXES:
        raise ValueError(f"axis={axis!r}: expected one of {AXES}")
    require_embedding(z.shape)
    z = at_least_float32(z)
    return z - z.mean(dim=1 if axis == "channel" else 0, keepdim=True)


def covariance(centered: torch.Tensor, axis: str) -> torch.Tensor:
    """Compute the covariance of centered matrices (..., m, d).

    It is m x m over (d - 1) for the axis "channel", and d x d over (m - 1) for "batch".
    """
    x = centered if axis == "channel" else centered.mT
    return x @ x.mT / (x.shape[-1] - 1)


def whiten(sigma: torch.Tensor, *, iterations: int = 4, variant: str = "coupled") -> Whitening:
    """Compute Phi_T of Eqn. 3.

    The variant "paper" iterates P <- (3 P - P^3 S) / 2 as printed, with S = Sigma / tr(Sigma). It loses precision as T
    grows, and diverges in the end (Figure 3d).

    The variant "coupled" updates Q = S P^2 together with P and does not multiply by S again, as coupled Newton
    iterations do (Higham, Functions of Matrices, Section 6.7). It is the same map in exact arithmetic. It is stable for
    every T if the covariance is positive definite (in float32, also with condition numbers of 1e4 and more). A singular
    covariance allows about 16 iterations in float32: rounding makes some of its zero eigenvalues negative, and each
    step multiplies these directions by 1.5.

    Args:
        sigma: one covariance or a batch of them, (..., n, n).
        iterations: T, at least 1.
        variant: "coupled" or "paper".

    Raises:
        ValueError: the number of iterations is less than one, or the variant is unknown.
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: IterNorm needs at least one")
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}: expected one of {VARIANTS}")
    trace = sigma.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]
    s = sigma / trace
    if variant == "coupled":
        p, variance = _Coupled.apply(s.reshape(-1, *s.shape[-2:]), iterations)
        p, variance = p.view(s.shape), variance.view(s.shape[:-1])
    else:
        p = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
        for _ in range(iterations):
            p = 1.5 * p - 0.5 * (p @ p @ p) @ s
        variance = (p * (s @ p).mT).sum(dim=-1)
    return Whitening(matrix=p / trace.sqrt(), variance=variance)


class _Coupled(torch.autograd.Function):
    """P_T and the diagonal of S P_T^2 for S (batch, n, n).

    The iteration is P <- P R and Q <- Q R^2 with R = (3 I - Q) / 2, from P = I and Q = S. All these matrices are
    polynomials of S: they are symmetric, and they commute. Therefore one step of the backward pass takes at most five
    products (six by the rules for single operations), and the forward pass saves two matrices per step.
    """

    @staticmethod
    def forward(ctx: Any, s: torch.Tensor, iterations: int) -> tuple[torch.Tensor, torch.Tensor]:
        q, r = s, _residual(s)
        p, kept = r, [s]
        for _ in range(iterations - 1):
            q = q @ (r @ r)
            kept += [p, q]
            r = _residual(q)
            p = p @ r
        q_r = q @ r
        ctx.save_for_backward(*kept, q_r)
        return p, (q_r * r).sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (*kept, q_r), (p_bar, variance_bar) = ctx.saved_tensors, gradients
        with torch.autocast(p_bar.device.type, enabled=False):  # the caller may run backward() inside autocast
            # X_bar is the gradient of X. For one step, P' = P R and Q' = Q R^2 give R_bar = P P'_bar + 2 Q'_bar R Q,
            # P_bar = P'_bar R and Q_bar = R Q'_bar R - R_bar / 2, with the symmetric part of R_bar. The gradient of Q_T
            # is diagonal.
            scale = variance_bar[..., None]
            r_bar = 2 * scale * q_r
            r = _residual(kept.pop())
            q_bar_r = scale * r
            while kept:
                r_bar.baddbmm_(kept.pop(), p_bar)
                p_bar = p_bar @ r
                q_bar = torch.baddbmm(r_bar + r_bar.mT, r, q_bar_r, beta=-0.25)
                q = kept.pop()
                r = _residual(q)
                q_bar_r = q_bar @ r
                r_bar = torch.baddbmm(q_bar_r, q_bar_r, q, beta=0, alpha=2)
            r_bar += p_bar
            return torch.baddbmm(r_bar + r_bar.mT, r, q_bar_r, beta=-0.25), None


def _residual(q: torch.Tensor) -> torch.Tensor:
    """Return (3 I - Q) / 2."""
    r = -0.5 * q
    r.diagonal(dim1=-2, dim2=-1).add_(1.5)
    return r


def iter_norm(z: torch.Tensor, *, iterations: int = 4, axis: str = "channel", variant: str = "coupled") -> torch.Tensor:
    """Whiten an embedding approximately: (m, d) -> (m, d), float32 or float64.

    Args:
        z: embedding of the whole batch.
        iterations: T of Eqn. 3, at least 1.
        axis: "channel" whitens the m samples (the authors' default). "batch" whitens the d features (the text of the
            paper); the covariance has full rank only if d < m.
        variant: "coupled" or "paper", see `whiten`.

    Raises:
        ValueError: the axis or the variant is unknown, the number of iterations is less than one, or `z` is not a
            matrix of at least 2 x 2.
    """
    with torch.autocast(z.device.type, enabled=False):
        x = center(z, axis)
        phi = whiten(covariance(x, axis), iterations=iterations, variant=variant).matrix
        return phi @ x if axis == "channel" else x @ phi


def t_whitening_function(iterations: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return h_T of Theorem 1, which maps trace-normalized eigenvalues to those of the whitened output, elementwise."""

    def h(x: torch.Tensor) -> torch.Tensor:
        f = torch.ones_like(x)
        for _ in range(iterations):
            f = 1.5 * f - 0.5 * x * f**3
        return x * f**2

    return h
