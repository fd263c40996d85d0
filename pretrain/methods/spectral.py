"""Spectral transformation: any function g of the eigenvalues of an embedding (paper, Section 3.2).

The power functions g(lambda) = lambda^-p are those of Figure 2. p = 0.5 is whitening, p = 0 is the identity.
"""

import dataclasses
from collections.abc import Sequence

import torch

from intl_bench.core.distributed import gather
from intl_bench.core.ranges import Checked, Finite, Fraction
from pretrain.iternorm import AXES, Axis
from pretrain.methods import Method, Setup
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
class Config(Checked):
    """Settings; the defaults are whitening as in the text of the paper.

    Attributes:
        name: of the method.
        power: p of g(lambda) = lambda^-p, any finite number.
        axis: "batch" transforms the d features over the samples, "channel" the m samples over the features.
        epsilon: floor of the eigenvalues, relative to the largest one.
    """

    name: str = "spectral"
    power: Finite = 0.5
    axis: Axis = "batch"
    epsilon: Fraction = FLOOR


def spectral_transform(
    z: torch.Tensor, g: Function | float, *, axis: str = "batch", epsilon: float = FLOOR
) -> torch.Tensor:
    """Transform the spectrum of an embedding: (..., m, d) -> (..., m, d), float32 or better.

    The covariance of the result has the eigenvalues lambda g(lambda)^2; for a power these are lambda^(1 - 2p).

    X is centered over the samples and n = m - 1 for "batch"; over the features and n = d - 1 for "channel". The result
    is X g(X^T X / n) for "batch" and g(X X^T / n) X for "channel". These expressions are equal for every X, so the
    smaller matrix is used. Eigenvalues and matrices are float64.

    Args:
        z: embedding of the whole batch, or a stack of embeddings.
        g: function of eigenvalues, or the power p of lambda^-p.
        axis, epsilon: see `Config`.

    Raises:
        ValueError: the axis is unknown.
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


class Spectral(Method):
    """Backbone and projector under the alignment of transformed outputs."""

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone, self.projector = setup.make_encoder()
        self.config = config

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute the mean over the views i > 0 of 2 - 2 cos(transformed_i, transformed_0), for the whole batch."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            white = self.transform(gather(z, dim=1))
            return {"alignment": cosine_distance(white[1:], white[:1])}

    def transform(self, z: torch.Tensor) -> torch.Tensor:
        """Return the transformed output (..., m, d) of an embedding (..., m, d)."""
        return spectral_transform(z, self.config.power, axis=self.config.axis, epsilon=self.config.epsilon)


def require_full_rank(config: Config, setup: Setup) -> None:
    """Raise ValueError if the power is positive and the covariance of every embedding is singular."""
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
    # The bias of the last layer adds one dimension to the samples.
    require_width(setup.projector, embedding_dim if config.axis == "batch" else batch_size - 1)


def build(config: Config, setup: Setup) -> Spectral:
    """Build the method of a run.

    Raises:
        ValueError: there are fewer than two images or features, or the covariance is singular and the power positive.
    """
    require_batch(setup.batch_size, setup.projector.out)
    require_full_rank(config, setup)
    return Spectral(config, setup)
