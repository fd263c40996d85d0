"""BYOL: one view predicts the embedding of the other view by a momentum encoder (Grill et al., arXiv 2006.07733).

Loss and predictor are those of lightly.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import nn

from intl_bench.core.ranges import Checked, Positive, Share, Width
from pretrain.methods import Method, Setup
from pretrain.methods._lightly import lightly
from pretrain.methods._shared import momentum_copy, move_average
from pretrain.precision import at_least_float32
from pretrain.schedules import cosine_momentum

DISPLAY = "BYOL"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings; the defaults are those of the authors for 1000 epochs of ImageNet.

    Attributes:
        name: of the method.
        predictor_hidden: width of the hidden layer of the predictor.
        base_momentum: momentum of the moving average at the start; it rises to 1 along a cosine.
        scale: factor of the whole loss. It has no effect on parameters that LARS scales; it has one on biases and batch
            norms, which LARS updates as SGD does.
    """

    name: str = "byol"
    predictor_hidden: Width = 4096
    base_momentum: Share = 0.996
    scale: Positive = 1.0


class BYOL(Method):
    """Backbone, projector and predictor; the momentum encoder is the moving average of the first two.

    The projector is that of INTL. With two layers it is that of BYOL (and lightly).
    """

    momentum_encoder: nn.Sequential
    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.predictor = lightly("models.modules.heads").BYOLPredictionHead(
            setup.projector.out, config.predictor_hidden, setup.projector.out
        )
        self.momentum_encoder = momentum_copy(self.backbone, self.projector)
        self.negative_cosine = lightly("loss").NegativeCosineSimilarity()
        self.base_momentum, self.scale = config.base_momentum, config.scale

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute `scale` times 2 - 2 cos (Eqn. 2) for the images of this process.

        The result is twice the mean over all ordered pairs of views. For two views this is the sum of both directions.
        For more views it has the same size.
        """
        z = [self.projector(self.backbone(view)) for view in views]
        self.embedding = z[0].detach()
        p = torch.stack([self.predictor(embedding) for embedding in z])
        with torch.no_grad():
            targets = torch.stack([self.momentum_encoder(view) for view in views])
        p, targets = at_least_float32(p), at_least_float32(targets)
        pairs = itertools.permutations(range(len(views)), 2)
        cosine = -torch.stack([self.negative_cosine(p[i], targets[j]) for i, j in pairs]).mean()
        return {"regression": self.scale * 2 * (2 - 2 * cosine)}

    def after_step(self, progress: float) -> None:
        """Update the momentum encoder."""
        momentum = cosine_momentum(progress, self.base_momentum)
        move_average(self.momentum_encoder, [self.backbone, self.projector], momentum)


def build(config: Config, setup: Setup) -> BYOL:
    """Build the method of a run.

    Raises:
        ValueError: the batch holds one image.
    """
    if setup.batch_size < 2:
        raise ValueError(f"batch_size={setup.batch_size}: the batch norms of BYOL need a batch; expected at least 2")
    return BYOL(config, setup)
