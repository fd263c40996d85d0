"""W-MSE: distances of embeddings whitened by Cholesky decomposition (Ermolov et al., ICML 2021)."""

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
from pretrain.whiten.hard_whitening import cholesky_whiten, cosine_distance, require_batch, require_parts, require_width

DISPLAY = "W-MSE"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings; the defaults are those of the authors for CIFAR (github.com/htdt/self-supervised).

    Attributes:
        name: of the method.
        sub_batch: number of samples that are whitened together. Each step divides the batch into such parts at random.
        iterations: number of random divisions over which the loss is averaged.
        epsilon: shrinkage of the covariance to (1 - epsilon) Sigma + epsilon I.
    """

    name: str = "wmse"
    sub_batch: Count = 128
    iterations: Iterations = 1
    epsilon: Fraction = 0.0


def w_mse(z: torch.Tensor, order: torch.Tensor, *, epsilon: float = 0.0) -> torch.Tensor:
    """Compute the mean of |v_i / |v_i| - v_j / |v_j||^2 over all pairs of views, with the whitened samples v.

    Args:
        z: embeddings of the whole batch, (views, m, d).
        order: numbers of the samples in each sub-batch, (..., sub-batches, sub_batch), equal for all views. The loss is
            averaged over the leading dimensions.
        epsilon: see `Config`.
    """
    return pairs_mean(whiten(z[:, order], epsilon=epsilon), cosine_distance)


def whiten(z: torch.Tensor, *, epsilon: float = 0.0) -> torch.Tensor:
    """Whiten the features over the m samples: (..., m, d) -> (..., m, d), float32 or better."""
    x = z.double()
    return cholesky_whiten(x - x.mean(dim=-2, keepdim=True), epsilon=epsilon).to(at_least_float32(z[:0]).dtype)


class WMSE(Method):
    """Backbone and projector under `w_mse`."""

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.config = config
        self.seed = setup.seed

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute `w_mse` for the batch of all processes, as a mean over random divisions of the batch."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            z = gather(z, dim=1)
            orders = send(self.orders(z.shape[1]), z.device)
            return {"distance": w_mse(z, orders, epsilon=self.config.epsilon)}

    def orders(self, m: int) -> torch.Tensor:
        """Draw the random divisions of m samples in this step on the CPU, equal in all processes.

        Returns:
            Numbers of the samples, (iterations, sub-batches, sub_batch).
        """
        draws = torch.Generator().manual_seed(torch_seed(self.seed, "w-mse", self.step))
        drawn = [torch.randperm(m, generator=draws) for _ in range(self.config.iterations)]
        return torch.stack(drawn).unflatten(-1, (-1, self.config.sub_batch))

    def transform(self, z: torch.Tensor) -> torch.Tensor:
        """Return the whitened output (m, d) of an embedding (m, d), with all samples together."""
        return whiten(z, epsilon=self.config.epsilon)


def build(config: Config, setup: Setup) -> WMSE:
    """Build the method of a run.

    Raises:
        ValueError: the batch holds one image or is not a multiple of the sub-batch, or the covariance of a sub-batch is
            singular.
    """
    d = setup.projector.out
    require_batch(setup.batch_size, d)
    require_parts(setup.batch_size, config.sub_batch)
    if d > config.sub_batch - 1 and config.epsilon == 0:
        raise ValueError(
            f"sub_batch={config.sub_batch}: the covariance of {d} features over so few samples is singular; use more "
            "samples (usual are twice as many as features), a smaller projector.out, or epsilon above 0"
        )
    if config.epsilon == 0:
        require_width(setup.projector, d)
    return WMSE(config, setup)
