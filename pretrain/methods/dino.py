"""DINO: one view's output predicts a momentum teacher's, centered and sharpened, for another (Caron et al., arXiv
2104.14294), with lightly's loss and projection head."""

import copy
import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pretrain.methods import Setup
from pretrain.methods._lightly import lightly
from pretrain.methods._shared import move_average
from pretrain.precision import at_least_float32
from pretrain.schedules import cosine_momentum

DISPLAY = "DINO"
TAUGHT = 2  # views that the teacher sees, the first ones; further ones (multi-crop) only the student
LAYERS = 3  # of the head before its last one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are those of the authors' code (facebookresearch/dino, `main_dino.py`).

    The recipe's `projector` has the widths of the head's hidden layers and, as `out`, of its bottleneck.

    Attributes:
        outputs: K of the paper, the width of the last layer.
        batch_norm: in the head.
        student_temperature: the student's outputs are divided by it.
        teacher_temperature, warmup_teacher_temperature: the teacher's are divided by the first after `warmup_epochs`,
            in which it moves there from the second, epoch by epoch.
        center_momentum: of the moving average that is subtracted from the teacher's outputs.
        base_momentum: of the teacher's at the start; it rises to 1 along a cosine.
        freeze_last_layer_epochs: epochs at the start without training the last layer.
    """

    name: str = "dino"
    outputs: int = 65536
    batch_norm: bool = False
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    warmup_teacher_temperature: float = 0.04
    warmup_epochs: int = 0
    center_momentum: float = 0.9
    base_momentum: float = 0.996
    freeze_last_layer_epochs: int = 1

    def __post_init__(self) -> None:
        for field in ("student_temperature", "teacher_temperature", "warmup_teacher_temperature"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field}={getattr(self, field)}: expected more than 0")
        for field in ("center_momentum", "base_momentum"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field}={getattr(self, field)}: expected 0 to 1")
        for field, bound in {"outputs": 2, "warmup_epochs": 0, "freeze_last_layer_epochs": 0}.items():
            if getattr(self, field) < bound:
                raise ValueError(f"{field}={getattr(self, field)}: expected at least {bound}")


def teacher_temperature(epoch: int, config: Config) -> float:
    """Of an epoch, from 0: linear from the first to the last of `warmup_epochs`, then constant."""
    first, last, n = config.warmup_teacher_temperature, config.teacher_temperature, config.warmup_epochs
    return first + (last - first) * epoch / max(n - 1, 1) if epoch < n else last


class DINO(nn.Module):
    """Student and teacher, each a backbone and lightly's head; the student's head is kept as projector, up to the
    bottleneck, and last layer.

    A last layer that is frozen still has the length of its weights decayed by the optimizer, which the weight norm does
    not heed; Adam's decay, not AdamW's, would turn them.
    """

    step = 0

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__()
        self.backbone = setup.make_backbone()
        widths = (self.backbone.num_features, setup.projector.hidden, setup.projector.out, config.outputs)
        head, teacher = (_head(*widths, batch_norm=config.batch_norm) for _ in range(2))
        teacher.load_state_dict(head.state_dict())  # weight norm cannot be copied
        self.projector, self.last_layer = head.layers, head.last_layer
        self.target = nn.Sequential(copy.deepcopy(self.backbone), teacher).requires_grad_(False)
        # lightly's head would have its own loop cancel the gradients.
        self.last_layer.weight_v.register_hook(
            lambda gradient: torch.zeros_like(gradient) if self._epoch() < config.freeze_last_layer_epochs else None
        )
        self.distillation = lightly("loss").DINOLoss(
            output_dim=config.outputs,
            student_temp=config.student_temperature,
            center_momentum=config.center_momentum,
        )
        self.config, self.steps_per_epoch = config, setup.steps_per_epoch
        self.embedding: torch.Tensor | None = None

    def _epoch(self) -> int:
        return self.step // self.steps_per_epoch

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Eqn. 3, as a mean over its terms, of this process's images; moves the center (Eqn. 4), of all processes'."""
        z = [self.projector(self.backbone(view)) for view in views]
        self.embedding = z[0].detach()
        student = [self.last_layer(F.normalize(embedding, dim=-1)) for embedding in z]
        with torch.no_grad():
            taught = [self.target(view) for view in views[:TAUGHT]]
        with torch.autocast(student[0].device.type, enabled=False):
            loss = self.distillation(
                list(map(at_least_float32, taught)),
                list(map(at_least_float32, student)),
                teacher_temp=teacher_temperature(self._epoch(), self.config),
            )
        return {"distillation": loss}

    def after_step(self, progress: float) -> None:
        """Moves the teacher toward the student."""
        student = [part.parameters() for part in (self.backbone, self.projector, self.last_layer)]
        momentum = cosine_momentum(progress, self.config.base_momentum)
        move_average(self.target.parameters(), itertools.chain(*student), momentum)


def _head(*widths: int, batch_norm: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch about the weight norm that lightly uses
        return lightly("models.modules.heads").DINOProjectionHead(*widths, batch_norm=batch_norm)


def build(config: Config, setup: Setup) -> DINO:
    """The method of a run.

    Raises:
        ValueError: the batch holds one image, or the projector has not three layers.
    """
    if setup.batch_size < 2:
        raise ValueError(f"batch_size={setup.batch_size}: the batch norms of DINO need a batch; use at least 2")
    if setup.projector.layers != LAYERS:
        raise ValueError(f"projector.layers={setup.projector.layers}: DINO's head has {LAYERS} up to its bottleneck")
    return DINO(config, setup)
