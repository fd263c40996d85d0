"""Boxes (n, 4), x0, y0, x1, y1 in pixels: overlap, regression, matching and sampling, as Detectron2 computes them."""

import math

import torch
from torch import Tensor

# Width and height grow by a factor of at most 1000 / 16: a network in its first steps must not overflow exp.
_MAX_LOG_SCALE = math.log(1000 / 16)

IGNORED, BACKGROUND, FOREGROUND = -1, 0, 1


def _area(boxes: Tensor) -> Tensor:
    """(n,) areas."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of (n, 4) and (m, 4) boxes, (n, m); 0 where they do not meet, empty boxes included."""
    lower = torch.maximum(first[:, None, :2], second[:, :2])
    upper = torch.minimum(first[:, None, 2:], second[:, 2:])
    sides = (upper - lower).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    union = _area(first)[:, None] + _area(second) - intersection
    return torch.where(intersection > 0, intersection / union, 0.0)


def encode(boxes: Tensor, targets: Tensor, weights: tuple[float, float]) -> Tensor:
    """The regression (n, 4) that leads from `boxes` to `targets`: shifts in box sizes, logarithms of the scales.

    Args:
        weights: what the shifts and the logarithms are multiplied by.
    """
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = targets[:, :2] + 0.5 * target_size - (boxes[:, :2] + 0.5 * size)
    return torch.cat([weights[0] * shift / size, weights[1] * torch.log(target_size / size)], dim=1)


def decode(deltas: Tensor, boxes: Tensor, weights: tuple[float, float]) -> Tensor:
    """Applies regressions (n, k, 4) of `encode` to boxes (n, 4): (n, k, 4) float32, whatever the input's type."""
    shift, scale = deltas[..., :2].float() / weights[0], deltas[..., 2:].float() / weights[1]
    size = (boxes[:, 2:] - boxes[:, :2])[:, None]
    center = boxes[:, None, :2] + 0.5 * size + shift * size
    half = 0.5 * (scale.clamp(max=_MAX_LOG_SCALE).exp() * size)
    return torch.cat([center - half, center + half], dim=-1)


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes (..., 4) cut at the borders of an image."""
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def nonempty(boxes: Tensor) -> Tensor:
    """(n,) bool: both sides longer than 0."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def match(overlaps: Tensor, low: float, high: float, *, low_quality: bool = False) -> tuple[Tensor, Tensor]:
    """Gives every box one object and a label.

    Args:
        overlaps: (objects, n) intersection over union.
        low, high: below `low` a box is background, from `high` on foreground, ignored between them.
        low_quality: every object also makes those boxes foreground that overlap it most; such a box keeps the object
            that it overlaps most itself (Faster R-CNN, section 3.1.2).

    Returns:
        (n,) int64 objects, 0 where there are none; (n,) int64 labels FOREGROUND, BACKGROUND or IGNORED.
    """
    if not len(overlaps):
        nothing = torch.zeros(overlaps.shape[1], dtype=torch.int64, device=overlaps.device)
        return nothing, nothing.clone()
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
    """Draws at most `count` boxes of each image, of which at most `fraction` are foreground and the rest background.

    Args:
        labels: of `match`, (n,) for each image.
        generators: one for each image, on the same device.

    Returns:
        Of each image the positions of the foreground and of the background drawn, both int64.
    """
    kinds = [torch.stack([some == FOREGROUND, some == BACKGROUND]) for some in labels]
    # The host waits here alone, once for all images: what is drawn depends on how many there are.
    counts = torch.stack([kind.sum(dim=1) for kind in kinds]).cpu().tolist()
    drawn = []
    for kind, numbers, generator in zip(kinds, counts, generators, strict=True):
        taken = min(numbers[0], int(count * fraction))
        foreground, background = (
            _draw(one, number, most, generator)
            for one, number, most in zip(kind, numbers, (taken, count - taken), strict=True)
        )
        drawn.append((foreground, background))
    return drawn


def _draw(where: Tensor, number: int, most: int, generator: torch.Generator) -> Tensor:
    """At most `most` of the `number` positions at which `where` (n,) bool is true, in random order."""
    places = torch.nonzero_static(where, size=number)[:, 0]
    return places[torch.randperm(number, generator=generator, device=where.device)[:most]]
