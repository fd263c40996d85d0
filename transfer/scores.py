"""Scores of classifiers, and the words for their normalization."""

from collections.abc import Sequence

import torch

from pretrain.images.data import DataConfig, normalization


def correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many labels (n,) are the largest of their row of logits (n, classes), and among its five largest: (2,) int64.

    With five classes or fewer the second number says nothing; `percentages` leaves it out.
    """
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([best[:, :1].sum(), best.sum()])


def percentages(counts: Sequence[float], images: int, classes: int) -> dict[str, float]:
    """`top1`, and `top5` where there are more than five classes, of the two counts of `correct`."""
    return {
        name: 100 * count / images for name, count in zip(("top1", "top5")[: 1 + (classes > 5)], counts, strict=False)
    }


def last_and_best(history: Sequence[dict[str, float]]) -> tuple[dict[str, float], int]:
    """The scores of the last epoch, beside them as `best_...` those of the best one, and that epoch's number from 1.

    The best epoch is the first with the highest top-1 on the test images, as the authors choose it: a choice that has
    seen the test labels, so it is the last epoch that stands for the method.
    """
    best = max(range(len(history)), key=lambda epoch: history[epoch]["top1"])
    return history[-1] | {f"best_{name}": value for name, value in history[best].items()}, best + 1


def describe_normalization(data: DataConfig) -> str:
    """Mean and standard deviation per channel, for a footnote."""
    mean, std = normalization(data)
    return f"mean {' '.join(map(str, mean))}, std {' '.join(map(str, std))}"
