"""VICReg: variance, invariance and covariance of the embeddings of two views (Bardes et al., arXiv 2105.04906)."""

import dataclasses
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from intl_bench.core.distributed import gather
from intl_bench.core.ranges import Checked, NonNegative
from pretrain.methods import Method, Setup
from pretrain.methods._shared import pairs_mean
from pretrain.precision import at_least_float32

DISPLAY = "VICReg"
_EPSILON = 1e-4  # added to variances (Eqn. 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings; the defaults are those of the authors for ImageNet (facebookresearch/vicreg, `main_vicreg.py`).

    Attributes:
        name: of the method.
        invariance_weight, variance_weight, covariance_weight: lambda, mu and nu of Eqn. 6. As in the authors' code, the
            invariance term is a mean over features (Eqn. 5 has a sum), the variance term is the mean over both views,
            and the covariance term is the sum over both views. solo-learn uses the sum for both, so its variance
            weight of 25 is 50 here.
    """

    name: str = "vicreg"
    invariance_weight: NonNegative = 25.0
    variance_weight: NonNegative = 25.0
    covariance_weight: NonNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.invariance_weight == self.variance_weight == self.covariance_weight == 0:
            raise ValueError("invariance_weight, variance_weight and covariance_weight are all 0: nothing to train")


def variance_loss(z: torch.Tensor) -> torch.Tensor:
    """Compute the mean of max(0, 1 - standard deviation) over the features (Eqn. 1): (..., m, d) -> (...)."""
    return F.relu(1 - (z.var(dim=-2) + _EPSILON).sqrt()).mean(dim=-1)


def covariance_loss(z: torch.Tensor) -> torch.Tensor:
    """Compute the sum of squared covariances of different features, divided by d (Eqn. 4): (..., m, d) -> (...).

    This is the sum of all squares without the squared variances. X^T X and X X^T of the centered X have the same sum
    of squares, so the smaller matrix is used.
    """
    m, d = z.shape[-2:]
    x = (z - z.mean(dim=-2, keepdim=True)) / (m - 1) ** 0.5
    products = x @ x.mT if m < d else x.mT @ x
    return (products.square().sum(dim=(-2, -1)) - x.square().sum(dim=-2).square().sum(dim=-1)) / d


def vicreg(z: torch.Tensor, config: Config) -> torch.Tensor:
    """Compute Eqn. 6, as a mean over all pairs of views: (views, m, d) -> scalar."""
    return (
        config.invariance_weight * pairs_mean(z, F.mse_loss)
        + config.variance_weight * variance_loss(z).mean()
        + config.covariance_weight * 2 * covariance_loss(z).mean()
    )


class VICReg(Method):
    """Backbone and projector under Eqn. 6.

    The projector is that of INTL. It differs from that of the authors only in biases, which have no effect.
    """

    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.config = config

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute Eqn. 6 for the batch of all processes."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            return {"vicreg": vicreg(gather(at_least_float32(z), dim=1), self.config)}


def build(config: Config, setup: Setup) -> VICReg:
    """Build the method of a run.

    Raises:
        ValueError: the batch holds one image.
    """
    if setup.batch_size < 2:
        raise ValueError(f"batch_size={setup.batch_size}: VICReg computes variances over a batch; expected at least 2")
    return VICReg(config, setup)
