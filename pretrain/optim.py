"""The optimiser: SGD with or without weight decay on one-dimensional parameters (the authors' `main.py`)."""

import torch
from torch import nn


def build_sgd(
    module: nn.Module, *, momentum: float, weight_decay: float, decay_one_dimensional: bool
) -> torch.optim.SGD:
    """SGD over the trainable parameters, learning rate 0 until the loop sets it.

    Without `decay_one_dimensional` the biases and batch-norm parameters form a group of their own, without decay.
    The fused kernel is the one that a gradient scaler does not have to wait for.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if decay_one_dimensional:
        groups = [{"params": trainable, "weight_decay": weight_decay}]
    else:
        groups = [
            {"params": [parameter for parameter in trainable if parameter.ndim == 1], "weight_decay": 0.0},
            {"params": [parameter for parameter in trainable if parameter.ndim != 1], "weight_decay": weight_decay},
        ]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
    # A first step that the scaler skips would leave PyTorch's momentum uninitialised; from zero it is the gradient.
    for parameter in trainable:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
