"""BYOL: one view's prediction of the other's momentum embedding (Grill et al., arXiv 2006.07733), with lightly's loss
and predictor."""

import copy
import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import nn

from pretrain.methods import Setup
from pretrain.methods._lightly import lightly
from pretrain.methods._shared import move_average
from pretrain.precision import at_least_float32
from pretrain.schedules import cosine_momentum

DISPLAY = "BYOL"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the authors' for 1000 epochs of ImageNet.

    Attributes:
        predictor_hidden: width of the predictor's hidden layer.
        base_momentum: of the moving average at the start; it rises to 1 along a cosine.
        scale: of the whole loss; LARS does not heed it, but for biases and batch norms that it leaves to SGD.
    """

    name: str = "byol"
    predictor_hidden: int = 4096
    base_momentum: float = 0.996
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.predictor_hidden < 1:
            raise ValueError(f"predictor_hidden={self.predictor_hidden}: expected at least 1")
        if not 0 <= self.base_momentum <= 1:
            raise ValueError(f"base_momentum={self.base_momentum}: expected 0 to 1")
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale}: expected more than 0")


class BYOL(nn.Module):
    """Backbone, projector, predictor, and the moving averages of the first two.

    The projector is INTL's, which with two layers is BYOL's (and lightly's).
    """

    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.predictor = lightly("models.modules.heads").BYOLPredictionHead(
            setup.projector.out, config.predictor_hidden, setup.projector.out
        )
        self.target = copy.deepcopy(nn.Sequential(self.backbone, self.projector)).requires_grad_(False)
        self.negative_cosine = lightly("loss").NegativeCosineSimilarity()
        self.base_momentum, self.scale = config.base_momentum, config.scale
        self.embedding: torch.Tensor | None = None

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """`scale` times 2 - 2 cos (Eqn. 2) of this process's images, of two views the sum of both directions.

        Of more views it is twice the mean over all ordered pairs, so that its size does not depend on their number.
        """
        z = [self.projector(self.backbone(view)) for view in views]
        self.embedding = z[0].detach()
        p = torch.stack([self.predictor(embedding) for embedding in z])
        with torch.no_grad():
            targets = torch.stack([self.target(view) for view in views])
        p, targets = at_least_float32(p), at_least_float32(targets)
        pairs = itertools.permutations(range(len(views)), 2)
        cosine = -torch.stack([self.negative_cosine(p[i], targets[j]) for i, j in pairs]).mean()
        return {"regression": self.scale * 2 * (2 - 2 * cosine)}

    def after_step(self, progress: float) -> None:
        """Moves the target toward the trained network."""
        online = [*self.backbone.parameters(), *self.projector.parameters()]
        move_average(self.target.parameters(), online, cosine_momentum(progress, self.base_momentum))


def build(config: Config, setup: Setup) -> BYOL:
    """The method of a run.

    Raises:
        ValueError: the batch holds one image.
    """
    if setup.batch_size < 2:
        raise ValueError(f"batch_size={setup.batch_size}: the batch norms of BYOL need a batch; use at least 2")
    return BYOL(config, setup)
