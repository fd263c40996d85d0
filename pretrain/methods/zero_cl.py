"""Zero-CL: agreement of two views after whitening of samples, and after whitening of features (Zhang et al., ICLR 2022,
openreview.net/forum?id=RAW9tCdVxLj)."""

import dataclasses
from collections.abc import Sequence

import torch

from intl_bench.core.distributed import gather
from intl_bench.core.ranges import Checked, Share
from pretrain.methods import Method, Setup
from pretrain.methods._shared import pairs_mean
from pretrain.precision import at_least_float32
from pretrain.whiten.hard_whitening import matrix_function, require_batch

DISPLAY = "Zero-CL"

# The authors add the first number to standard deviations (main.py for ImageNet), the second to eigenvalues (main.py for
# CIFAR).
_STD, _EIGENVALUE = 1e-4, 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings.

    Attributes:
        name: of the method.
        shrinkage: s of the shrunk covariance (1 - s) Sigma + s I; 0.1 in the authors' main.py for CIFAR.
    """

    name: str = "zero_cl"
    shrinkage: Share = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shrinkage < 1:
            raise ValueError(f"shrinkage={self.shrinkage}: expected above 0 and below 1")


def standardize(z: torch.Tensor, dim: int) -> torch.Tensor:
    """Shift and scale `z` to mean 0 and standard deviation 1 over a dimension."""
    x = z.double()
    x = x - x.mean(dim=dim, keepdim=True)
    return x / (x.std(dim=dim, keepdim=True) + _STD)


def whiten_samples(z: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """Standardize samples over their features and whiten them (ZCA): (..., m, d) -> (..., m, d).

    Here and in `whiten_features`, the whitening matrix is a constant for the gradient, as in the authors' code.
    """
    x = standardize(z, -1)
    return (_whitening(x.detach().mT, shrinkage) @ x).to(at_least_float32(z[:0]).dtype)


def whiten_features(z: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """Standardize features over the samples and whiten them (ZCA): (..., m, d) -> (..., m, d).

    If d > m, the d x d whitening matrix is not computed. It is g(0) I + X^T h(C) X / (m - 1) with C = X X^T / (m - 1)
    and h(x) = (g(x) - g(0)) / x, so an eigendecomposition of the m x m matrix C is enough.
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
    """Return ((1 - s) Sigma + s I)^-1/2, (..., n, n), with the covariance Sigma of the columns of x (..., rows, n).

    Args:
        x: standardized columns.
        shrinkage: s.
    """

    def g(values: torch.Tensor) -> torch.Tensor:
        return ((1 - shrinkage) * values + shrinkage + _EIGENVALUE).rsqrt()

    return matrix_function(x.mT @ x / (x.shape[-2] - 1), g, epsilon=0.0)


def disagreement(a: torch.Tensor, b: torch.Tensor, dim: int) -> torch.Tensor:
    """Compute the sum of (1 - c)^2; c is the mean of the products of two views over `dim`: (m, d) -> scalar."""
    return (1 - (a * b).mean(dim=dim)).square().sum()


class ZeroCL(Method):
    """Backbone and projector under both disagreements."""

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.shrinkage = config.shrinkage

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute the instance loss and the feature loss for the batch of all processes, over all pairs of views."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            z = gather(z, dim=1)
            return {
                "instance": pairs_mean(whiten_samples(z, self.shrinkage), lambda a, b: disagreement(a, b, -1)),
                "feature": pairs_mean(whiten_features(z, self.shrinkage), lambda a, b: disagreement(a, b, -2)),
            }

    def transform(self, z: torch.Tensor) -> torch.Tensor:
        """Return the output (m, d) of an embedding (m, d) with whitened features."""
        return whiten_features(z, self.shrinkage)


def build(config: Config, setup: Setup) -> ZeroCL:
    """Build the method of a run.

    Raises:
        ValueError: there are fewer than two images or features.
    """
    require_batch(setup.batch_size, setup.projector.out)
    return ZeroCL(config, setup)
