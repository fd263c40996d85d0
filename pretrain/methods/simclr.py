"""SimCLR: each view finds the other among the batch (Chen et al., arXiv 2002.05709), with lightly's head."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from intl_bench.core.distributed import gather
from pretrain.methods import Setup
from pretrain.methods._lightly import lightly
from pretrain.methods._shared import pairs_mean
from pretrain.precision import at_least_float32

DISPLAY = "SimCLR"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the authors' for ImageNet (google-research/simclr, `run.py`), and the paper's loss.

    Attributes:
        temperature: the cosines are divided by it.
        batch_norm: one after each layer of the projector, the last included, whose offset is zero; solo-learn's
            projector has none.
        scale: of the whole loss, the paper's mean over both views (2 is their sum, as in the authors' code). LARS does
            not heed it, but for biases and batch norms that it leaves to SGD.
    """

    name: str = "simclr"
    temperature: float = 0.1
    batch_norm: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        for field in ("temperature", "scale"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field}={getattr(self, field)}: expected more than 0")


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent (Eqn. 1) of two views' embeddings, averaged over both: (m, d), (m, d) -> scalar.

    A row's cosine with itself is made minus infinity. To leave it out, as lightly's loss does by a boolean mask, a GPU
    would have to tell the host how many remain.
    """
    z = F.normalize(torch.cat([first, second]), dim=1)
    logits = z @ z.T / temperature
    logits.diagonal().fill_(-torch.inf)
    partners = torch.arange(len(z), device=z.device).roll(len(first))
    return F.cross_entropy(logits, partners)


class SimCLR(nn.Module):
    """Backbone, projector, and the NT-Xent loss of the batch of all processes."""

    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone = setup.make_backbone()
        self.projector = lightly("models.modules.heads").SimCLRProjectionHead(
            self.backbone.num_features,
            setup.projector.hidden,
            setup.projector.out,
            num_layers=setup.projector.layers,
            batch_norm=config.batch_norm,
        )
        if config.batch_norm:
            self.projector.layers[-1].bias.requires_grad_(False)
        self.temperature, self.scale = config.temperature, config.scale
        self.embedding: torch.Tensor | None = None

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """`scale` times NT-Xent (Eqn. 1) of every two views, averaged."""
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            whole = gather(at_least_float32(z), dim=1)
            return {"nt_xent": self.scale * pairs_mean(whole, lambda a, b: nt_xent(a, b, self.temperature))}

    def after_step(self, progress: float) -> None:
        """Nothing follows a step."""


def build(config: Config, setup: Setup) -> SimCLR:
    """The method of a run.

    Raises:
        ValueError: the batch holds one image, or the projector has one layer.
    """
    if setup.batch_size < 2:
        raise ValueError(f"batch_size={setup.batch_size}: SimCLR tells the images of a batch apart; use at least 2")
    if setup.projector.layers < 2:
        raise ValueError(f"projector.layers={setup.projector.layers}: SimCLR's has at least 2")
    return SimCLR(config, setup)
