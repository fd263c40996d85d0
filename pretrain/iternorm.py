"""IterNorm: whitening by Newton's iteration (paper, Eqn. 3; Huang et al., CVPR 2019), and its spectral functions.

Everything here is a pure function of one embedding matrix. Computed in float32 at least, also inside autocast: half
precision costs three to four digits of the loss.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from pretrain.precision import at_least_float32

AXES = ("channel", "batch")
VARIANTS = ("coupled", "paper")


class Whitening(NamedTuple):
    """What IterNorm computes from covariance matrices of n x n, one or a batch of them.

    Attributes:
        matrix: Phi_T, approximately the inverse square root of the covariance, (..., n, n).
        variance: diagonal of Phi_T Sigma Phi_T, the variances of the whitened output, (..., n).
    """

    matrix: torch.Tensor
    variance: torch.Tensor


def require_embedding(shape: tuple[int, ...]) -> None:
    """Raises ValueError unless this is the shape of a matrix of at least two samples and two features."""
    if len(shape) != 2 or min(shape) < 2:
        raise ValueError(f"expected an embedding of at least 2 x 2 (samples, features), got {tuple(shape)}")


def center(z: torch.Tensor, axis: str) -> torch.Tensor:
    """`z` (m, d) in float32 or better, each sample centered over its d features ("channel") or each feature over the
    m samples ("batch"): the authors' `axis` 0 and 1 (`methods/whitening.py`)."""
    if axis not in AXES:
        raise ValueError(f"axis={axis!r}: expected one of {AXES}")
    require_embedding(z.shape)
    z = at_least_float32(z)
    return z - z.mean(dim=1 if axis == "channel" else 0, keepdim=True)


def covariance(centered: torch.Tensor, axis: str) -> torch.Tensor:
    """Covariance of centered (..., m, d) matrices: m x m over (d - 1) for "channel", d x d over (m - 1) for "batch"."""
    x = centered if axis == "channel" else centered.mT
    return x @ x.mT / (x.shape[-1] - 1)


def whiten(sigma: torch.Tensor, *, iterations: int = 4, variant: str = "coupled") -> Whitening:
    """Phi_T of Eqn. 3 for one covariance `sigma` or a batch of them, (..., n, n).

    `variant="paper"` iterates P <- (3 P - P^3 S) / 2 as printed, with S = Sigma / tr(Sigma), which loses precision as T
    grows and diverges in the end (Figure 3d). `variant="coupled"` carries Q = S P^2 along instead of multiplying by S
    anew, as the coupled Newton iterations do (Higham, Functions of Matrices, Section 6.7): the same map in exact
    arithmetic, stable for every T while the covariance is positive definite (in float32, a condition number of 1e4 and
    more). A singular one bears about 16 iterations in float32: rounding makes some of its zero eigenvalues negative,
    and each step multiplies those directions by 1.5.
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
    """P_T and the diagonal of S P_T^2 for S (batch, n, n): P <- P R and Q <- Q R^2, R = (3 I - Q) / 2, from I and S.

    All are polynomials of S: symmetric, and products of two commute. That takes at most five products a step backwards
    where the rules for single operations take six, and two matrices a step to keep.
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
        with torch.autocast(p_bar.device.type, enabled=False):  # somebody may call backward() inside it
            # Of one step: P' = P R and Q' = Q R^2 give R_bar = P P'_bar + 2 Q'_bar R Q, P_bar = P'_bar R and
            # Q_bar = R Q'_bar R - R_bar / 2, of R_bar its symmetric part. Q_T has a gradient on the diagonal alone.
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
    """(3 I - Q) / 2."""
    r = -0.5 * q
    r.diagonal(dim1=-2, dim2=-1).add_(1.5)
    return r


def iter_norm(z: torch.Tensor, *, iterations: int = 4, axis: str = "channel", variant: str = "coupled") -> torch.Tensor:
    """The approximately whitened output of an embedding: (m, d) -> (m, d), float32 or better.

    Args:
        z: embedding of the whole batch.
        iterations: T of Eqn. 3, at least 1.
        axis: "channel" whitens the m samples against each other (the authors' default), "batch" the d features (the
            paper's text; needs d <= m to have full rank).
        variant: "coupled" or "paper", see `whiten`.

    Raises:
        ValueError: an unknown axis or variant, fewer than one iteration, not a matrix of at least 2 x 2.
    """
    with torch.autocast(z.device.type, enabled=False):
        x = center(z, axis)
        phi = whiten(covariance(x, axis), iterations=iterations, variant=variant).matrix
        return phi @ x if axis == "channel" else x @ phi


def t_whitening_function(iterations: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """h_T of Theorem 1: maps a trace-normalized eigenvalue to the eigenvalue of the whitened output, elementwise."""

    def h(x: torch.Tensor) -> torch.Tensor:
        f = torch.ones_like(x)
        for _ in range(iterations):
            f = 1.5 * f - 0.5 * x * f**3
        return x * f**2

    return h
