"""W-MSE: distances of embeddings that Cholesky's decomposition whitened (Ermolov et al., ICML 2021)."""

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
from pretrain.whiten.hard_whitening import cholesky_whiten, cosine_distance, require_batch, require_parts, require_width

DISPLAY = "W-MSE"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the authors' for CIFAR (github.com/htdt/self-supervised).

    Attributes:
        sub_batch: samples that are whitened together; the batch is divided into such parts at random, in each step.
        iterations: how many random divisions the loss is averaged over.
        epsilon: the covariance is shrunk to (1 - epsilon) Sigma + epsilon I.
    """

    name: str = "wmse"
    sub_batch: int = 128
    iterations: int = 1
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if min(self.sub_batch, self.iterations) < 1:
            raise ValueError(f"sub_batch={self.sub_batch}, iterations={self.iterations}: both must be at least 1")
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon={self.epsilon}: expected 0 to below 1")


def w_mse(z: torch.Tensor, order: torch.Tensor, *, epsilon: float = 0.0) -> torch.Tensor:
    """Mean over all pairs of views of |v_i / |v_i| - v_j / |v_j||^2, v the whitened samples.

    Args:
        z: embeddings of the whole batch, (views, m, d).
        order: the samples' numbers, (sub-batches, samples of each), the same in all views; of several divisions
            (..., sub-batches, samples of each), over which the loss is averaged.
        epsilon: see `Config`.
    """
    return pairs_mean(whiten(z[:, order], epsilon=epsilon), cosine_distance)


def whiten(z: torch.Tensor, *, epsilon: float = 0.0) -> torch.Tensor:
    """Whitened features of samples that belong together: (..., m, d) -> (..., m, d), float32 or better."""
    x = z.double()
    return cholesky_whiten(x - x.mean(dim=-2, keepdim=True), epsilon=epsilon).to(at_least_float32(z[:0]).dtype)


class WMSE(nn.Module):
    """Backbone, projector and `w_mse`."""

    step: int = 0

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.config = config
        self.seed = setup.seed
        self.embedding: torch.Tensor | None = None

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """`w_mse` of all processes' samples, averaged over random divisions of the batch."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            z = gather(z, dim=1)
            orders = send(self.orders(z.shape[1]), z.device)
            return {"distance": w_mse(z, orders, epsilon=self.config.epsilon)}

    def orders(self, m: int) -> torch.Tensor:
        """This step's random divisions of m samples, (iterations, sub-batches, sub_batch), on the host; the same on all
        processes."""
        draws = torch.Generator().manual_seed(torch_seed(self.seed, "w-mse", self.step))
        drawn = [torch.randperm(m, generator=draws) for _ in range(self.config.iterations)]
        return torch.stack(drawn).unflatten(-1, (-1, self.config.sub_batch))

    def transform(self, z: torch.Tensor) -> torch.Tensor:
        """The whitened output (m, d) of an embedding (m, d), all samples together."""
        return whiten(z, epsilon=self.config.epsilon)

    def after_step(self, progress: float) -> None:
        """Nothing follows a step."""


def build(config: Config, setup: Setup) -> WMSE:
    """The method of a run.

    Raises:
        ValueError: the batch holds one image or cannot be divided, or a sub-batch has a singular covariance.
    """
    d = setup.projector.out
    require_batch(setup.batch_size, d)
    require_parts(setup.batch_size, config.sub_batch)
    if d > config.sub_batch - 1 and config.epsilon == 0:
        raise ValueError(
            f"sub_batch={config.sub_batch}: the covariance of {d} features over so few samples is singular; use more "
            f"(twice as many are usual), a smaller projector.out, or epsilon above 0"
        )
    if config.epsilon == 0:
        require_width(setup.projector, d)
    return WMSE(config, setup)
