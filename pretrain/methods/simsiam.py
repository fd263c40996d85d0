"""SimSiam: one view predicts the embedding of the other view, which gets no gradient (Chen & He, arXiv 2011.10566).

Loss and heads are those of lightly.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import nn

from intl_bench.core.ranges import Checked, Width
from pretrain.methods import Method, Setup
from pretrain.methods._lightly import lightly
from pretrain.precision import at_least_float32

DISPLAY = "SimSiam"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings; the defaults are those of the authors for ImageNet (facebookresearch/simsiam, with `--fix-pred-lr`).

    Attributes:
        name: of the method.
        predictor_hidden: width of the hidden layer of the predictor.
        constant_predictor_lr: the learning rate of the predictor follows no schedule.
    """

    name: str = "simsiam"
    predictor_hidden: Width = 512
    constant_predictor_lr: bool = True


class SimSiam(Method):
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

    @property
    def constant_lr(self) -> list[nn.Parameter]:
        """The parameters of the predictor with `constant_predictor_lr`."""
        return list(self.predictor.parameters()) if self.constant_predictor_lr else []

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute -cos (Eqn. 4) for the images of this process, as a mean over all ordered pairs of views."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        p = torch.stack([self.predictor(embedding) for embedding in z])
        self.embedding = z[0].detach()
        p, targets = at_least_float32(p), at_least_float32(z.detach())
        pairs = itertools.permutations(range(len(views)), 2)
        return {"negative_cosine": torch.stack([self.negative_cosine(p[i], targets[j]) for i, j in pairs]).mean()}


def build(config: Config, setup: Setup) -> SimSiam:
    """Build the method of a run.

    Raises:
        ValueError: the batch holds one image, or the projector does not have three layers.
    """
    if setup.batch_size < 2:
        raise ValueError(f"batch_size={setup.batch_size}: the batch norms of SimSiam need a batch; expected at least 2")
    if setup.projector.layers != 3:
        raise ValueError(f"projector.layers={setup.projector.layers}: expected 3, as in SimSiam")
    return SimSiam(config, setup)
