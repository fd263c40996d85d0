"""INTL: IterNorm with trace loss (paper, Section 4; the authors' `methods/intl.py` and `methods/intl_m.py`)."""

import copy
import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from intl_bench.core.distributed import gather
from pretrain.iternorm import AXES, VARIANTS, Whitening, center, covariance, whiten
from pretrain.methods import Encoder
from pretrain.schedules import cosine_momentum

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
    """Sum over the whitened axis of (1 - variance)^2 (Eqn. 6): (n,) -> scalar."""
    return (1 - variance).square().sum()


class INTLLoss(nn.Module):
    """IterNorm with trace loss over the embeddings of all processes.

    `loss([z_view0, z_view1, ...])` with embeddings (m, d) of this process returns {"alignment", "trace"}, two scalars
    whose sum is the mean over the views i > 0 of [ 2 - 2 cos(whitened_i, whitened_0) + beta (trace_i + trace_0) ].
    With `momentum_target` view 0 is the target (pass it without gradient) and has no trace term.

    Channel whitening needs only Gram matrices (m x m): with C_ab = X_a X_b^T the products of whitened samples are the
    diagonal of Phi_a C_ab Phi_b, so the whitened (m, d) output is never formed.

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
        axis = self.config.axis
        with torch.autocast(embeddings[0].device.type, enabled=False):
            # One gather for all views: (views, m_local, d) -> (views, m, d).
            x = [center(z, axis) for z in gather(torch.stack(tuple(embeddings)), dim=1)]
            m, d = x[0].shape
            beta = default_beta(m, d, axis) if self.config.beta is None else self.config.beta
            white = [
                whiten(covariance(v, axis), iterations=self.config.iterations, variant=self.config.variant) for v in x
            ]
            cosines = _channel_cosines(x, white) if axis == "channel" else _batch_cosines(x, white)
            alignment = torch.stack([2 - 2 * cosine.mean() for cosine in cosines]).mean()
            traces = torch.stack([trace_loss(w.variance) for w in white])
            trace = traces[1:].mean() if self.config.momentum_target else traces[1:].mean() + traces[0]
            return {"alignment": alignment, "trace": beta * trace}


def _channel_cosines(x: Sequence[torch.Tensor], white: Sequence[Whitening]) -> list[torch.Tensor]:
    """Cosines of the samples' whitened views i and 0, (m,) each; rows of Phi X have squared norm (d - 1) variance."""
    d = x[0].shape[1]
    cosines = []
    for view, w in zip(x[1:], white[1:], strict=True):
        products = ((w.matrix @ (view @ x[0].T)) * white[0].matrix.T).sum(dim=1)
        norms = (d - 1) * (w.variance * white[0].variance).clamp_min(1e-30).sqrt()
        cosines.append(products / norms)
    return cosines


def _batch_cosines(x: Sequence[torch.Tensor], white: Sequence[Whitening]) -> list[torch.Tensor]:
    outputs = [F.normalize(view @ w.matrix, dim=1) for view, w in zip(x, white, strict=True)]
    return [(output * outputs[0]).sum(dim=1) for output in outputs[1:]]


class INTL(nn.Module):
    """Backbone, projector and `INTLLoss`; with `momentum_target` also their moving averages, which see view 0."""

    def __init__(self, config: Config, make_encoder: Encoder) -> None:
        super().__init__()
        self.backbone, self.projector = make_encoder()
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

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Moves the target towards the trained network: target <- m target + (1 - m) online."""
        if self.target is None:
            return
        momentum = cosine_momentum(progress, self.base_momentum)
        online: list[torch.Tensor] = [*self.backbone.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(list(self.target.parameters()), online, 1 - momentum)


def build(config: Config, make_encoder: Encoder, *, batch_size: int, embedding_dim: int) -> INTL:
    """The method for a global batch of `batch_size` and embeddings of `embedding_dim`.

    Raises:
        ValueError: these give the trace loss no positive weight, or `axis="batch"` has more features than samples.
    """
    if config.beta is None:
        default_beta(batch_size, embedding_dim, config.axis)
    if config.axis == "batch" and embedding_dim > batch_size - 1:
        raise ValueError(
            f"axis=batch whitens {embedding_dim} features over {batch_size} samples: the covariance is singular; "
            "use a batch larger than projector.out, or axis=channel"
        )
    return INTL(config, make_encoder)
