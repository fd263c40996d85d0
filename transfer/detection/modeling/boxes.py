"""Overlap, regression, matching and sampling of boxes (n, 4), x0, y0, x1, y1 in pixels, as in Detectron2."""

import math

import torch
from torch import Tensor

# The largest logarithm of a scale. It prevents an overflow of `exp` in the first steps of training.
_MAX_LOG_SCALE = math.log(1000 / 16)

IGNORED, BACKGROUND, FOREGROUND = -1, 0, 1


def area(boxes: Tensor) -> Tensor:
    """Compute the areas (n,) of boxes (n, 4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Compute the intersection over union of boxes (n, 4) and (m, 4).

    Returns:
        (n, m), 0 for two boxes without a common area. The area of an empty box is 0.
    """
    lower = torch.maximum(first[:, None, :2], second[:, :2])
    upper = torch.minimum(first[:, None, 2:], second[:, 2:])
    sides = (upper - lower).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(first)[:, None] + area(second) - intersection
    return torch.where(intersection > 0, intersection / union, 0.0)


def encode(boxes: Tensor, targets: Tensor, weights: tuple[float, float]) -> Tensor:
    """Compute the deltas that transform `boxes` (n, 4) to `targets` (n, 4).

    Args:
        weights: factors of the shifts and of the logarithms.

    Returns:
        (n, 4): the shifts of the center in x and y, divided by the size of the box, and the logarithms of the scales
        of width and height.
    """
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = targets[:, :2] + 0.5 * target_size - (boxes[:, :2] + 0.5 * size)
    return torch.cat([weights[0] * shift / size, weights[1] * torch.log(target_size / size)], dim=1)


def decode(deltas: Tensor, boxes: Tensor, weights: tuple[float, float]) -> Tensor:
    """Apply deltas (n, k, 4) in the form of `encode` to boxes (n, 4).

    A width or height grows by a factor of at most 1000 / 16.

    Returns:
        (n, k, 4) float32 for deltas of any type.
    """
    shift, scale = deltas[..., :2].float() / weights[0], deltas[..., 2:].float() / weights[1]
    size = (boxes[:, 2:] - boxes[:, :2])[:, None]
    center = boxes[:, None, :2] + 0.5 * size + shift * size
    half = 0.5 * (scale.clamp(max=_MAX_LOG_SCALE).exp() * size)
    return torch.cat([center - half, center + half], dim=-1)


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """Clip boxes (..., 4) to an image of `height` x `width` pixels."""
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def nonempty(boxes: Tensor) -> Tensor:
    """Tell which boxes (n, 4) have a positive width and height, (n,) bool."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def match(overlaps: Tensor, low: float, high: float, *, low_quality: bool = False) -> tuple[Tensor, Tensor]:
    """Assign an object and a label to every box.

    The object of a box is the one that it overlaps most. Without objects, every box is background.

    Args:
        overlaps: (objects, n) intersection over union.
        low, high: a box is background if its overlap is below `low`, foreground if it is at least `high`, and ignored
            otherwise.
        low_quality: whether the boxes that overlap an object most are foreground at any overlap. The object of such a
            box does not change (Faster R-CNN, section 3.1.2).

    Returns:
        (n,) int64 indices of objects, 0 if there is no object; (n,) int64 labels FOREGROUND, BACKGROUND or IGNORED.
    """
    if not len(overlaps):
        zeros = torch.zeros(overlaps.shape[1], dtype=torch.int64, device=overlaps.device)
        return zeros, zeros.clone()
    best, objects = overlaps.max(dim=0)
    labels = torch.full_like(objects, IGNORED)
    labels[best < low] = BACKGROUND
    labels[best >= high] = FOREGROUND
    if low_quality:
        labels[(overlaps == overlaps.amax(dim=1, keepdim=True)).any(dim=0)] = FOREGROUND
    return objects, labels


def sample(
    labels: list[Tensor], count: int, fraction: float, generators: list[torch.Generator]
) -> list[tuple[Tensor, Tensor]]:
    """Draw at most `count` boxes of each image: foreground up to the share `fraction`, then background.

    Args:
        labels: labels (n,) of `match`, for each image.
        generators: one generator for each image, on the device of the labels.

    Returns:
        For each image, the positions of the drawn foreground and of the drawn background, both int64.
    """
    kinds = [torch.stack([own == FOREGROUND, own == BACKGROUND]) for own in labels]
    # The draws depend on the counts, so the host must wait for the GPU. It waits only here, once for all images.
    counts = torch.stack([kind.sum(dim=1) for kind in kinds]).cpu().tolist()
    drawn = []
    for kind, (foreground_count, background_count), generator in zip(kinds, counts, generators, strict=True):
        wanted = min(foreground_count, int(count * fraction))
        foreground = _draw(kind[0], foreground_count, wanted, generator)
        background = _draw(kind[1], background_count, count - wanted, generator)
        drawn.append((foreground, background))
    return drawn


def _draw(mask: Tensor, true_count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Draw at most `wanted` positions of `mask` (n,) bool, which is true at `true_count` positions."""
    positions = torch.nonzero_static(mask, size=true_count)[:, 0]
    return positions[torch.randperm(true_count, generator=generator, device=mask.device)[:wanted]]
