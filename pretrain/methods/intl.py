"""INTL: IterNorm with trace loss (paper, Section 4; the authors' `methods/intl.py` and `methods/intl_m.py`)."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from intl_bench.core.distributed import gather, world_size
from intl_bench.core.ranges import Checked, Iterations, NonNegative, Share
from pretrain.iternorm import Axis, Variant, Whitening, center, covariance, iter_norm, require_embedding, whiten
from pretrain.methods import Method, Setup
from pretrain.methods._shared import momentum_copy, move_average
from pretrain.schedules import cosine_momentum
from pretrain.whiten.gram import gram_products
from pretrain.whiten.hard_whitening import require_batch

__all__ = ["INTL", "Config", "INTLLoss", "build", "default_beta", "trace_loss"]
DISPLAY = "INTL"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings; the defaults are those of the authors.

    Attributes:
        name: of the method.
        iterations: T, the number of Newton's iterations.
        axis: "channel" whitens the samples of a batch over the features, "batch" the features over the samples.
        variant: "coupled", the stable form of Newton's iteration, or "paper", its form in the text of the paper.
        beta: weight of the trace loss; None takes 0.01 (log2 n - 3), where n is the batch size ("channel") or the
            embedding's dimension ("batch").
        momentum_target: view 0 passes a momentum encoder and is the target of all other views.
        base_momentum: momentum of this encoder at the start; it rises to 1 along a cosine.
    """

    name: str = "intl"
    iterations: Iterations = 4
    axis: Axis = "channel"
    beta: NonNegative | None = None
    variant: Variant = "coupled"
    momentum_target: bool = False
    base_momentum: Share = 0.996


def default_beta(m: int, d: int, axis: str) -> float:
    """Return the weight of the trace loss: 0.01 (log2 n - 3) with n = m ("channel") or n = d ("batch").

    Source: the authors' `methods/base.py`, `cal_trade_off`.

    Args:
        m: number of samples of the batch of all processes.
        d: dimension of the embedding.
        axis: "channel" or "batch".

    Raises:
        ValueError: the weight is not positive; a negative weight rewards collapse.
    """
    n, what = (m, "global batch size") if axis == "channel" else (d, "embedding dimension")
    beta = 0.01 * (math.log2(n) - 3)
    if beta <= 0:
        raise ValueError(
            f"{what} {n}: the weight of the trace loss is 0.01 (log2 {n} - 3) = {beta:.3g}, which does not prevent "
            "collapse; use more than 8, or set beta by hand"
        )
    return beta


def trace_loss(variance: torch.Tensor) -> torch.Tensor:
    """Compute the sum of (1 - variance)^2 over the whitened axis (Eqn. 6): (..., n) -> (...)."""
    return (1 - variance).square().sum(dim=-1)


class INTLLoss(nn.Module):
    """IterNorm with trace loss over the embeddings of all processes.

    `loss([z_view0, z_view1, ...])` with embeddings (m, d) of this process returns two scalars, {"alignment", "trace"}.
    Their sum is the mean over the views i > 0 of [ 2 - 2 cos(whitened_i, whitened_0) + beta (trace_i + trace_0) ].
    With `momentum_target`, view 0 is the target: it has no trace term, and the caller passes it without gradient.

        loss = INTLLoss()
        sum(loss([z1, z2]).values()).backward()

    Channel whitening needs only inner products of samples (m x m). With C_a = X_a X_0^T, the inner products of whitened
    samples are the diagonal of Phi_a C_a Phi_0, so the whitened output (m, d) is not computed.

    Args:
        iterations, axis, variant: see `pretrain.iternorm.iter_norm`.
        beta: weight of the trace loss; None takes `default_beta` of the batch of all processes.
        momentum_target: view 0 comes from a momentum encoder.

    Raises:
        TypeError: the views are separate arguments, as in `loss(z1, z2)`, or no tensors of floating-point numbers.
        ValueError: a setting is impossible; there are fewer than two views; or their shapes differ.
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

    def forward(self, embeddings: Sequence[torch.Tensor], *more: object) -> dict[str, torch.Tensor]:
        _require_sequence(embeddings, more)
        if len(embeddings) < 2:
            raise ValueError(f"embeddings: found {len(embeddings)} views; expected at least 2")
        if len({z.shape for z in embeddings}) > 1:
            raise ValueError(
                f"embeddings: found shapes {', '.join(str(tuple(z.shape)) for z in embeddings)}; expected equal shapes"
            )
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
        """Compute statistics of whitened samples; the squared norm of a whitened sample is (d - 1) variance.

        Returns:
            Variances of the samples, (views, m), and cosines between views i > 0 and view 0, (views - 1, m).
        """
        degrees = embeddings[0].shape[1] - 1
        gram, cross = gram_products(embeddings)
        white = self._whiten(gram / degrees)
        products = ((white.matrix[1:] @ (cross / degrees)) * white.matrix[0].T).sum(dim=-1)
        return white.variance, products / (white.variance[1:] * white.variance[0]).clamp_min(1e-30).sqrt()

    def _batch(self, embeddings: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute statistics of whitened features.

        Returns:
            Variances of the features, (views, d), and cosines of samples between views i > 0 and 0, (views - 1, m).
        """
        # One gather for all views: (views, m_local, d) -> (views, m, d).
        x = torch.stack([center(z, "batch") for z in gather(torch.stack(tuple(embeddings)), dim=1)])
        white = self._whiten(covariance(x, "batch"))
        output = F.normalize(x @ white.matrix, dim=-1)
        return white.variance, (output[1:] * output[0]).sum(dim=-1)


