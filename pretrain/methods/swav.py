"""SwAV: one view predicts the assignment of the other view to prototypes (Caron et al., arXiv 2006.09882).

Loss, projection head and prototypes are those of lightly.
"""

import dataclasses
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.nn import functional as F

from intl_bench.core.distributed import gather, world_size
from intl_bench.core.ranges import Checked, Classes, Iterations, Natural, Positive
from pretrain.methods import Method, Setup
from pretrain.methods._lightly import lightly
from pretrain.methods._shared import require_queue
from pretrain.precision import at_least_float32

DISPLAY = "SwAV"
ASSIGNED = 2  # only the first two views are assigned to prototypes; other views (multi-crop) only predict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings; the defaults are those of the authors for ImageNet.

    Source: facebookresearch/swav, `scripts/swav_800ep_pretrain.sh`.

    Attributes:
        name: of the method.
        prototypes: number of prototypes.
        temperature: divisor of the cosines of the predictions.
        sinkhorn_epsilon, sinkhorn_iterations: settings of the Sinkhorn algorithm, which computes the assignment.
        queue: number of embeddings of earlier batches, for each assigned view, that are assigned together with a batch;
            0 for no queue.
        queue_from_epoch: first epoch, from 0, that uses the queue.
        freeze_prototypes_epochs: epochs at the start in which the prototypes are not trained.
    """

    name: str = "swav"
    prototypes: Classes = 3000
    temperature: Positive = 0.1
    sinkhorn_epsilon: Positive = 0.05
    sinkhorn_iterations: Iterations = 3
    queue: Natural = 0
    queue_from_epoch: Natural = 15
    freeze_prototypes_epochs: Natural = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sinkhorn_epsilon >= 0.03:
            raise ValueError(
                f"sinkhorn_epsilon={self.sinkhorn_epsilon}: expected at least 0.03, because exp(cosine / epsilon) "
                "of smaller values may leave the range of float32"
            )
        if self.queue and self.queue_from_epoch < 1:
            raise ValueError(
                f"queue_from_epoch={self.queue_from_epoch}: expected at least 1; the first epoch fills the queue"
            )


class SwAV(Method):
    """Backbone, projector, prototypes, and a queue of embeddings for each assigned view.

    While the prototypes are frozen, weight decay still shortens them, and each step normalizes them again. The weight
    decay of Adam (not of AdamW) would also turn them.
    """

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone = setup.make_backbone()
        heads = lightly("models.modules.heads")
        width = setup.projector.out
        self.projector = heads.SwaVProjectionHead(self.backbone.num_features, setup.projector.hidden, width)
        self.prototypes = heads.SwaVPrototypes(width, config.prototypes)
        (layer,) = self.prototypes.heads
        layer.bias = None  # the prototypes of lightly have a bias, those of the paper and of the authors do not
        # lightly freezes prototypes by removing their gradient, for which parallel processes would wait.
        layer.weight.register_hook(lambda gradient: torch.zeros_like(gradient) if self._frozen() else None)
        self.swapped_loss = lightly("loss").SwaVLoss(
            temperature=config.temperature,
            sinkhorn_iterations=config.sinkhorn_iterations,
            sinkhorn_epsilon=config.sinkhorn_epsilon,
            sinkhorn_gather_distributed=True,
        )
        self.config, self.steps_per_epoch = config, setup.steps_per_epoch
        self.register_buffer("queue", torch.zeros(ASSIGNED, config.queue, width) if config.queue else None)
        self.queue: torch.Tensor | None
        self.new: torch.Tensor | None = None

    def _frozen(self) -> bool:
        return self.step < self.config.freeze_prototypes_epochs * self.steps_per_epoch

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute the mean of the terms of Eqn. 2 (with multi-crop Eqn. 6) for the images of this process.

        The images of all processes and, from `queue_from_epoch`, those of the queue are assigned together.
        """
        self.prototypes.normalize()
        z = torch.stack([self.projector(self.backbone(view)) for view in views])
        self.embedding = z[0].detach()
        with torch.autocast(z.device.type, enabled=False):
            z = F.normalize(at_least_float32(z), dim=-1)
            logits, earlier = self.prototypes(z), None
            if self.queue is not None:
                self.new = gather(z[:ASSIGNED].detach(), dim=1)
                if self.step >= self.config.queue_from_epoch * self.steps_per_epoch:
                    # Every process holds the whole queue, so a checkpoint does; each process assigns one part of it.
                    rank = dist.get_rank() if world_size() > 1 else 0
                    with torch.no_grad():
                        earlier = list(self.prototypes(self.queue.chunk(world_size(), dim=1)[rank]))
            loss = self.swapped_loss(list(logits[:ASSIGNED]), list(logits[ASSIGNED:]), earlier)
        return {"swapped_prediction": loss.squeeze()}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Replace the oldest embeddings of the queue by those of the step, from the batch of all processes."""
        if self.queue is not None:
            assert self.new is not None, "a step without a forward pass"
            size = self.new.shape[1]
            start = self.step * size % self.queue.shape[1]
            self.queue[:, start : start + size] = self.new


def build(config: Config, setup: Setup) -> SwAV:
    """Build the method of a run.

    Raises:
        ValueError: the queue does not fit the batch or the data set, the batch holds one image, or the projector does
            not have two layers.
    """
    batch = setup.batch_size
    if batch < 2:
        raise ValueError(f"batch_size={batch}: the batch norms of SwAV need a batch; expected at least 2")
    if setup.projector.layers != 2:
        raise ValueError(f"projector.layers={setup.projector.layers}: expected 2, as in SwAV")
    require_queue(config.queue, batch_size=batch, images=setup.images, too_large="an epoch would not fill it")
    return SwAV(config, setup)
