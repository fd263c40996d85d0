"""Supervised pre-training: cross-entropy with the labels, for the tables' Supervised rows."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from pretrain.methods import Setup

DISPLAY = "Supervised"
LABELED = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are those of torchvision's and MoCo's supervised ResNet-50."""

    name: str = "supervised"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: expected 0 to less than 1")


class Supervised(nn.Module):
    """Backbone and a linear classifier, whose logits stand for the embedding."""

    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone = setup.make_backbone()
        self.projector = nn.Linear(self.backbone.num_features, setup.classes)
        self.label_smoothing = config.label_smoothing
        self.embedding: torch.Tensor | None = None

    def forward(self, views: Sequence[torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cross-entropy of every view with its image's label (m,), averaged."""
        logits = [self.projector(self.backbone(view)) for view in views]
        self.embedding = logits[0].detach()
        losses = [F.cross_entropy(z, labels, label_smoothing=self.label_smoothing) for z in logits]
        return {"cross_entropy": torch.stack(losses).mean()}

    def after_step(self, progress: float) -> None:
        """Nothing follows a step."""


def build(config: Config, setup: Setup) -> Supervised:
    """The method of a run."""
    return Supervised(config, setup)
