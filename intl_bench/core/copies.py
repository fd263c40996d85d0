"""Copies between the host and its device that neither of the two waits for."""

import dataclasses

import torch
from torch import Tensor


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` of the CPU; for a GPU in page-locked memory, from which alone it copies in the background."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` of the CPU on `device`, without waiting."""
    return pinned(tensor, device).to(device, non_blocking=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetched:
    """Numbers on their way to the host.

    Attributes:
        host: the numbers; not to be looked at before `copied` has come.
        copied: when they have arrived; None where they were on the host all the time.
    """

    host: Tensor
    copied: torch.cuda.Event | None

    def read(self) -> Tensor:
        """The numbers; only this waits for the work before them, not for what the device was given later."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.host


def fetch(numbers: Tensor) -> Fetched:
    """Starts the copy of `numbers` to the host."""
    if numbers.device.type != "cuda":
        return Fetched(host=numbers, copied=None)
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return Fetched(host=host, copied=copied)
