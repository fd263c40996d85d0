"""Supervised pre-training: cross-entropy with the labels, for the rows "Supervised" of the tables."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from intl_bench.core.ranges import Checked, Fraction
from pretrain.methods import Method, Setup

DISPLAY = "Supervised"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings; the defaults are those of the supervised ResNet-50 of torchvision and MoCo.

    Attributes:
        name: of the method.
        label_smoothing: share of the target that is spread over all classes.
    """

    name: str = "supervised"
    label_smoothing: Fraction = 0.0


class Supervised(Method):
    """Backbone and a linear classifier in the place of the projector; the embedding is its logits."""

    labeled = True
    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        backbone = setup.make_backbone()
        self.backbone, self.projector = backbone, nn.Linear(backbone.num_features, setup.classes)
        self.label_smoothing = config.label_smoothing

    def forward(self, views: Sequence[torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the cross-entropy with the labels (m,), as a mean over the views."""
        logits = [self.projector(self.backbone(view)) for view in views]
        self.embedding = logits[0].detach()
        losses = [F.cross_entropy(z, labels, label_smoothing=self.label_smoothing) for z in logits]
        return {"cross_entropy": torch.stack(losses).mean()}


def build(config: Config, setup: Setup) -> Supervised:
    """Build the method of a run."""
    return Supervised(config, setup)
