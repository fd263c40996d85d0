"""Scores of classifiers, and the description of their normalization."""

from collections.abc import Sequence

import torch

from pretrain.images.data import DataConfig, normalization


def correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Count the correct labels.

    Args:
        logits: (n, classes).
        labels: (n,) int64.

    Returns:
        (2,) int64: for how many rows the label has the largest logit, and one of the five largest. With five classes or
        fewer the second number has no meaning, and `percentages` omits it.
    """
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([best[:, :1].sum(), best.sum()])


def percentages(counts: Sequence[float], images: int, classes: int) -> dict[str, float]:
    """Return `top1`, and `top5` if there are more than five classes.

    Args:
        counts: the two counts of `correct`.
        images: number of test images.
        classes: number of classes.
    """
    return {
        name: 100 * count / images for name, count in zip(("top1", "top5")[: 1 + (classes > 5)], counts, strict=False)
    }


def last_and_best(history: Sequence[dict[str, float]]) -> tuple[dict[str, float], int]:
    """Return the scores of the last and of the best epoch, and the number of the best epoch.

    The best epoch is the first with the highest top-1 accuracy on the test images. The authors report it. It is
    selected with the test labels, so the tables show the last epoch.

    Args:
        history: the scores after each epoch.

    Returns:
        the scores of the last epoch, with those of the best epoch as `best_...`; and the best epoch, counted from 1.
    """
    best = max(range(len(history)), key=lambda epoch: history[epoch]["top1"])
    return history[-1] | {f"best_{name}": value for name, value in history[best].items()}, best + 1


def describe_normalization(data: DataConfig) -> str:
    """Return mean and standard deviation per channel as text for a footnote."""
    mean, std = normalization(data)
    return f"mean {' '.join(map(str, mean))}, std {' '.join(map(str, std))}"
