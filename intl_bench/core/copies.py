"""Copies between the host and its device. Neither of the two waits for them."""

import dataclasses

import torch
from torch import Tensor


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor in memory from which the device copies in the background: page-locked memory for a GPU."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device` without waiting."""
    return pinned(tensor, device).to(device, non_blocking=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetched:
    """Numbers on their way to the host.

    Attributes:
        host: the numbers. They are valid after the event `copied`.
        copied: the end of the copy. None if the numbers were on the host.
    """

    host: Tensor
    copied: torch.cuda.Event | None

    def read(self) -> Tensor:
        """Return the numbers. This waits for the work before them, but not for later work of the device."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.host


def fetch(numbers: Tensor) -> Fetched:
    """Start the copy of `numbers` to the host."""
    if numbers.device.type != "cuda":
        return Fetched(host=numbers, copied=None)
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return Fetched(host=host, copied=copied)
