"""Shuffled-DBN: whitening of random groups of features (Hua et al., "On Feature Decorrelation in Self-Supervised
Learning", ICCV 2021)."""

import dataclasses
from collections.abc import Sequence

import torch

from intl_bench.core.copies import send
from intl_bench.core.distributed import gather
from intl_bench.core.ranges import Checked, Count
from intl_bench.core.seeding import torch_seed
from pretrain.methods import Method, Setup
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
class Config(Checked):
    """Settings.

    Attributes:
        name: of the method.
        groups: number of groups in which features are whitened. None takes the smallest divisor of the number of
            features that gives at least twice as many samples as features of a group, as the authors'
            `models/utils/shuffled_group_whitening.py` does.
    """

    name: str = "shuffled_dbn"
    groups: Count | None = None


def default_groups(batch_size: int, embedding_dim: int) -> int:
    """Return the number of groups for `Config.groups` = None; if no divisor is enough, each feature is a group."""
    fits = (g for g in range(1, embedding_dim + 1) if embedding_dim % g == 0 and g * batch_size >= 2 * embedding_dim)
    return next(fits, embedding_dim)


def group_whiten(z: torch.Tensor, groups: int, order: torch.Tensor | None = None) -> torch.Tensor:
    """Decorrelate groups of features by batch normalization (ZCA): (..., m, d) -> (..., m, d), float32 or better.

    The covariance is divided by m, as in the authors' code. Eigenvalues have the floor `hard_whitening.FLOOR`; those of
    the authors have none.

    Args:
        groups: number of groups, a divisor of d.
        order: order of the features, (..., d); consecutive ones form a group. The output has the original order.
    """
    x = shuffled(z.double(), order)
    x = grouped(x - x.mean(dim=-2, keepdim=True), groups)
    white = ungrouped(x @ matrix_function(x.mT @ x / x.shape[-2], power(0.5)))
    return shuffled(white, None if order is None else order.argsort(dim=-1)).to(at_least_float32(z[:0]).dtype)


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute the mean of |a - b|^2 over the samples, without normalization (the authors' `l22`): (m, d) -> scalar."""
    return (a - b).square().sum(dim=-1).mean()


class ShuffledDBN(Method):
    """Backbone and projector under the distance of outputs that are whitened in random groups."""

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.groups = config.groups or default_groups(setup.batch_size, setup.projector.out)
        self.seed = setup.seed

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute `squared_distance` for the batch of all processes, as a mean over all pairs of views.

        Each view has its own groups.
        """
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            order = send(self.order(len(z), z.shape[-1]), z.device)
            return {"distance": pairs_mean(group_whiten(gather(z, dim=1), self.groups, order), squared_distance)}

    def order(self, views: int, d: int) -> torch.Tensor:
        """Draw the random orders of the features in this step, (views, d), on the CPU, equal in all processes."""
        draws = torch.Generator().manual_seed(torch_seed(self.seed, "shuffled-dbn", self.step))
        return torch.stack([torch.randperm(d, generator=draws) for _ in range(views)])

    def transform(self, z: torch.Tensor) -> torch.Tensor:
        """Return the whitened output (m, d) of an embedding (m, d), with groups of consecutive features."""
        return group_whiten(z, self.groups)


def build(config: Config, setup: Setup) -> ShuffledDBN:
    """Build the method of a run.

    Raises:
        ValueError: the batch holds one image, the groups do not divide the embedding, or a group has more features than
            the batch allows.
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
