"""INTL: IterNorm with trace loss (paper, Section 4; the authors' `methods/intl.py` and `methods/intl_m.py`)."""

import copy
import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from intl_bench.core.distributed import gather, world_size
from pretrain.iternorm import AXES, VARIANTS, Whitening, center, covariance, iter_norm, require_embedding, whiten
from pretrain.methods import Setup
from pretrain.methods._shared import move_average
from pretrain.schedules import cosine_momentum
from pretrain.whiten.gram import gram_products
from pretrain.whiten.hard_whitening import require_batch

DISPLAY = "INTL"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """INTL's settings; the defaults are the authors'."""

    name: str = "intl"
    iterations: int = 4
    axis: str = "channel"
    beta: float | None = None
    variant: str = "coupled"
    momentum_target: bool = False
    base_momentum: float = 0.996

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise ValueError(f"axis={self.axis!r}: expected one of {AXES}")
        if self.variant not in VARIANTS:
            raise ValueError(f"variant={self.variant!r}: expected one of {VARIANTS}")
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}: IterNorm needs at least one")
        if not 0 <= self.base_momentum <= 1:
            raise ValueError(f"base_momentum={self.base_momentum}: expected 0 to 1")


def default_beta(m: int, d: int, axis: str) -> float:
    """Weight of the trace loss, 0.01 (log2 n - 3), n = the global batch m ("channel") or d ("batch").

    Source: the authors' `methods/base.py`, `cal_trade_off`.

    Raises:
        ValueError: it would be zero or negative, which rewards collapse instead of preventing it.
    """
    n, what = (m, "global batch size") if axis == "channel" else (d, "embedding dimension")
    beta = 0.01 * (math.log2(n) - 3)
    if beta <= 0:
        raise ValueError(
            f"{what} {n} gives the trace loss the weight 0.01 (log2 {n} - 3) = {beta:.3g}, which does not prevent "
            "collapse; use more than 8, or set beta by hand"
        )
    return beta


def trace_loss(variance: torch.Tensor) -> torch.Tensor:
    """Sum over the whitened axis of (1 - variance)^2 (Eqn. 6): (..., n) -> (...)."""
    return (1 - variance).square().sum(dim=-1)


