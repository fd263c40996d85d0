"""Optimizers: SGD as INTL's authors use it (their `main.py`), LARS and Adam for the other methods' recipes."""

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
    """The optimizer of the trainable parameters, learning rate 0 until the loop sets it to `group_lr`.

    Args:
        name: one of `NAMES`.
        momentum: of SGD and LARS.
        decay_one_dimensional: whether biases and batch norms decay, and LARS scales them, like all others.
        one_dimensional_lr_ratio: their learning rate, as a share of the others'.
        trust_coefficient, clip_trust: see `LARS`.
        constant_lr: parameters whose learning rate follows no schedule.
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
        for parameter in trainable:  # from the start, so that a checkpoint has one size
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return optimizer
    if name == "lars":
        optimizer = LARS(groups, momentum=momentum, trust_coefficient=trust_coefficient, clip_trust=clip_trust)
    else:
        # The fused kernel is the one that a gradient scaler does not have to wait for.
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
    # A first step that the scaler skips would leave PyTorch's momentum uninitialized; from zero it is the gradient.
    for parameter in trainable:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def group_lr(group: dict[str, Any], *, scheduled: float, base: float) -> float:
    """The learning rate of a group of `build_optimizer` where the schedule of `base` stands at `scheduled`."""
    return float(group["lr_ratio"] * (base if group["constant"] else scheduled))


def set_lr(group: dict[str, Any], lr: float, *, in_tensor: bool) -> None:
    """Sets a group's learning rate.

    Args:
        in_tensor: it lives in one tensor on the parameters' device, where a recorded step reads it anew each time.
    """
    if not in_tensor:
        group["lr"] = lr
        return
    if not isinstance(group["lr"], torch.Tensor):
        weight = group["params"][0]
        # A GPU's fused kernels read float32; a CPU's take the number out, of which float64 keeps all digits.
        dtype = torch.float32 if weight.is_cuda else torch.float64
        group["lr"] = torch.zeros((), dtype=dtype, device=weight.device)
    group["lr"].fill_(lr)


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose gradients are scaled tensor by tensor (You et al., arXiv 1708.03888, Eqn. 6).

    A gradient, weight decay included, is multiplied by trust |w| / (|g| + decay |w|); with `clip_trust` it never
    moves a weight further than SGD would (solo-learn's `clip_lr`, solo/utils/lars.py). Groups without "scaled" are
    left to SGD.
    """

    # A gradient scaler then hands over whether a gradient overflowed, instead of waiting for the device to know it.
    _step_supports_amp_scaling = True

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float, trust_coefficient: float, clip_trust: bool
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum})
        self.trust_coefficient, self.clip_trust = trust_coefficient, clip_trust

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; none where a gradient scaler found an overflow. Overwrites the gradients."""
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
        """Each tensor's factor, a scalar; all are computed at once, for one launch instead of one a tensor."""
        weight, gradient = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(gradients))
        trust = self.trust_coefficient * weight / (gradient + decay * weight + 1e-8)
        trust = (trust / lr).clamp_max(1) if self.clip_trust else trust
        return torch.where((weight > 0) & (gradient > 0), trust, 1.0).unbind()
