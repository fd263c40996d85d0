"""MoCo v2: a view finds the momentum key of the other view in a queue of keys (He et al., arXiv 1911.05722; Chen et
al., arXiv 2003.04297).

Loss and head are those of lightly.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from intl_bench.core.distributed import gather
from intl_bench.core.ranges import Checked, Count, Positive, Share
from pretrain.methods import Method, Setup
from pretrain.methods._lightly import lightly
from pretrain.methods._shared import momentum_copy, move_average, require_queue
from pretrain.precision import at_least_float32
from pretrain.schedules import cosine_momentum

DISPLAY = "MoCo v2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings; the defaults, except for `symmetric`, are those of the authors for ImageNet (facebookresearch/moco).

    Attributes:
        name: of the method.
        temperature: divisor of the cosines.
        queue: number of stored keys for each view that provides keys.
        base_momentum, final_momentum: momentum of the moving average at the start and at the end. It follows a cosine,
            as in solo-learn (0.99, 0.999).
        symmetric: every view is query and key, as in MoCo v2+ of solo-learn (Chen & He, arXiv 2011.10566, Appendix B).
            Otherwise the first view is the query and the second one the key, as in the authors' code.
    """

    name: str = "mocov2"
    temperature: Positive = 0.2
    queue: Count = 65536
    base_momentum: Share = 0.999
    final_momentum: Share = 0.999
    symmetric: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_momentum > self.final_momentum:
            raise ValueError(
                f"base_momentum={self.base_momentum}, final_momentum={self.final_momentum}: "
                "expected final_momentum to be at least base_momentum"
            )


class Queue(nn.Module):
    """The keys of one view, (size, d), used instead of the memory bank of lightly.

    The memory bank of lightly is not saved in checkpoints, stores keys whenever a loss is computed, and reads the
    position from the device. Here the position is a function of the number of the step.
    """

    def __init__(self, size: int, d: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, d), dim=1))
        self.keys: torch.Tensor

    def forward(self, key: torch.Tensor, update: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the unchanged key and the negatives (d, size), as the loss of lightly expects of a memory bank."""
        return key, self.keys.T

    def enter(self, keys: torch.Tensor, step: int) -> None:
        """Replace the oldest keys by those of a global batch (m, d); m is a divisor of the size."""
        start = step * len(keys) % len(self.keys)
        self.keys[start : start + len(keys)] = keys


class MoCoV2(Method):
    """Backbone, projector, their momentum encoder, and a queue for each view that provides keys.

    The projector has no batch norm. The batch norms of the backbone see the batch of all processes, as in solo-learn,
    instead of a shuffled part of it.
    """

    momentum_encoder: nn.Sequential
    capturable = True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone = setup.make_backbone()
        self.projector = lightly("models.modules.heads").MoCoProjectionHead(
            self.backbone.num_features, setup.projector.hidden, setup.projector.out, num_layers=setup.projector.layers
        )
        self.momentum_encoder = momentum_copy(self.backbone, self.projector)
        self.config = config
        self.queries, self.keys = range(setup.views), range(setup.views)  # numbers of views
        if not config.symmetric:
            self.queries, self.keys = range(1), range(1, 2)
        self.queues = nn.ModuleList(Queue(config.queue, setup.projector.out) for _ in self.keys)
        # A list, not a ModuleList: a queue that belongs to two modules would be saved twice.
        self.losses = [lightly("loss").NTXentLoss(temperature=config.temperature) for _ in self.queues]
        for loss, queue in zip(self.losses, self.queues, strict=True):
            loss.memory_bank = queue
        self.new_keys: torch.Tensor | None = None

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute InfoNCE (He et al., Eqn. 1) as a mean over the queries, for the images of this process."""
        q = torch.stack([self.projector(self.backbone(views[i])) for i in self.queries])
        with torch.no_grad():
            k = torch.stack([self.momentum_encoder(views[j]) for j in self.keys])
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
        """Update the momentum encoder, and store the keys of the step in their queues."""
        base, final = self.config.base_momentum, self.config.final_momentum
        momentum = base + (final - base) * cosine_momentum(progress, 0)
        move_average(self.momentum_encoder, [self.backbone, self.projector], momentum)
        assert self.new_keys is not None, "a step without a forward pass"
        for loss, keys in zip(self.losses, self.new_keys, strict=True):
            loss.memory_bank.enter(keys, self.step)


def build(config: Config, setup: Setup) -> MoCoV2:
    """Build the method of a run.

    Raises:
        ValueError: the queue does not fit the batch or the data set, the batch holds one image, the projector has one
            layer, or there are not two views with `symmetric=false`.
    """
    batch = setup.batch_size
    if batch < 2:
        raise ValueError(f"batch_size={batch}: the batch norms of MoCo v2 need a batch; expected at least 2")
    if setup.projector.layers < 2:
        raise ValueError(
            f"projector.layers={setup.projector.layers}: MoCo v2 has a head of several layers; expected at least 2"
        )
    require_queue(config.queue, batch_size=batch, images=setup.images, too_large="an image would meet its own old keys")
    if not config.symmetric and setup.views != 2:
        raise ValueError(f"symmetric=false: found {setup.views} views; expected 2, one query and one key")
    return MoCoV2(config, setup)
