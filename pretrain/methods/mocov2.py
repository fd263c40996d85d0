"""MoCo v2: a view finds the other's momentum key among a queue of keys (He et al., arXiv 1911.05722; Chen et al., arXiv
2003.04297), with lightly's loss and head."""

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from intl_bench.core.distributed import gather
from pretrain.methods import Setup
from pretrain.methods._lightly import lightly
from pretrain.methods._shared import move_average, require_queue
from pretrain.precision import at_least_float32
from pretrain.schedules import cosine_momentum

DISPLAY = "MoCo v2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; but for `symmetric`, the defaults are the authors' for ImageNet (facebookresearch/moco).

    Attributes:
        temperature: the cosines are divided by it.
        queue: keys that are kept, for each view that gives keys.
        base_momentum, final_momentum: of the moving average; if they differ, from one to the other along a cosine, as
            solo-learn does (0.99, 0.999).
        symmetric: every view is query and key, as in solo-learn's MoCo v2+ (Chen & He, arXiv 2011.10566, Appendix B);
            otherwise the first is the query and the second the key, as the authors do.
    """

    name: str = "mocov2"
    temperature: float = 0.2
    queue: int = 65536
    base_momentum: float = 0.999
    final_momentum: float = 0.999
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: expected more than 0")
        if self.queue < 1:
            raise ValueError(f"queue={self.queue}: expected at least 1")
        if not 0 <= self.base_momentum <= self.final_momentum <= 1:
            raise ValueError(
                f"base_momentum={self.base_momentum}, final_momentum={self.final_momentum}: "
                "expected 0 to 1, the final one not below the base"
            )


class Queue(nn.Module):
    """The keys of one view, (size, d), in the place of lightly's memory bank.

    That one is left out of checkpoints, enters keys whenever a loss is computed, and waits for the device to say where;
    here the place follows from the number of the step.
    """

    def __init__(self, size: int, d: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, d), dim=1))
        self.keys: torch.Tensor

    def forward(self, key: torch.Tensor, update: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """What lightly's loss asks of a memory bank: the key as it is, and the negatives (d, size)."""
        return key, self.keys.T

    def enter(self, keys: torch.Tensor, step: int) -> None:
        """Replaces the oldest keys by those of a global batch (m, d), where m divides the size."""
        start = step * len(keys) % len(self.keys)
        self.keys[start : start + len(keys)] = keys


class MoCoV2(nn.Module):
    """Backbone and projector, their moving averages, and a queue for each view that gives keys.

    The projector has no batch norm. Those of the backbone see the batch of all processes instead of a shuffled part of
    it, as in solo-learn.
    """

    step = 0
    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone = setup.make_backbone()
        self.projector = lightly("models.modules.heads").MoCoProjectionHead(
            self.backbone.num_features, setup.projector.hidden, setup.projector.out, num_layers=setup.projector.layers
        )
        self.target = copy.deepcopy(nn.Sequential(self.backbone, self.projector)).requires_grad_(False)
        self.config = config
        self.queries, self.keys = range(setup.views), range(setup.views)  # numbers of views
        if not config.symmetric:
            self.queries, self.keys = range(1), range(1, 2)
        self.queues = nn.ModuleList(Queue(config.queue, setup.projector.out) for _ in self.keys)
        # Not registered: a queue that belonged to two modules would be saved twice.
        self.losses = [lightly("loss").NTXentLoss(temperature=config.temperature) for _ in self.queues]
        for loss, queue in zip(self.losses, self.queues, strict=True):
            loss.memory_bank = queue
        self.new_keys: torch.Tensor | None = None
        self.embedding: torch.Tensor | None = None

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """InfoNCE (He et al., Eqn. 1) of every query with its key, averaged; of this process's images."""
        q = torch.stack([self.projector(self.backbone(views[i])) for i in self.queries])
        with torch.no_grad():
            k = torch.stack([self.target(views[j]) for j in self.keys])
        self.embedding = q[0].detach()
        q, k = at_least_float32(q), at_least_float32(k)
        with torch.autocast(q.device.type, enabled=False):
            losses = []
            for j, key, loss in zip(self.keys, k, self.losses, strict=True):
                others = [q[i] for i in self.queries if i != j]
                losses.append(loss(torch.cat(others), key.repeat(len(others), 1)))
            self.new_keys = gather(F.normalize(k, dim=-1), dim=1)
        return {"info_nce": torch.stack(losses).mean()}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Moves the target toward the trained network, and the step's keys into their queues."""
        base, final = self.config.base_momentum, self.config.final_momentum
        momentum = base + (final - base) * cosine_momentum(progress, 0)
        move_average(self.target.parameters(), [*self.backbone.parameters(), *self.projector.parameters()], momentum)
        assert self.new_keys is not None, "a step without a forward pass"
        for loss, keys in zip(self.losses, self.new_keys, strict=True):
            loss.memory_bank.enter(keys, self.step)


def build(config: Config, setup: Setup) -> MoCoV2:
    """The method of a run.

    Raises:
        ValueError: the queue does not fit the batch or the data set, the batch holds one image, the projector has one
            layer, or `symmetric=false` has more than a query and a key.
    """
    batch = setup.batch_size
    if batch < 2:
        raise ValueError(f"batch_size={batch}: the batch norms of MoCo v2 need a batch; use at least 2")
    if setup.projector.layers < 2:
        raise ValueError(f"projector.layers={setup.projector.layers}: MoCo v2's has at least 2")
    require_queue(config.queue, batch_size=batch, images=setup.images, too_large="an image would meet its own old keys")
    if not config.symmetric and setup.views != 2:
        raise ValueError(f"symmetric=false: one query and one key, but there are {setup.views} views; use 2")
    return MoCoV2(config, setup)
