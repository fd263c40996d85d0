"""Optimizer and learning rate of the detection schedules, as Detectron2's `solver` gives them for the same settings."""

import bisect

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from transfer.detection.config import DetectionConfig


def learning_rate(config: DetectionConfig, iteration: int) -> float:
    """Learning rate of step `iteration`, counted from 0: linear warm-up, then a tenth after each milestone."""
    warmup = min(config.warmup_iterations, config.iterations)
    if iteration < warmup:
        done = iteration / warmup
        end = _decay(config, warmup)
        return config.lr * ((1 - done) * config.warmup_factor * _decay(config, 0) + done * end)
    return config.lr * _decay(config, iteration)


def _decay(config: DetectionConfig, iteration: int) -> float:
    return float(0.1 ** bisect.bisect_right(config.milestones, iteration))


def build_sgd(model: nn.Module, config: DetectionConfig) -> torch.optim.SGD:
    """SGD with momentum 0.9; the norms' scales and shifts have a weight decay of their own (the paper's: 0).

    On a GPU the update is one kernel for many parameters, which rounds otherwise than the plain one of a CPU.
    """
    norms = [p for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters(recurse=False)]
    known = {id(p) for p in norms}
    others = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": others, "weight_decay": config.weight_decay},
        {"params": norms, "weight_decay": config.norm_weight_decay},
    ]
    fused = all(parameter.is_cuda for parameter in model.parameters())
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, fused=fused)
