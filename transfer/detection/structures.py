"""Types that the data, the detector and the evaluation share."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# The outline of one object: polygons, each (2p,) float64 x0, y0, x1, y1, ...; or a bitmap (H, W) bool.
Mask = list[np.ndarray] | np.ndarray


class Target(NamedTuple):
    """Ground truth of one training image, in pixels of the resized image. Crowds are left out.

    Attributes:
        boxes: (n, 4) float32, x0, y0, x1, y1.
        classes: (n,) int64, counted from 0 in the order of the category ids.
        masks: n outlines, or an empty list if the detector predicts no masks.
    """

    boxes: Tensor
    classes: Tensor
    masks: list[Mask]

    def to(self, device: torch.device | str) -> "Target":
        """Copy boxes and classes to a device. The masks stay in the memory of the CPU."""
        return self._replace(boxes=self.boxes.to(device), classes=self.classes.to(device))


class Image(NamedTuple):
    """One resized image.

    Attributes:
        pixels: (3, h, w) uint8, RGB.
        height, width: size of the image file in pixels.
        image_id: id of the image in the annotations.
        target: None for a test image.
    """

    pixels: Tensor
    height: int
    width: int
    image_id: int
    target: Target | None


class Whole(NamedTuple):
    """The batch that some images are a part of. With it, the losses of all parts add up to those of the batch.

    Attributes:
        images: number of images.
        height, width: size in pixels that the images are padded to.
        regions, foreground: number of regions that the losses are computed on, and of those that are foreground.
    """

    images: int
    height: int
    width: int
    regions: int
    foreground: int


class Scores(NamedTuple):
    """The scores of the detections in all test images, from 0 to 100.

    Attributes:
        metrics: the values of a record, such as "bbox/AP".
        per_category: {"bbox": {name of a category: AP}}, and the same for "segm", or for "bbox/AP50" and "bbox/AP75".
    """

    metrics: dict[str, float]
    per_category: dict[str, dict[str, float]]


class Detections(NamedTuple):
    """Detections in one image, in pixels of the image file, in order of decreasing score.

    Attributes:
        boxes: (k, 4) float32, x0, y0, x1, y1.
        scores: (k,) float32.
        classes: (k,) int64.
        masks: (k, m, m) float32 probabilities inside the boxes, the input of `masks.paste`; None if the detector
            predicts no masks.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None
