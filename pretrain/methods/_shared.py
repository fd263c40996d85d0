"""What several methods share: precision, pairs of views, a moving average of weights, a queue that fits."""

import itertools
from collections.abc import Callable, Iterable

import torch


def pairs_mean(outputs: torch.Tensor, distance: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Mean of a symmetric distance over all pairs of views, of which `outputs` is the stack."""
    return torch.stack([distance(a, b) for a, b in itertools.combinations(outputs, 2)]).mean()


@torch.no_grad()
def move_average(target: Iterable[torch.Tensor], online: Iterable[torch.Tensor], momentum: float) -> None:
    """target <- momentum target + (1 - momentum) online, in place, parameter by parameter in the same order."""
    torch._foreach_lerp_(list(target), list(online), 1 - momentum)


def require_queue(queue: int, *, batch_size: int, images: int, too_large: str) -> None:
    """Raises ValueError unless a queue of embeddings is of whole batches and not larger than the data set.

    Args:
        too_large: what would be wrong with a larger one, as the end of a sentence.
    """
    if queue <= images and queue % batch_size == 0:
        return
    wrong = (
        f"larger than the data set of {images} images, so that {too_large}"
        if queue > images
        else f"not a multiple of the batch of {batch_size}"
    )
    fitting = min(queue, images) // batch_size * batch_size
    raise ValueError(f"queue={queue}: {wrong}; use a multiple of batch_size, at most {fitting or batch_size}")
