"""A guard against losses and gradients that are not finite. The host of a GPU does not wait for it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from intl_bench.core import distributed
from intl_bench.core.errors import DivergedError


def gradient_norm(module: nn.Module) -> torch.Tensor:
    """Compute the norm of all gradients of a module."""
    return torch.nn.utils.get_total_norm(p.grad for p in module.parameters() if p.grad is not None)


def skip_if_not_finite(optimizer: torch.optim.Optimizer, norm: torch.Tensor) -> None:
    """Let the next step of a fused optimizer change nothing if the norm of the gradients is not finite."""
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]


class Guard:
    """An optimizer whose steps change no weight and no momentum if the loss or a gradient is not finite.

    The first such step is remembered on the device, and `require_finite` raises an error for it.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.module, self.optimizer, self.device = module, optimizer, device
        self._bad_step = torch.zeros((), dtype=torch.int64, device=device)
        self._bad_gradient = ""

    def step(self, number: int, loss: torch.Tensor) -> None:
        """Take the optimizer step with this number, counted from 1."""
        norm = gradient_norm(self.module) + loss.detach()
        finite = torch.isfinite(norm)
        self._bad_step = torch.where(finite | (self._bad_step > 0), self._bad_step, number)
        if self.device.type == "cuda":
            skip_if_not_finite(self.optimizer, norm)
            self.optimizer.step()
        elif finite:
            self.optimizer.step()
        elif not self._bad_gradient:
            self._bad_gradient = _first_not_finite(self.module.named_parameters())

    def require_finite(self, remedy: str) -> None:
        """Raise an error on all processes together if a step of any of them was not finite.

        Raises:
            DivergedError: the message names the step.
        """
        step = int(self._bad_step)
        if distributed.any_process(step > 0, self.device):
            what = f"the gradient of {self._bad_gradient}" if self._bad_gradient else "the loss or a gradient"
            where = f"in step {step}: {what} is not finite" if step else "on another process"
            raise DivergedError(f"diverged {where}; the saved state is from an earlier step; {remedy}")


class Features:
    """Notes on the device whether all outputs of a module are finite: a detector drops boxes that are not.

    Args:
        module: a module whose output is a list of tensors, or tensors by name.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self._bad = torch.zeros((), dtype=torch.bool, device=device)
        self._hook = module.register_forward_hook(self._note)

    def _note(self, module: nn.Module, inputs: Any, output: list[torch.Tensor] | Mapping[str, torch.Tensor]) -> None:
        for tensor in output.values() if isinstance(output, Mapping) else output:
            self._bad |= ~torch.isfinite(tensor).all()

    def require_finite(self, what: str) -> None:
        """Stop to take notes, and raise an error on all processes together if an output was not finite.

        Raises:
            DivergedError: the message begins with `what`.
        """
        self._hook.remove()
        if distributed.any_process(bool(self._bad), self.device):
            raise DivergedError(
                f"{what} has features that are not finite; look at the images, the weights and the memory"
            )


def _first_not_finite(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    """Return the name of the first parameter whose gradient is not finite; empty text if only the loss is not."""
    gradients = ((name, parameter.grad) for name, parameter in parameters)
    return next((name for name, grad in gradients if grad is not None and not torch.isfinite(grad).all()), "")
