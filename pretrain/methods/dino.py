"""DINO: the output of a student for one view predicts that of a momentum teacher for another (Caron et al., arXiv
2104.14294).

The outputs of the teacher are centered and sharpened. Loss and projection head are those of lightly.
"""

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from intl_bench.core.ranges import Checked, Classes, Natural, Positive, Share
from pretrain.methods import Method, Setup
from pretrain.methods._lightly import lightly
from pretrain.methods._shared import move_average
from pretrain.precision import at_least_float32
from pretrain.schedules import cosine_momentum

DISPLAY = "DINO"
TAUGHT = 2  # the teacher sees only the first two views; the student sees all (multi-crop)
LAYERS = 3  # number of layers of the head before the last one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Settings; the defaults are those of the authors' code (facebookresearch/dino, `main_dino.py`).

    In the recipe, `projector.hidden` is the width of the hidden layers of the head, `projector.out` of its bottleneck.

    Attributes:
        name: of the method.
        outputs: width of the last layer, K of the paper.
        batch_norm: the head has batch norms.
        student_temperature: divisor of the outputs of the student.
        teacher_temperature: divisor of the outputs of the teacher after the warm-up.
        warmup_teacher_temperature: this divisor at the start of the warm-up; it changes linearly, epoch by epoch.
        warmup_epochs: epochs of the warm-up of the teacher temperature.
        center_momentum: momentum of the moving average that is subtracted from the outputs of the teacher.
        base_momentum: momentum of the teacher at the start; it rises to 1 along a cosine.
        freeze_last_layer_epochs: epochs at the start in which the last layer is not trained.
    """

    name: str = "dino"
    outputs: Classes = 65536
    batch_norm: bool = False
    student_temperature: Positive = 0.1
    teacher_temperature: Positive = 0.04
    warmup_teacher_temperature: Positive = 0.04
    warmup_epochs: Natural = 0
    center_momentum: Share = 0.9
    base_momentum: Share = 0.996
    freeze_last_layer_epochs: Natural = 1


def teacher_temperature(epoch: int, config: Config) -> float:
    """Return the teacher temperature of an epoch, from 0: linear within `warmup_epochs`, then constant."""
    first, last, n = config.warmup_teacher_temperature, config.teacher_temperature, config.warmup_epochs
    return first + (last - first) * epoch / max(n - 1, 1) if epoch < n else last


class DINO(Method):
    """Student and teacher, each a backbone with the head of lightly.

    The head of the student is stored in two parts: the projector up to the bottleneck, and the last layer. The teacher
    is the momentum encoder.

    While the last layer is frozen, weight decay still shortens its weights. This has no effect, because of the weight
    norm. The weight decay of Adam (not of AdamW) would also turn them.
    """

    momentum_encoder: nn.Sequential

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone = setup.make_backbone()
        widths = (self.backbone.num_features, setup.projector.hidden, setup.projector.out, config.outputs)
        head, teacher = (_head(*widths, batch_norm=config.batch_norm) for _ in range(2))
        teacher.load_state_dict(head.state_dict())  # modules with weight norm cannot be copied
        self.projector, self.last_layer = head.layers, head.last_layer
        self.momentum_encoder = nn.Sequential(copy.deepcopy(self.backbone), teacher).requires_grad_(False)
        # The head of lightly expects the training loop to cancel the gradients.
        self.last_layer.weight_v.register_hook(
            lambda gradient: torch.zeros_like(gradient) if self._epoch() < config.freeze_last_layer_epochs else None
        )
        self.distillation = lightly("loss").DINOLoss(
            output_dim=config.outputs,
            student_temp=config.student_temperature,
            center_momentum=config.center_momentum,
        )
        self.config, self.steps_per_epoch = config, setup.steps_per_epoch

    def _epoch(self) -> int:
        return self.step // self.steps_per_epoch

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute Eqn. 3 as a mean over its terms, for the images of this process.

        Also update the center (Eqn. 4), which is common to all processes.
        """
        z = [self.projector(self.backbone(view)) for view in views]
        self.embedding = z[0].detach()
        student = [self.last_layer(F.normalize(embedding, dim=-1)) for embedding in z]
        with torch.no_grad():
            taught = [self.momentum_encoder(view) for view in views[:TAUGHT]]
        with torch.autocast(student[0].device.type, enabled=False):
            loss = self.distillation(
                list(map(at_least_float32, taught)),
                list(map(at_least_float32, student)),
                teacher_temp=teacher_temperature(self._epoch(), self.config),
            )
        return {"distillation": loss}

    def after_step(self, progress: float) -> None:
        """Update the teacher."""
        momentum = cosine_momentum(progress, self.config.base_momentum)
        move_average(self.momentum_encoder, [self.backbone, self.projector, self.last_layer], momentum)


def _head(*widths: int, batch_norm: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # lightly uses a weight norm that PyTorch will remove
        return lightly("models.modules.heads").DINOProjectionHead(*widths, batch_norm=batch_norm)


def build(config: Config, setup: Setup) -> DINO:
    """Build the method of a run.

    Raises:
        ValueError: the batch holds one image, or the projector does not have three layers.
    """
    if setup.batch_size < 2:
        raise ValueError(f"batch_size={setup.batch_size}: the batch norms of DINO need a batch; expected at least 2")
    if setup.projector.layers != LAYERS:
        raise ValueError(f"projector.layers={setup.projector.layers}: expected {LAYERS}, as in the head of DINO")
    return DINO(config, setup)
