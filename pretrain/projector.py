"""The projector: (Linear without bias, BatchNorm, ReLU) x (layers - 1), then Linear (the authors' `src/model.py`)."""

import dataclasses

from torch import nn

from intl_bench.core.ranges import Checked, Layers, Width


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectorConfig(Checked):
    """Settings of the projector.

    Attributes:
        hidden: width of the hidden layers.
        out: dimension d of the embedding.
        layers: number of linear layers.
    """

    hidden: Width = 8192
    out: Width = 8192
    layers: Layers = 3


def build_projector(num_features: int, config: ProjectorConfig) -> nn.Sequential:
    """Build the projector: features (N, num_features) -> embeddings (N, config.out)."""
    layers: list[nn.Module] = []
    width = num_features
    for _ in range(config.layers - 1):
        layers += [nn.Linear(width, config.hidden, bias=False), nn.BatchNorm1d(config.hidden), nn.ReLU(inplace=True)]
        width = config.hidden
    return nn.Sequential(*layers, nn.Linear(width, config.out))
