"""Shuffled-DBN: whitening of random groups of features (Hua et al., "On Feature Decorrelation in Self-Supervised
Learning", ICCV 2021)."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from intl_bench.core.copies import send
from intl_bench.core.distributed import gather
from intl_bench.core.seeding import torch_seed
from pretrain.methods import Setup
from pretrain.methods._shared import pairs_mean
from pretrain.precision import at_least_float32
from pretrain.whiten.hard_whitening import (
    grouped,
    matrix_function,
    power,
    require_batch,
    require_groups,
    shuffled,
    ungrouped,
)

DISPLAY = "Shuffled-DBN"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        groups: how many groups the features are whitened in; None = the fewest with at least twice as many samples as
            features in each, as in the authors' `models/utils/shuffled_group_whitening.py`, that divide the features.
    """

    name: str = "shuffled_dbn"
    groups: int | None = None

    def __post_init__(self) -> None:
        if self.groups is not None and self.groups < 1:
            raise ValueError(f"groups={self.groups}: expected at least 1")


def default_groups(batch_size: int, embedding_dim: int) -> int:
    """See `Config.groups`; one feature a group where nothing larger fits."""
    fits = (g for g in range(1, embedding_dim + 1) if embedding_dim % g == 0 and g * batch_size >= 2 * embedding_dim)
    return next(fits, embedding_dim)


def group_whiten(z: torch.Tensor, groups: int, order: torch.Tensor | None = None) -> torch.Tensor:
    """Decorrelated batch normalization (ZCA) of groups of features: (..., m, d) -> (..., m, d), float32 or better.

    The covariance is divided by m, as in the authors' code. Eigenvalues below `whitening.FLOOR` of a group's largest
    count as that; the authors' have no floor.

    Args:
        groups: divides d.
        order: features in the order in which they fall into groups, (..., d); the output has them in their own again.
    """
    x = shuffled(z.double(), order)
    x = grouped(x - x.mean(dim=-2, keepdim=True), groups)
    white = ungrouped(x @ matrix_function(x.mT @ x / x.shape[-2], power(0.5)))
    return shuffled(white, None if order is None else order.argsort(dim=-1)).to(at_least_float32(z[:0]).dtype)


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean over the samples of |a - b|^2, not normalized (the authors' `l22`): (m, d) -> scalar."""
    return (a - b).square().sum(dim=-1).mean()


class ShuffledDBN(nn.Module):
    """Backbone, projector and the distance of outputs that are whitened in random groups."""

    step: int = 0

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.groups = config.groups or default_groups(setup.batch_size, setup.projector.out)
        self.seed = setup.seed
        self.embedding: torch.Tensor | None = None

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """`squared_distance` of all processes' samples, averaged over all pairs of views; groups differ by view."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            order = send(self.order(len(z), z.shape[-1]), z.device)
            return {"distance": pairs_mean(group_whiten(gather(z, dim=1), self.groups, order), squared_distance)}

    def order(self, views: int, d: int) -> torch.Tensor:
        """This step's random orders of the features, (views, d), on the host; the same on all processes."""
        draws = torch.Generator().manual_seed(torch_seed(self.seed, "shuffled-dbn", self.step))
        return torch.stack([torch.randperm(d, generator=draws) for _ in range(views)])

    def transform(self, z: torch.Tensor) -> torch.Tensor:
        """The output (m, d) of an embedding (m, d), groups of features that follow each other."""
        return group_whiten(z, self.groups)

    def after_step(self, progress: float) -> None:
        """Nothing follows a step."""


def build(config: Config, setup: Setup) -> ShuffledDBN:
    """The method of a run.

    Raises:
        ValueError: the batch holds one image, the groups do not divide the embedding, or they are too large.
    """
    d = setup.projector.out
    require_batch(setup.batch_size, d)
    if config.groups is not None:
        require_groups(config.groups, d)
        if d // config.groups > setup.batch_size - 1:
            raise ValueError(
                f"groups={config.groups}: the covariance of {d // config.groups} features over batch_size="
                f"{setup.batch_size} samples is singular; use more groups or larger batches"
            )
    return ShuffledDBN(config, setup)
