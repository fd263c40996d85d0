"""Batch normalisation over the batch of all processes, on GPUs (PyTorch's own) and on CPUs (which that refuses)."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from intl_bench.core.distributed import stack


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """`torch.nn.SyncBatchNorm` for CPU tensors: (N, C) or (N, C, H, W); N may differ between the processes."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"expected at least two dimensions, got {tuple(x.shape)}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_input_dim(x)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        # Half precision (autocast) is for the values alone; statistics are float32, as in PyTorch's own.
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        # Two passes: the variance from centred values keeps its digits where the mean is large.
        n = int(stack(torch.tensor(x.numel() // x.shape[1])).sum())
        mean = stack(values.sum(dims)).sum(0) / n
        centered = values - mean.view(shape)
        variance = stack(centered.square().sum(dims)).sum(0) / n
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.detach(), self.momentum or 0.1)
            self.running_var.lerp_(variance.detach() * n / (n - 1), self.momentum or 0.1)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centered * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


def synchronize(module: nn.Module, device: torch.device) -> nn.Module:
    """Replaces every batch norm of `module` by one over all processes; parameter names stay."""
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            norm = CPUSyncBatchNorm(child.num_features, eps=child.eps, momentum=child.momentum)
            norm.load_state_dict(child.state_dict())
            norm.requires_grad_(child.weight.requires_grad)
            setattr(module, name, norm)
        else:
            synchronize(child, device)
    return module
