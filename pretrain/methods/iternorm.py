"""IterNorm alone: INTL without its trace loss (paper, Sections 3.3 and 3.4, Figure 3)."""

import dataclasses
from collections.abc import Sequence

import torch

from intl_bench.core.ranges import Checked, Iterations
from pretrain.iternorm import Axis, Variant
from pretrain.methods import Setup, intl
from pretrain.methods.intl import INTL, require_samples
from pretrain.whiten.hard_whitening import require_batch

DISPLAY = "IterNorm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings of INTL with the same names and defaults.

    Attributes:
        name: of the method.
        iterations: T, the number of Newton's iterations.
        axis: "channel" whitens the samples of a batch over the features, "batch" the features over the samples.
        variant: "coupled", the stable form of Newton's iteration, or "paper", its form in the text of the paper.
    """

    name: str = "iternorm"
    iterations: Iterations = 4
    axis: Axis = "channel"
    variant: Variant = "coupled"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.intl()

    def intl(self) -> intl.Config:
        """Return the settings of INTL without its trace loss.

        Raises:
            ValueError: a setting is invalid.
        """
        return intl.Config(iterations=self.iterations, axis=self.axis, variant=self.variant, beta=0.0)


class IterNorm(INTL):
    """Backbone and projector under the alignment of whitened outputs."""

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute the mean over the views i > 0 of 2 - 2 cos(whitened_i, whitened_0) for the batch of all processes."""
        return {"alignment": super().forward(views)["alignment"]}


def build(config: Config, setup: Setup) -> IterNorm:
    """Build the method of a run.

    Raises:
        ValueError: there are fewer than two images or features, or `axis` is "batch" and there are not more samples
            than features.
    """
    require_batch(setup.batch_size, setup.projector.out)
    require_samples(config.axis, batch_size=setup.batch_size, embedding_dim=setup.projector.out)
    return IterNorm(config.intl(), setup)
