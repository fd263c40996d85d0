"""SimCLR: each view finds the other view of its image in the batch (Chen et al., arXiv 2002.05709).

The head is that of lightly.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from intl_bench.core.distributed import gather
from intl_bench.core.ranges import Checked, Positive
from pretrain.methods import Method, Setup
from pretrain.methods._lightly import lightly
from pretrain.methods._shared import pairs_mean
from pretrain.precision import at_least_float32

DISPLAY = "SimCLR"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings; the defaults are those of the authors for ImageNet (google-research/simclr, `run.py`).

    Attributes:
        name: of the method.
        temperature: divisor of the cosines.
        batch_norm: a batch norm follows each layer of the projector; the offset of the last one is zero. The projector
            of solo-learn has none.
        scale: factor of the whole loss. 1 is the mean over both views, as in the paper; 2 is their sum, as in the
            authors' code. It has no effect on parameters that LARS scales; it has one on biases and batch norms, which
            LARS updates as SGD does.
    """

    name: str = "simclr"
    temperature: Positive = 0.1
    batch_norm: bool = True
    scale: Positive = 1.0


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compute NT-Xent (Eqn. 1) of the embeddings of two views, as a mean over both: (m, d), (m, d) -> scalar.

    The cosine of a row with itself is replaced by minus infinity. The loss of lightly removes it by a boolean mask; the
    host would wait for a GPU to return the number of the remaining values.
    """
    z = F.normalize(torch.cat([first, second]), dim=1)
    logits = z @ z.T / temperature
    logits.diagonal().fill_(-torch.inf)
    partners = torch.arange(len(z), device=z.device).roll(len(first))
    return F.cross_entropy(logits, partners)


class SimCLR(Method):
    """Backbone and projector under NT-Xent of the batch of all processes."""

    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone = setup.make_backbone()
        projector = lightly("models.modules.heads").SimCLRProjectionHead(
            self.backbone.num_features,
            setup.projector.hidden,
            setup.projector.out,
            num_layers=setup.projector.layers,
            batch_norm=config.batch_norm,
        )
        if config.batch_norm:
            projector.layers[-1].bias.requires_grad_(False)
        self.projector = projector
        self.temperature, self.scale = config.temperature, config.scale

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute `scale` times NT-Xent (Eqn. 1), as a mean over all pairs of views."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            whole = gather(at_least_float32(z), dim=1)
            return {"nt_xent": self.scale * pairs_mean(whole, lambda a, b: nt_xent(a, b, self.temperature))}


def build(config: Config, setup: Setup) -> SimCLR:
    """Build the method of a run.

    Raises:
        ValueError: the batch holds one image, or the projector has one layer.
    """
    if setup.batch_size < 2:
        raise ValueError(f"batch_size={setup.batch_size}: SimCLR compares the images of a batch; expected at least 2")
    if setup.projector.layers < 2:
        raise ValueError(
            f"projector.layers={setup.projector.layers}: SimCLR has a head of several layers; expected at least 2"
        )
    return SimCLR(config, setup)
