"""Values that are not finite, put into a training at one step; `install` runs in the child process of a test."""

import os
import signal
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

PLACES = ("loss", "gradient", "momentum", "weight", "buffer", "input", "test input")


def install(place: str, step: int, value: str, stop: bool) -> None:
    """Put a value into one tensor in one step.

    Args:
        place: one of `PLACES`.
        step: of the optimizer, from 1; a step after the last one is in what follows training. A test input is that of
            the first test.
        value: "nan", "inf" or "-inf".
        stop: whether SIGTERM follows at once.
    """
    bad, taken, done = float(value), 0, False

    def put(tensor: torch.Tensor) -> None:
        nonlocal done
        done = True
        tensor.data[(0,) * tensor.dim()] = bad  # `data`: autograd does not count this change
        if stop:
            os.kill(os.getpid(), signal.SIGTERM)

    def due() -> bool:
        return not done and taken + 1 == step

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if place == "gradient" and due():
            put(next(p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None))

    def after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal taken
        if place in ("momentum", "weight") and due():
            parameter = next(iter(optimizer.state))
            state = optimizer.state[parameter]
            tensors = [one for one in state.values() if isinstance(one, torch.Tensor) and one.dim()]
            put(tensors[0] if place == "momentum" else parameter)
        taken += 1

    def before_forward(module: nn.Module, inputs: Any) -> None:
        if not isinstance(module, nn.Conv2d) or module.in_channels != 3 or done:
            return
        # Detectron2 tests without inference mode here, and its model is in evaluation mode only then.
        testing = torch.is_inference_mode_enabled() or (
            type(module).__module__.startswith("detectron2") and not module.training
        )
        if (place == "input" and not testing and due()) or (place == "test input" and testing):
            put(inputs[0])

    def after_forward(module: nn.Module, _: Any, output: Any) -> Any:
        if not due():
            return None
        norm = isinstance(module, nn.modules.batchnorm._NormBase) and module.training
        if place == "buffer" and norm and module.running_var is not None:
            put(module.running_var)
        elif place == "loss" and module.training:
            if isinstance(output, dict) and output and all(isinstance(one, torch.Tensor) for one in output.values()):
                name, term = next(iter(output.items()))
                put(torch.zeros(1))
                return {**output, name: term + bad}
            if type(module).__name__ == "Classifier":
                put(torch.zeros(1))
                return output + bad
        return None

    optimizers.register_optimizer_step_pre_hook(before_step)
    optimizers.register_optimizer_step_post_hook(after_step)
    modules.register_module_forward_pre_hook(before_forward)
    modules.register_module_forward_hook(after_forward)
