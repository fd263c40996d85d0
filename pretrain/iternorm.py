"""IterNorm: whitening by Newton's iteration (paper, Eqn. 3; Huang et al., CVPR 2019), and its spectral functions.

Everything here is a pure function of one embedding matrix. Computed in float32 at least, also inside autocast: half
precision costs three to four digits of the loss.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

AXES = ("channel", "batch")
VARIANTS = ("coupled", "paper")


class Whitening(NamedTuple):
    """What IterNorm computes from a covariance matrix of n x n.

    Attributes:
        matrix: Phi_T, approximately the inverse square root of the covariance, (n, n).
        variance: diagonal of Phi_T Sigma Phi_T, the variances of the whitened output, (n,).
    """

    matrix: torch.Tensor
    variance: torch.Tensor


def center(z: torch.Tensor, axis: str) -> torch.Tensor:
    """`z` (m, d) in float32 or better, each sample centred over its d features ("channel") or each feature over the
    m samples ("batch"): the authors' `axis` 0 and 1 (`methods/whitening.py`)."""
    if axis not in AXES:
        raise ValueError(f"axis={axis!r}: expected one of {AXES}")
    if z.ndim != 2 or z.shape[0] < 2 or z.shape[1] < 2:
        raise ValueError(f"expected an embedding of at least 2 x 2 (samples, features), got {tuple(z.shape)}")
    z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    return z - z.mean(dim=1 if axis == "channel" else 0, keepdim=True)


def covariance(centered: torch.Tensor, axis: str) -> torch.Tensor:
    """Covariance of a centred (m, d) matrix: m x m over (d - 1) for "channel", d x d over (m - 1) for "batch"."""
    x = centered if axis == "channel" else centered.T
    return x @ x.T / (x.shape[1] - 1)


def whiten(sigma: torch.Tensor, *, iterations: int = 4, variant: str = "coupled") -> Whitening:
    """Phi_T of Eqn. 3 for the covariance `sigma` (n, n).

    `variant="paper"` iterates P <- (3 P - P^3 S) / 2 as printed, with S = Sigma / tr(Sigma), which loses precision as T
    grows and diverges in the end (Figure 3d). `variant="coupled"` carries Y = S P along (Higham, Functions of Matrices,
    Section 6.7): the same map in exact arithmetic, stable for every T while the covariance is positive definite (in
    float32, a condition number of 1e4 and more). A singular one bears about 16 iterations in float32: rounding makes
    some of its zero eigenvalues negative, and each step multiplies those directions by 1.5.
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: IterNorm needs at least one")
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}: expected one of {VARIANTS}")
    trace = sigma.diagonal().sum()
    s = sigma / trace
    identity = torch.eye(len(s), dtype=s.dtype, device=s.device)
    if variant == "coupled":
        # The first step from P = I needs no product: P_1 = (3 I - S) / 2.
        p = 1.5 * identity - 0.5 * s
        y = s @ p
        for _ in range(iterations - 1):
            step = 1.5 * identity - 0.5 * (p @ y)
            y, p = y @ step, step @ p
    else:
        p = identity
        for _ in range(iterations):
            p = 1.5 * p - 0.5 * (p @ p @ p) @ s
        y = s @ p
    return Whitening(matrix=p / trace.sqrt(), variance=(p * y.T).sum(dim=1))


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
    """h_T of Theorem 1: maps a trace-normalised eigenvalue to the eigenvalue of the whitened output, elementwise."""

    def h(x: torch.Tensor) -> torch.Tensor:
        f = torch.ones_like(x)
        for _ in range(iterations):
            f = 1.5 * f - 0.5 * x * f**3
        return x * f**2

    return h
