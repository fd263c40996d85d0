"""Spectral transformation: an embedding's eigenvalues mapped by any function g (paper, Section 3.2).

The power functions g(lambda) = lambda^-p are those of Figure 2; p = 0.5 is whitening, p = 0 changes nothing.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import nn

from intl_bench.core.distributed import gather
from pretrain.iternorm import AXES
from pretrain.methods import Setup
from pretrain.precision import at_least_float32
from pretrain.whiten.hard_whitening import (
    FLOOR,
    Function,
    cosine_distance,
    matrix_function,
    power,
    require_batch,
    require_width,
)

DISPLAY = "Spectral"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are whitening as in the paper's text.

    Attributes:
        power: p of g(lambda) = lambda^-p, any number.
        axis: "batch" transforms the d features over the samples, "channel" the m samples over the features.
        epsilon: eigenvalues below this share of the largest count as that.
    """

    name: str = "spectral"
    power: float = 0.5
    axis: str = "batch"
    epsilon: float = FLOOR

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise ValueError(f"axis={self.axis!r}: expected one of {AXES}")
        if not math.isfinite(self.power):
            raise ValueError(f"power={self.power}: expected a finite number")
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon={self.epsilon}: expected 0 to below 1")


def spectral_transform(
    z: torch.Tensor, g: Function | float, *, axis: str = "batch", epsilon: float = FLOOR
) -> torch.Tensor:
    """The spectral transformation of an embedding: (..., m, d) -> (..., m, d), float32 or better.

    Its covariance has the eigenvalues lambda g(lambda)^2, lambda^(1 - 2p) for a power.

    With X centered over `axis` and n one less than what it is centered over, X g(X^T X / n) for "batch" and
    g(X X^T / n) X for "channel". The two expressions are equal for every X, so the smaller of both matrices is taken.
    Eigenvalues and matrices are float64.

    Args:
        z: embedding of the whole batch, or a stack of several.
        g: function of eigenvalues, or the power p of lambda^-p.
        axis, epsilon: see `Config`.

    Raises:
        ValueError: an unknown axis.
    """
    if axis not in AXES:
        raise ValueError(f"axis={axis!r}: expected one of {AXES}")
    function = g if callable(g) else power(g)
    with torch.autocast(z.device.type, enabled=False):
        x = z.double()
        centered_over = -1 if axis == "channel" else -2
        x = x - x.mean(dim=centered_over, keepdim=True)
        degrees = x.shape[centered_over] - 1
        if x.shape[-2] < x.shape[-1]:
            output = matrix_function(x @ x.mT / degrees, function, epsilon=epsilon) @ x
        else:
            output = x @ matrix_function(x.mT @ x / degrees, function, epsilon=epsilon)
        return output.to(at_least_float32(z[:0]).dtype)


class Spectral(nn.Module):
    """Backbone, projector and the alignment of spectrally transformed outputs."""

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.config = config
        self.embedding: torch.Tensor | None = None

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Mean over the views i > 0 of 2 - 2 cos(transformed_i, transformed_0), over the batch of all processes."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            white = self.transform(gather(z, dim=1))
            return {"alignment": cosine_distance(white[1:], white[:1])}

    def transform(self, z: torch.Tensor) -> torch.Tensor:
        """The transformed output (m, d) of an embedding (m, d), or of several."""
        return spectral_transform(z, self.config.power, axis=self.config.axis, epsilon=self.config.epsilon)

    def after_step(self, progress: float) -> None:
        """Nothing follows a step."""


def require_full_rank(config: Config, setup: Setup) -> None:
    """Raises ValueError where the power is positive and the covariance singular whatever the embedding."""
    if config.power <= 0:
        return
    batch_size, embedding_dim, p = setup.batch_size, setup.projector.out, f"power={config.power:g}"
    if config.axis == "batch" and embedding_dim > batch_size - 1:
        raise ValueError(
            f"{p} with axis=batch: the covariance of {embedding_dim} features over {batch_size} samples is singular; "
            f"use a batch_size above projector.out={embedding_dim}, or axis=channel"
        )
    if config.axis == "channel" and batch_size > embedding_dim - 1:
        raise ValueError(
            f"{p} with axis=channel: the covariance of {batch_size} samples over {embedding_dim} features is singular; "
            f"use a projector.out above batch_size={batch_size}, or axis=batch"
        )
    # The last layer's offset is one direction more of the samples'.
    require_width(setup.projector, embedding_dim if config.axis == "batch" else batch_size - 1)


def build(config: Config, setup: Setup) -> Spectral:
    """The method of a run.

    Raises:
        ValueError: the batch holds one image, or the covariance is singular and the power positive.
    """
    require_batch(setup.batch_size, setup.projector.out)
    require_full_rank(config, setup)
    return Spectral(config, setup)
