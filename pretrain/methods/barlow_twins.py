"""Barlow Twins: two views get the identity as cross-correlation of features (Zbontar et al., arXiv 2103.03230).

The loss is that of lightly.
"""

import dataclasses
from collections.abc import Sequence

import torch

from intl_bench.core.distributed import gather
from intl_bench.core.ranges import Checked, Positive
from pretrain.methods import Method, Setup
from pretrain.methods._lightly import lightly
from pretrain.methods._shared import pairs_mean
from pretrain.precision import at_least_float32

DISPLAY = "Barlow Twins"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings; the defaults are the authors' for ImageNet (facebookresearch/barlowtwins, `main.py`).

    Attributes:
        name: of the method.
        off_diagonal_weight: weight of the squared correlations of different features.
        scale: factor of the whole loss. It has no effect on parameters that LARS scales; it has one on biases and batch
            norms, which LARS updates as SGD does. On n GPUs, the code of the authors and of solo-learn computes 1 / n
            of this gradient, because their sum over GPUs passes no gradient to other GPUs.
    """

    name: str = "barlow_twins"
    off_diagonal_weight: Positive = 0.0051
    scale: Positive = 1.0


class BarlowTwins(Method):
    """Backbone and projector under the loss of Barlow Twins.

    The projector is that of INTL. It is that of the authors with a bias in the last layer, which has no effect.
    """

    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.pair_loss = lightly("loss").BarlowTwinsLoss(lambda_param=config.off_diagonal_weight)
        self.scale = config.scale

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute Eqn. 1 for the batch of all processes, as a mean over all pairs of views."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            # lightly would normalize the part of each process separately and sum the correlations. The batch norm of
            # the authors is synchronized, so the embeddings are gathered before the loss.
            whole = gather(at_least_float32(z), dim=1)
            return {"cross_correlation": self.scale * pairs_mean(whole, self.pair_loss)}


def build(config: Config, setup: Setup) -> BarlowTwins:
    """Build the method of a run.

    Raises:
        ValueError: the batch holds one image.
    """
    if setup.batch_size < 2:
        raise ValueError(
            f"batch_size={setup.batch_size}: Barlow Twins computes correlations over a batch; expected at least 2"
        )
    return BarlowTwins(config, setup)
