"""Precision of computations that need more than half precision."""

import torch


def at_least_float32(z: torch.Tensor) -> torch.Tensor:
    """Convert `z` to float32; keep float64."""
    return z.to(torch.promote_types(z.dtype, torch.float32))
