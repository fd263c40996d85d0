"""Optimizers: SGD as in the `main.py` of INTL's authors; LARS, Adam and AdamW for the recipes of other methods."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.sgd import sgd

NAMES = ("sgd", "lars", "adam", "adamw")


def build_optimizer(
    module: nn.Module,
    *,
    name: str = "sgd",
    momentum: float,
    weight_decay: float,
    decay_one_dimensional: bool,
    one_dimensional_lr_ratio: float = 1.0,
    trust_coefficient: float = 0.001,
    clip_trust: bool = False,
    constant_lr: Sequence[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Build the optimizer of the trainable parameters; its learning rate is 0 until the loop sets it to `group_lr`.

    Args:
        module: the module with the parameters.
        name: one of `NAMES`.
        momentum: momentum of SGD and LARS.
        weight_decay: weight decay of the parameters.
        decay_one_dimensional: whether one-dimensional parameters (biases, batch norms) have weight decay, and are
            scaled by LARS.
        one_dimensional_lr_ratio: learning rate of the one-dimensional parameters, relative to the other parameters.
        trust_coefficient, clip_trust: see `LARS`.
        constant_lr: parameters whose learning rate does not follow the schedule.
    """
    unscheduled = {id(parameter) for parameter in constant_lr}
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for constant, one_dimensional in itertools.product((False, True), (True, False)):
        like_others = decay_one_dimensional or not one_dimensional
        own = [p for p in trainable if (id(p) in unscheduled) is constant and (p.ndim == 1) is one_dimensional]
        if own:
            groups.append(
                {
                    "params": own,
                    "weight_decay": weight_decay if like_others else 0.0,
                    "scaled": like_others,
                    "constant": constant,
                    "lr_ratio": one_dimensional_lr_ratio if one_dimensional else 1.0,
                }
            )
    if name in ("adam", "adamw"):
        optimizer: torch.optim.Optimizer = (torch.optim.Adam if name == "adam" else torch.optim.AdamW)(
            groups, lr=0.0, fused=True
        )
        for parameter in trainable:  # all checkpoints have the same size, also before the first step
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return optimizer
    if name == "lars":
        optimizer = LARS(groups, momentum=momentum, trust_coefficient=trust_coefficient, clip_trust=clip_trust)
    else:
        # With the fused kernel, a gradient scaler does not synchronize with the device.
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
    # If the scaler skips the first step, PyTorch's momentum stays uninitialized. From zero, the first momentum is the
    # gradient, as in PyTorch.
    for parameter in trainable:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def group_lr(group: dict[str, Any], *, scheduled: float, base: float) -> float:
    """Return the learning rate of a parameter group of `build_optimizer`.

    Args:
        scheduled: learning rate of the schedule at this step.
        base: base learning rate of the schedule, used for the groups of `constant_lr`.
    """
    return float(group["lr_ratio"] * (base if group["constant"] else scheduled))


def set_lr(group: dict[str, Any], lr: float, *, in_tensor: bool) -> None:
    """Set the learning rate of a parameter group.

    Args:
        in_tensor: whether to keep it in one tensor on the device of the parameters. A recorded step (CUDA graph) reads
            the tensor at each replay.
    """
    if not in_tensor:
        group["lr"] = lr
        return
    if not isinstance(group["lr"], torch.Tensor):
        weight = group["params"][0]
        # Fused kernels read a float32 tensor on a GPU. On a CPU they read the number; float64 keeps all its digits.
        dtype = torch.float32 if weight.is_cuda else torch.float64
        group["lr"] = torch.zeros((), dtype=dtype, device=weight.device)
    group["lr"].fill_(lr)


class LARS(torch.optim.Optimizer):
    """SGD with momentum and a scale of the gradient for each tensor (You et al., arXiv 1708.03888, Eqn. 6).

    A gradient, including weight decay, is multiplied by trust |w| / (|g| + decay |w|). With `clip_trust`, a step never
    moves a weight further than SGD (solo-learn's `clip_lr`, solo/utils/lars.py). Groups whose "scaled" is False use
    plain SGD.
    """

    # A gradient scaler then passes its overflow flag to `step`, and does not synchronize with the device.
    _step_supports_amp_scaling = True

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float, trust_coefficient: float, clip_trust: bool
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum})
        self.trust_coefficient, self.clip_trust = trust_coefficient, clip_trust

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do one step and overwrite the gradients; do nothing if a gradient scaler found an overflow."""
        scale = getattr(self, "grad_scale", None)
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients, decay = [p.grad for p in weights], group["weight_decay"]
            if scale is not None:
                torch._foreach_div_(gradients, scale)
            if group["scaled"]:
                trusts = self._trusts(weights, gradients, decay, group["lr"])
                torch._foreach_add_(gradients, weights, alpha=decay)
                torch._foreach_mul_(gradients, trusts)
                decay = 0.0
            sgd(
                weights,
                gradients,
                [self.state[p]["momentum_buffer"] for p in weights],
                fused=True,
                found_inf=getattr(self, "found_inf", None),
                weight_decay=decay,
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )

    def _trusts(self, weights: Any, gradients: Any, decay: float, lr: float | torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the scalar factor of each tensor; all are computed together, with one kernel launch per operation."""
        weight, gradient = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(gradients))
        trust = self.trust_coefficient * weight / (gradient + decay * weight + 1e-8)
        trust = (trust / lr).clamp_max(1) if self.clip_trust else trust
        return torch.where((weight > 0) & (gradient > 0), trust, 1.0).unbind()
