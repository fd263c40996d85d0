"""Functions that several methods share: pairs of views, momentum networks, and the size of a queue."""

import copy
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn


def pairs_mean(outputs: torch.Tensor, distance: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Compute the mean of a symmetric distance over all pairs of views.

    Args:
        outputs: one entry for each view, (views, ...).
        distance: two entries -> scalar.
    """
    return torch.stack([distance(a, b) for a, b in itertools.combinations(outputs, 2)]).mean()


def momentum_copy(*networks: nn.Module) -> nn.Sequential:
    """Return a copy of the networks in sequence, without gradients; `move_average` updates it."""
    return copy.deepcopy(nn.Sequential(*networks)).requires_grad_(False)


@torch.no_grad()
def move_average(average: nn.Module, networks: Sequence[nn.Module], momentum: float) -> None:
    """Update a moving average in place: average <- momentum average + (1 - momentum) trained, for each parameter.

    Args:
        average: has the parameters of `networks`, in the same order.
        networks: the trained networks.
        momentum: 0 to 1.
    """
    trained: list[torch.Tensor] = [parameter for network in networks for parameter in network.parameters()]
    torch._foreach_lerp_(list(average.parameters()), trained, 1 - momentum)


def require_queue(queue: int, *, batch_size: int, images: int, too_large: str) -> None:
    """Raise ValueError unless a queue of embeddings holds whole batches and is not larger than the data set.

    Args:
        too_large: the consequence of a larger queue, as the end of a sentence.
    """
    if queue <= images and queue % batch_size == 0:
        return
    wrong = (
        f"larger than the data set of {images} images, so {too_large}"
        if queue > images
        else f"not a multiple of batch_size={batch_size}"
    )
    fitting = min(queue, images) // batch_size * batch_size
    raise ValueError(f"queue={queue}: {wrong}; expected a multiple of batch_size, at most {fitting or batch_size}")
