"""Optimizer and learning rate of the detection schedules, equal to those of Detectron2's `solver`."""

import bisect

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from transfer.detection.config import DetectionConfig


def learning_rate(config: DetectionConfig, iteration: int) -> float:
    """Compute the learning rate of step `iteration`, counted from 0.

    After a linear warm-up the learning rate is divided by 10 at each milestone.
    """
    warmup = min(config.warmup_iterations, config.iterations)
    if iteration < warmup:
        progress = iteration / warmup
        end = _compute_decay(config, warmup)
        return config.lr * ((1 - progress) * config.warmup_factor * _compute_decay(config, 0) + progress * end)
    return config.lr * _compute_decay(config, iteration)


def _compute_decay(config: DetectionConfig, iteration: int) -> float:
    return float(0.1 ** bisect.bisect_right(config.milestones, iteration))


def build_sgd(model: nn.Module, config: DetectionConfig) -> torch.optim.SGD:
    """Build SGD with momentum 0.9. The parameters of norms have their own weight decay, which is 0 in the paper.

    On a GPU one kernel updates many parameters. Its rounding differs from that of the update on a CPU.
    """
    norms = [p for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters(recurse=False)]
    known = {id(p) for p in norms}
    others = [p for p in model.parameters() if id(p) not in known and p.requires_grad]
    groups = [
        {"params": others, "weight_decay": config.weight_decay},
        {"params": norms, "weight_decay": config.norm_weight_decay},
    ]
    fused = all(parameter.is_cuda for parameter in model.parameters())
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, fused=fused)
