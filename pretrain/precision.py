"""The precision of computations that half precision would spoil."""

import torch


def at_least_float32(z: torch.Tensor) -> torch.Tensor:
    """Converts `z` to float32, unless it is float64 already."""
    return z.to(torch.promote_types(z.dtype, torch.float32))
