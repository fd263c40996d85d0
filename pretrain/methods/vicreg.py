"""VICReg: variance, invariance and covariance of two views' embeddings (Bardes et al., arXiv 2105.04906)."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from intl_bench.core.distributed import gather
from pretrain.methods import Setup
from pretrain.methods._shared import pairs_mean
from pretrain.precision import at_least_float32

DISPLAY = "VICReg"
_EPSILON = 1e-4  # of Eqn. 2, added to variances


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the authors' for ImageNet (facebookresearch/vicreg, `main_vicreg.py`).

    Attributes:
        invariance_weight, variance_weight, covariance_weight: lambda, mu and nu of Eqn. 6. As in the authors' code the
            invariance term is a mean over features, Eqn. 5's a sum; the variance term is the mean of both views' and
            the covariance term their sum; solo-learn adds up both, so that its variance weight of 25 is 50 here.
    """

    name: str = "vicreg"
    invariance_weight: float = 25.0
    variance_weight: float = 25.0
    covariance_weight: float = 1.0

    def __post_init__(self) -> None:
        for field in ("invariance_weight", "variance_weight", "covariance_weight"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"{field}={getattr(self, field)}: expected 0 or more")
        if self.invariance_weight == self.variance_weight == self.covariance_weight == 0:
            raise ValueError("invariance_weight, variance_weight and covariance_weight are all 0: nothing to train")


def variance_loss(z: torch.Tensor) -> torch.Tensor:
    """Mean over the features of max(0, 1 - their standard deviation) (Eqn. 1): (..., m, d) -> (...)."""
    return F.relu(1 - (z.var(dim=-2) + _EPSILON).sqrt()).mean(dim=-1)


def covariance_loss(z: torch.Tensor) -> torch.Tensor:
    """Sum of the squared covariances of different features, over d (Eqn. 4): (..., m, d) -> (...).

    They are all squares but the variances'. With X centered, X^T X and X X^T have one sum of squares, so the smaller
    one is formed.
    """
    m, d = z.shape[-2:]
    x = (z - z.mean(dim=-2, keepdim=True)) / (m - 1) ** 0.5
    products = x @ x.mT if m < d else x.mT @ x
    return (products.square().sum(dim=(-2, -1)) - x.square().sum(dim=-2).square().sum(dim=-1)) / d


def vicreg(z: torch.Tensor, config: Config) -> torch.Tensor:
    """Eqn. 6, of more than two views the mean over all pairs: (views, m, d) -> scalar."""
    return (
        config.invariance_weight * pairs_mean(z, F.mse_loss)
        + config.variance_weight * variance_loss(z).mean()
        + config.covariance_weight * 2 * covariance_loss(z).mean()
    )


class VICReg(nn.Module):
    """Backbone and projector, which is INTL's: the authors' own but for the biases, none of which has an effect."""

    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.config = config
        self.embedding: torch.Tensor | None = None

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Eqn. 6 for the batch of all processes; of more than two views the mean over all pairs."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            return {"vicreg": vicreg(gather(at_least_float32(z), dim=1), self.config)}

    def after_step(self, progress: float) -> None:
        """Nothing: there is no moving average."""


def build(config: Config, setup: Setup) -> VICReg:
    """The method of a run.

    Raises:
        ValueError: the batch holds one image.
    """
    if setup.batch_size < 2:
        raise ValueError(f"batch_size={setup.batch_size}: VICReg's variances are over a batch; use at least 2")
    return VICReg(config, setup)