class INTLLoss(nn.Module):
    """IterNorm with trace loss over the embeddings of all processes.

    `loss([z_view0, z_view1, ...])` with embeddings (m, d) of this process returns {"alignment", "trace"}, two scalars
    whose sum is the mean over the views i > 0 of [ 2 - 2 cos(whitened_i, whitened_0) + beta (trace_i + trace_0) ].
    With `momentum_target` view 0 is the target (pass it without gradient) and has no trace term.

    Channel whitening needs only the samples' products (m x m): with C_a = X_a X_0^T those of whitened samples are the
    diagonal of Phi_a C_a Phi_0, so the whitened (m, d) output is never formed.

    Args:
        iterations, axis, variant: see `pretrain.iternorm.iter_norm`.
        beta: weight of the trace loss; None = `default_beta` of the gathered batch.
        momentum_target: view 0 comes from a momentum network.
    """

    def __init__(
        self,
        *,
        iterations: int = 4,
        axis: str = "channel",
        beta: float | None = None,
        variant: str = "coupled",
        momentum_target: bool = False,
    ) -> None:
        super().__init__()
        self.config = Config(
            iterations=iterations, axis=axis, beta=beta, variant=variant, momentum_target=momentum_target
        )

    def forward(self, embeddings: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        if len(embeddings) < 2:
            raise ValueError(f"expected the embeddings of at least two views, got {len(embeddings)}")
        if len({z.shape for z in embeddings}) > 1:
            raise ValueError(f"expected views of one shape, got {', '.join(str(tuple(z.shape)) for z in embeddings)}")
        shape = (len(embeddings[0]) * world_size(), *embeddings[0].shape[1:])
        require_embedding(shape)
        m, d = shape[0], shape[1]
        beta = default_beta(m, d, self.config.axis) if self.config.beta is None else self.config.beta
        with torch.autocast(embeddings[0].device.type, enabled=False):
            variance, cosine = (self._channel if self.config.axis == "channel" else self._batch)(embeddings)
            trace = trace_loss(variance)
            trace = trace[1:].mean() if self.config.momentum_target else trace[1:].mean() + trace[0]
            return {"alignment": 2 - 2 * cosine.mean(), "trace": beta * trace}

    def _whiten(self, sigma: torch.Tensor) -> Whitening:
        return whiten(sigma, iterations=self.config.iterations, variant=self.config.variant)

    def _channel(self, embeddings: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Variances of the whitened samples, (views, m), and cosines of those of views i > 0 and 0, (views - 1, m).

        A whitened sample has the squared norm (d - 1) variance.
        """
        degrees = embeddings[0].shape[1] - 1
        gram, cross = gram_products(embeddings)
        white = self._whiten(gram / degrees)
        products = ((white.matrix[1:] @ (cross / degrees)) * white.matrix[0].T).sum(dim=-1)
        return white.variance, products / (white.variance[1:] * white.variance[0]).clamp_min(1e-30).sqrt()

    def _batch(self, embeddings: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Variances of the whitened features, (views, d), and the samples' cosines, (views - 1, m)."""
        # One gather for all views: (views, m_local, d) -> (views, m, d).
        x = torch.stack([center(z, "batch") for z in gather(torch.stack(tuple(embeddings)), dim=1)])
        white = self._whiten(covariance(x, "batch"))
        output = F.normalize(x @ white.matrix, dim=-1)
        return white.variance, (output[1:] * output[0]).sum(dim=-1)


class INTL(nn.Module):
    """Backbone, projector and `INTLLoss`; with `momentum_target` also their moving averages, which see view 0."""

    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.loss = INTLLoss(
            iterations=config.iterations,
            axis=config.axis,
            beta=config.beta,
            variant=config.variant,
            momentum_target=config.momentum_target,
        )
        self.base_momentum = config.base_momentum
        self.target: nn.Module | None = None
        if config.momentum_target:
            self.target = copy.deepcopy(nn.Sequential(self.backbone, self.projector)).requires_grad_(False)
        self.embedding: torch.Tensor | None = None

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.target is None:
            z = [self.projector(self.backbone(view)) for view in views]
        else:
            with torch.no_grad():
                z = [self.target(views[0])]
            z += [self.projector(self.backbone(view)) for view in views[1:]]
        self.embedding = z[0 if self.target is None else 1].detach()
        return self.loss(z)

    def transform(self, z: torch.Tensor) -> torch.Tensor:
        """IterNorm's output (m, d) of an embedding (m, d)."""
        config = self.loss.config
        return iter_norm(z, iterations=config.iterations, axis=config.axis, variant=config.variant)

    def after_step(self, progress: float) -> None:
        """Moves the target toward the trained network."""
        if self.target is not None:
            online = [*self.backbone.parameters(), *self.projector.parameters()]
            move_average(self.target.parameters(), online, cosine_momentum(progress, self.base_momentum))


def require_samples(axis: str, *, batch_size: int, embedding_dim: int) -> None:
    """Raises ValueError where `axis="batch"` would whiten more features than the batch has degrees of freedom."""
    if axis == "batch" and embedding_dim > batch_size - 1:
        raise ValueError(
            f"axis=batch whitens {embedding_dim} features over {batch_size} samples: the covariance is singular; "
            "use a batch larger than projector.out, or axis=channel"
        )


def build(config: Config, setup: Setup) -> INTL:
    """The method of a run.

    Raises:
        ValueError: fewer than two images or features, batch and embedding give the trace loss no positive weight, or
            `axis="batch"` has more features than samples.
    """
    require_batch(setup.batch_size, setup.projector.out)
    if config.beta is None:
        default_beta(setup.batch_size, setup.projector.out, config.axis)
    require_samples(config.axis, batch_size=setup.batch_size, embedding_dim=setup.projector.out)
    return INTL(config, setup)
