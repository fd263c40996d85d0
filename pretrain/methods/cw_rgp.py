"""CW-RGP: channel whitening with random group partition (Weng et al., NeurIPS 2022)."""

import dataclasses
from collections.abc import Sequence

import torch

from intl_bench.core.copies import send
from intl_bench.core.distributed import gather
from intl_bench.core.ranges import Checked, Count, Fraction, Iterations
from intl_bench.core.seeding import torch_seed
from pretrain.methods import Method, Setup
from pretrain.methods._shared import pairs_mean
from pretrain.precision import at_least_float32
from pretrain.whiten.hard_whitening import (
    cosine_distance,
    grouped,
    matrix_function,
    power,
    require_batch,
    require_groups,
    require_parts,
    shuffled,
    ungrouped,
)

DISPLAY = "CW-RGP"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings; the defaults are those of the authors for CIFAR (github.com/winci-ai/CW-RGP, `scripts/base.sh`).

    Attributes:
        name: of the method.
        groups: number of groups of features. They are drawn at random for each sub-batch and view.
        sub_batch: number of samples that are whitened together. Each step divides the batch into such parts at random.
        iterations: number of random divisions over which the loss is averaged.
        epsilon: shrinkage of the covariance to (1 - epsilon) Sigma + epsilon I.
    """

    name: str = "cw_rgp"
    groups: Count = 4
    sub_batch: Count = 64
    iterations: Iterations = 1
    epsilon: Fraction = 0.0


def channel_whiten(
    z: torch.Tensor, groups: int, order: torch.Tensor | None = None, *, epsilon: float = 0.0
) -> torch.Tensor:
    """Whiten the samples (ZCA) in groups of features: (..., m, d) -> (..., m, d), float32 or better.

    As in the authors' `methods/whitening.py`, each sample is centered over all its features, and the m x m covariance
    of a group is divided by the number of its features minus one. Eigenvalues have the floor `FLOOR`.

    Args:
        groups: number of groups, a divisor of d.
        order: order of the features, (..., d); consecutive ones form a group. The output has the original order.
        epsilon: see `Config`.
    """
    x = z.double()
    x = grouped(shuffled(x - x.mean(dim=-1, keepdim=True), order), groups)
    sigma = (1 - epsilon) * (x @ x.mT) / (x.shape[-1] - 1)
    sigma = sigma + epsilon * torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    white = ungrouped(matrix_function(sigma, power(0.5)) @ x)
    return shuffled(white, None if order is None else order.argsort(dim=-1)).to(at_least_float32(z[:0]).dtype)


class CWRGP(Method):
    """Backbone and projector under the distance of outputs with channel whitening in random groups."""

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.config = config
        self.seed = setup.seed

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute the mean of 2 - 2 cos over pairs of views and random divisions, for the batch of all processes."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            z = gather(z, dim=1)
            samples, features = (send(order, z.device) for order in self.orders(*z.shape))
            white = channel_whiten(z[:, samples], self.config.groups, features, epsilon=self.config.epsilon)
            return {"distance": pairs_mean(white, cosine_distance)}

    def orders(self, views: int, m: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the random divisions of this step on the CPU, equal in all processes.

        Returns:
            Numbers of the samples, (iterations, sub-batches, sub_batch), and numbers of the features for each view and
            sub-batch, (views, iterations, sub-batches, d).
        """
        draws = torch.Generator().manual_seed(torch_seed(self.seed, "cw-rgp", self.step))
        samples, features = [], []
        for _ in range(self.config.iterations):
            samples.append(torch.randperm(m, generator=draws).view(-1, self.config.sub_batch))
            own = [torch.randperm(d, generator=draws) for _ in range(views * len(samples[-1]))]
            features.append(torch.stack(own).view(views, -1, d))
        return torch.stack(samples), torch.stack(features, dim=1)

    def transform(self, z: torch.Tensor) -> torch.Tensor:
        """Return the whitened output (m, d) of an embedding (m, d), with sub-batches and groups in order.

        The last sub-batch may be smaller.
        """
        parts = z.split(self.config.sub_batch)
        return torch.cat([channel_whiten(part, self.config.groups, epsilon=self.config.epsilon) for part in parts])


def build(config: Config, setup: Setup) -> CWRGP:
    """Build the method of a run.

    Raises:
        ValueError: the batch holds one image or is not a multiple of the sub-batch, the groups do not divide the
            embedding, or they have too few features for the sub-batches.
    """
    d = setup.projector.out
    require_batch(setup.batch_size, d)
    require_parts(setup.batch_size, config.sub_batch)
    require_groups(config.groups, d)
    rank = d // config.groups - (config.groups == 1)  # centering is over all features, not over those of a group
    if config.sub_batch > rank and config.epsilon == 0:
        raise ValueError(
            f"sub_batch={config.sub_batch}: the covariance of these samples over {d // config.groups} features "
            f"(projector.out={d}, groups={config.groups}) is singular; use at most {rank}, fewer groups, a larger "
            "projector.out, or epsilon above 0"
        )
    return CWRGP(config, setup)