def _require_sequence(embeddings: object, more: tuple[object, ...]) -> None:
    """Raise TypeError for the calls `loss(z1, z2)`, `loss(z)`, and for views that are no tensors of floats."""
    if more or (isinstance(embeddings, torch.Tensor) and embeddings.ndim < 3):
        given = ", ".join(f"z{i}" for i in range(1, len(more) + 2))
        raise TypeError(f"loss({given}): found separate views; expected one list of at least two; write loss([z1, z2])")
    if isinstance(embeddings, torch.Tensor):  # (views, m, d)
        embeddings = [embeddings]
    if not isinstance(embeddings, Sequence):
        raise TypeError(f"embeddings: found {type(embeddings).__name__}; expected a list of at least two views")
    for i, view in enumerate(embeddings):
        if not isinstance(view, torch.Tensor) or not view.is_floating_point():
            found = f"a tensor of {view.dtype}" if isinstance(view, torch.Tensor) else type(view).__name__
            raise TypeError(f"embeddings[{i}]: found {found}; expected a tensor of floating-point numbers, (m, d)")


class INTL(Method):
    """Backbone and projector under `INTLLoss`; with `momentum_target`, view 0 passes the momentum encoder instead."""

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
        if config.momentum_target:
            self.momentum_encoder = momentum_copy(self.backbone, self.projector)

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute `INTLLoss` of the views."""
        if self.momentum_encoder is None:
            z = [self.projector(self.backbone(view)) for view in views]
        else:
            with torch.no_grad():
                z = [self.momentum_encoder(views[0])]
            z += [self.projector(self.backbone(view)) for view in views[1:]]
        self.embedding = z[0 if self.momentum_encoder is None else 1].detach()
        return self.loss(z)

    def transform(self, z: torch.Tensor) -> torch.Tensor:
        """Return the output (m, d) of IterNorm for an embedding (m, d)."""
        config = self.loss.config
        return iter_norm(z, iterations=config.iterations, axis=config.axis, variant=config.variant)

    def after_step(self, progress: float) -> None:
        """Update the momentum encoder."""
        if self.momentum_encoder is not None:
            momentum = cosine_momentum(progress, self.base_momentum)
            move_average(self.momentum_encoder, [self.backbone, self.projector], momentum)


def require_samples(axis: str, *, batch_size: int, embedding_dim: int) -> None:
    """Raise ValueError if `axis` is "batch" and there are more features than degrees of freedom of the batch."""
    if axis == "batch" and embedding_dim > batch_size - 1:
        raise ValueError(
            f"axis=batch: the covariance of {embedding_dim} features over {batch_size} samples is singular; "
            "use a batch_size above projector.out, or axis=channel"
        )


def build(config: Config, setup: Setup) -> INTL:
    """Build the method of a run.

    Raises:
        ValueError: there are fewer than two images or features, the default weight of the trace loss is not positive,
            or `axis` is "batch" and there are not more samples than features.
    """
    require_batch(setup.batch_size, setup.projector.out)
    if config.beta is None:
        default_beta(setup.batch_size, setup.projector.out, config.axis)
    require_samples(config.axis, batch_size=setup.batch_size, embedding_dim=setup.projector.out)
    return INTL(config, setup)
