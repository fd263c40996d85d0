"""SimSiam: one view's prediction of the other's embedding, which gets no gradient (Chen & He, arXiv 2011.10566), with
lightly's loss and heads."""

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import nn

from pretrain.methods import Setup
from pretrain.methods._lightly import lightly
from pretrain.precision import at_least_float32

DISPLAY = "SimSiam"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the authors' for ImageNet (facebookresearch/simsiam, with `--fix-pred-lr`).

    Attributes:
        predictor_hidden: width of the predictor's hidden layer.
        constant_predictor_lr: the predictor's learning rate follows no schedule.
    """

    name: str = "simsiam"
    predictor_hidden: int = 512
    constant_predictor_lr: bool = True

    def __post_init__(self) -> None:
        if self.predictor_hidden < 1:
            raise ValueError(f"predictor_hidden={self.predictor_hidden}: expected at least 1")


class SimSiam(nn.Module):
    """Backbone, projector and predictor."""

    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        heads = lightly("models.modules.heads")
        widths = setup.projector
        self.backbone = setup.make_backbone()
        self.projector = heads.SimSiamProjectionHead(self.backbone.num_features, widths.hidden, widths.out)
        self.predictor = heads.SimSiamPredictionHead(widths.out, config.predictor_hidden, widths.out)
        self.negative_cosine = lightly("loss").NegativeCosineSimilarity()
        self.constant_predictor_lr = config.constant_predictor_lr
        self.embedding: torch.Tensor | None = None

    @property
    def constant_lr(self) -> list[nn.Parameter]:
        """The predictor's parameters; asked for late, for synchronized batch norms replace some."""
        return list(self.predictor.parameters()) if self.constant_predictor_lr else []

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """-cos (Eqn. 4) of this process's images, averaged over all ordered pairs of views."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        p = torch.stack([self.predictor(embedding) for embedding in z])
        self.embedding = z[0].detach()
        p, targets = at_least_float32(p), at_least_float32(z.detach())
        pairs = itertools.permutations(range(len(views)), 2)
        return {"negative_cosine": torch.stack([self.negative_cosine(p[i], targets[j]) for i, j in pairs]).mean()}

    def after_step(self, progress: float) -> None:
        """Nothing follows a step."""


def build(config: Config, setup: Setup) -> SimSiam:
    """The method of a run.

    Raises:
        ValueError: the batch holds one image, or the projector has another number of layers than three.
    """
    if setup.batch_size < 2:
        raise ValueError(f"batch_size={setup.batch_size}: the batch norms of SimSiam need a batch; use at least 2")
    if setup.projector.layers != 3:
        raise ValueError(f"projector.layers={setup.projector.layers}: SimSiam's has 3")
    return SimSiam(config, setup)
