"""IterNorm alone: INTL without its trace loss (paper, Sections 3.3 and 3.4, Figure 3)."""

import dataclasses
from collections.abc import Sequence

import torch

from pretrain.methods import Setup, intl
from pretrain.methods.intl import INTL, require_samples
from pretrain.whiten.hard_whitening import require_batch

DISPLAY = "IterNorm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings, as INTL's of the same names; the defaults are its."""

    name: str = "iternorm"
    iterations: int = 4
    axis: str = "channel"
    variant: str = "coupled"

    def __post_init__(self) -> None:
        self.intl()

    def intl(self) -> intl.Config:
        """INTL's settings for this.

        Raises:
            ValueError: one of them is not possible.
        """
        return intl.Config(iterations=self.iterations, axis=self.axis, variant=self.variant, beta=0.0)


class IterNorm(INTL):
    """Backbone, projector and the alignment of whitened outputs."""

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Mean over the views i > 0 of 2 - 2 cos(whitened_i, whitened_0), over the batch of all processes."""
        return {"alignment": super().forward(views)["alignment"]}


def build(config: Config, setup: Setup) -> IterNorm:
    """The method of a run.

    Raises:
        ValueError: the batch holds one image, or `axis="batch"` has more features than samples.
    """
    require_batch(setup.batch_size, setup.projector.out)
    require_samples(config.axis, batch_size=setup.batch_size, embedding_dim=setup.projector.out)
    return IterNorm(config.intl(), setup)
