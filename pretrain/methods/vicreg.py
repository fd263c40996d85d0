"""VICReg: variance, invariance and covariance of two views' embeddings (Bardes et al., arXiv 2105.04906), with
lightly's loss."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from intl_bench.core.distributed import gather
from pretrain.baselines import lightly
from pretrain.batch import pairs_mean, widened
from pretrain.methods import Setup

DISPLAY = "VICReg"


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


class VICReg(nn.Module):
    """Backbone and projector, which is INTL's: the authors' own but for the biases, none of which has an effect."""

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.pair_loss = lightly("loss").VICRegLoss(
            lambda_param=config.invariance_weight, mu_param=config.variance_weight, nu_param=config.covariance_weight
        )
        self.embedding: torch.Tensor | None = None

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Eqn. 6 for the batch of all processes; of more than two views the mean over all pairs."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            # Gathered here: lightly's own gathering is exact too, but refuses processes of one image each, and does it
            # again for every pair.
            whole = gather(widened(z), dim=1)
            return {"vicreg": pairs_mean(whole, self.pair_loss)}

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
