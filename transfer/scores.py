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


def mean_per_class(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the mean of the accuracies of the classes that occur, in percent.

    Args:
        predicted, truth: (n,) int64.
    """
    sizes = truth.bincount()
    right = truth[predicted == truth].bincount(minlength=len(sizes))
    return 100 * float((right[sizes > 0].double() / sizes[sizes > 0]).mean())


def mean_average_precision(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the mean of the 11-point average precisions of VOC 2007 over the classes that occur, in percent.

    The precision at a recall of 0, 0.1, ..., 1 is the largest at this recall or a higher one. Images of equal scores
    count together, so their order does not matter.

    Args:
        scores: (n, K).
        truth: (n, K) bool.
    """
    found = []
    for values, present in zip(scores.T.cpu(), truth.T.cpu(), strict=True):
        if not present.any():
            continue
        values, order = values.sort(descending=True)
        right = present[order].double().cumsum(0)
        ends = torch.cat([values[1:] != values[:-1], values.new_ones(1, dtype=torch.bool)]).nonzero()[:, 0]
        precision = right[ends] / (ends + 1)
        best = precision.flip(0).cummax(0).values.flip(0)
        # Whole numbers, because a recall such as 3 / 10 may round to less than 0.3.
        first = torch.searchsorted(10 * right[ends], torch.arange(11) * right[-1])
        found.append(float(best[first].mean()))
    return 100 * sum(found) / max(1, len(found))


def describe_normalization(data: DataConfig) -> str:
    """Return mean and standard deviation per channel as text for a footnote."""
    mean, std = normalization(data)
    return f"mean {' '.join(map(str, mean))}, std {' '.join(map(str, std))}"
