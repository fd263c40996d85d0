"""Barlow Twins: two views' features have the identity as cross-correlation (Zbontar et al., arXiv 2103.03230), with
lightly's loss."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from intl_bench.core.distributed import gather
from pretrain.methods import Setup
from pretrain.methods._lightly import lightly
from pretrain.methods._shared import pairs_mean
from pretrain.precision import at_least_float32

DISPLAY = "Barlow Twins"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the authors' for ImageNet (facebookresearch/barlowtwins, `main.py`).

    Attributes:
        off_diagonal_weight: of the squared correlations of different features.
        scale: of the whole loss; LARS does not heed it, but for biases and batch norms that it leaves to SGD. On n GPUs
            the authors' code, and solo-learn's, has 1 / n of this gradient: their sum over GPUs passes none on.
    """

    name: str = "barlow_twins"
    off_diagonal_weight: float = 0.0051
    scale: float = 1.0

    def __post_init__(self) -> None:
        for field in ("off_diagonal_weight", "scale"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field}={getattr(self, field)}: expected more than 0")


class BarlowTwins(nn.Module):
    """Backbone and projector, which is INTL's: the authors' own and, to no effect, a bias of the last layer."""

    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.pair_loss = lightly("loss").BarlowTwinsLoss(lambda_param=config.off_diagonal_weight)
        self.scale = config.scale
        self.embedding: torch.Tensor | None = None

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Eqn. 1 for the batch of all processes; of more than two views the mean over all pairs."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            # Gathered here: lightly would sum the correlations of parts that it has normalized each by itself, where
            # the authors' batch norm is synchronized.
            whole = gather(at_least_float32(z), dim=1)
            return {"cross_correlation": self.scale * pairs_mean(whole, self.pair_loss)}

    def after_step(self, progress: float) -> None:
        """Nothing: there is no moving average."""


def build(config: Config, setup: Setup) -> BarlowTwins:
    """The method of a run.

    Raises:
        ValueError: the batch holds one image.
    """
    if setup.batch_size < 2:
        raise ValueError(f"batch_size={setup.batch_size}: Barlow Twins correlates over a batch; use at least 2")
    return BarlowTwins(config, setup)
