"""Zero-CL: agreement of two views after whitening samples, and after whitening features (Zhang et al., ICLR 2022,
openreview.net/forum?id=RAW9tCdVxLj)."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from intl_bench.core.distributed import gather
from pretrain.methods import Setup
from pretrain.methods._shared import pairs_mean
from pretrain.precision import at_least_float32
from pretrain.whiten.hard_whitening import matrix_function, require_batch

DISPLAY = "Zero-CL"

# Added to a standard deviation in the authors' main.py for ImageNet, and to eigenvalues in that for CIFAR.
_STD, _EIGENVALUE = 1e-4, 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        shrinkage: s of the covariance (1 - s) Sigma + s I that is whitened by; 0.1 in the authors' main.py for CIFAR.
    """

    name: str = "zero_cl"
    shrinkage: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.shrinkage < 1:
            raise ValueError(f"shrinkage={self.shrinkage}: expected above 0 and below 1")


def standardize(z: torch.Tensor, dim: int) -> torch.Tensor:
    """`z` with mean 0 and standard deviation 1 over a dimension."""
    x = z.double()
    x = x - x.mean(dim=dim, keepdim=True)
    return x / (x.std(dim=dim, keepdim=True) + _STD)


def whiten_samples(z: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """Samples standardized over their features and whitened (ZCA) against each other: (..., m, d) -> the same.

    The whitening matrix is a constant for the gradient, as the authors' is; so in `whiten_features`.
    """
    x = standardize(z, -1)
    return (_whitening(x.detach().mT, shrinkage) @ x).to(at_least_float32(z[:0]).dtype)


def whiten_features(z: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """Features standardized over the samples and whitened (ZCA) against each other: (..., m, d) -> the same.

    Where d > m the d x d matrix is not formed: with C = X X^T / (m - 1) it is g(0) I + X^T h(C) X / (m - 1),
    h(x) = (g(x) - g(0)) / x, and an eigendecomposition of m x m serves.
    """
    x = standardize(z, -2)
    m, d = x.shape[-2:]
    if d <= m:
        return (x @ _whitening(x.detach(), shrinkage)).to(at_least_float32(z[:0]).dtype)
    least = shrinkage + _EIGENVALUE
    root = least**0.5

    def h(values: torch.Tensor) -> torch.Tensor:
        other = ((1 - shrinkage) * values + least).sqrt()
        return (shrinkage - 1) / (root * other * (root + other))

    fixed = x.detach()
    inner = matrix_function(fixed @ fixed.mT / (m - 1), h, epsilon=0.0) / (m - 1)
    return (x / root + (x @ fixed.mT) @ (inner @ fixed)).to(at_least_float32(z[:0]).dtype)


def _whitening(x: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """((1 - s) Sigma + s I)^-1/2 of the columns' covariance Sigma, x standardized (..., rows, n): (..., n, n)."""

    def g(values: torch.Tensor) -> torch.Tensor:
        return ((1 - shrinkage) * values + shrinkage + _EIGENVALUE).rsqrt()

    return matrix_function(x.mT @ x / (x.shape[-2] - 1), g, epsilon=0.0)


def disagreement(a: torch.Tensor, b: torch.Tensor, dim: int) -> torch.Tensor:
    """Sum of (1 - c)^2, c the mean over a dimension of the two views' products: (m, d) -> scalar."""
    return (1 - (a * b).mean(dim=dim)).square().sum()


class ZeroCL(nn.Module):
    """Backbone, projector and the two disagreements."""

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.shrinkage = config.shrinkage
        self.embedding: torch.Tensor | None = None

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The instance loss, over samples, and the feature loss, of all processes' samples and all pairs of views."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            z = gather(z, dim=1)
            return {
                "instance": pairs_mean(whiten_samples(z, self.shrinkage), lambda a, b: disagreement(a, b, -1)),
                "feature": pairs_mean(whiten_features(z, self.shrinkage), lambda a, b: disagreement(a, b, -2)),
            }

    def transform(self, z: torch.Tensor) -> torch.Tensor:
        """The output (m, d) of an embedding (m, d), its features whitened."""
        return whiten_features(z, self.shrinkage)

    def after_step(self, progress: float) -> None:
        """Nothing follows a step."""


def build(config: Config, setup: Setup) -> ZeroCL:
    """The method of a run.

    Raises:
        ValueError: the batch holds one image.
    """
    require_batch(setup.batch_size, setup.projector.out)
    return ZeroCL(config, setup)
