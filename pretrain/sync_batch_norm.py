"""Batch normalization over the batch of all processes.

`torch.nn.SyncBatchNorm` does not support CPUs. It also searches empty parts by a boolean index three times per layer,
and each search synchronizes with the GPU.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from intl_bench.core.distributed import stack, total


class _Normalize(torch.autograd.Function):
    """Normalization by the statistics of all processes, with PyTorch's kernels and one message in each pass.

    The results are the output and the statistics: mean (C,), variance (C,) with divisor n, and n ().
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        channels, count = x.shape[1], x.numel() // x.shape[1]
        # Under autocast only the values are in half precision; the statistics are float32, as in PyTorch.
        part = x.new_zeros(2 * channels + 1, dtype=torch.promote_types(x.dtype, torch.float32))
        if count:
            # The GPU kernel accumulates half-precision values in float32.
            values = x if x.is_cuda else x.to(part.dtype)
            part[:channels], part[channels:-1] = torch.batch_norm_update_stats(values, None, None, 0.0)
            part[-1:].fill_(count)  # an assignment to an element would copy from the host
        parts = stack(part)
        means, variances, counts = parts[:, :channels], parts[:, channels:-1], parts[:, -1:]
        # The variance of each part and the distances of the means keep the digits that a sum of squares loses if the
        # mean is large (Chan, Golub & LeVeque, "Algorithms for computing the sample variance", 1983).
        n = counts.sum()
        mean = (counts * means).sum(0) / n
        variance = (counts * (variances + (means - mean).square())).sum(0) / n
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), n)
        ctx.mark_non_differentiable(mean, variance, n)
        # PyTorch's kernels divide by the number of samples, and crash if there are none.
        output = F.batch_norm(x, mean, variance, weight, bias, eps=eps) if count else torch.empty_like(x)
        return output, mean, variance, n

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, inverse, n = ctx.saved_tensors
        gradient = gradients[0]
        for_weight, for_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        if len(x):
            _, for_weight, for_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, None, None, mean, inverse, True, 0.0, [False, True, True]
            )
        along_bias, along_weight = total(torch.stack([for_bias, for_weight])) / n
        # weight / std * (gradient - along_bias - (x - mean) / std * along_weight), as two passes over memory
        shape = [1, -1, *[1] * (x.ndim - 2)]
        scale = weight * inverse
        slope = -scale * inverse * along_weight
        offset = -scale * along_bias - slope * mean
        for_x = torch.addcmul(offset.view(shape), x, slope.view(shape)).addcmul_(gradient, scale.view(shape))
        return for_x.to(x.dtype), for_weight, for_bias, None


class SyncBatchNorm(nn.BatchNorm2d):
    """Replacement of `torch.nn.SyncBatchNorm` that supports CPUs: (N, C) or (N, C, H, W).

    N may differ between the processes.
    """

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"expected at least two dimensions, got {tuple(x.shape)}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_input_dim(x)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        weight: torch.Tensor | None = self.weight
        bias: torch.Tensor | None = self.bias
        if not self.affine:
            weight = x.new_ones(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
            bias = torch.zeros_like(weight)
        output, mean, variance, n = _Normalize.apply(x, weight, bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum or 0.1)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum or 0.1)
        return output


def synchronize(module: nn.Module) -> nn.Module:
    """Replace every batch norm in `module` by one over all processes; parameter names do not change.

    Returns:
        `module`, changed in place.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            norm = SyncBatchNorm(child.num_features, eps=child.eps, momentum=child.momentum, affine=child.affine)
            norm.load_state_dict(child.state_dict())
            norm.weight, norm.bias = child.weight, child.bias  # the same parameters keep `requires_grad`
            setattr(module, name, norm)
        else:
            synchronize(child)
    return module
