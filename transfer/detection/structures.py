"""What passes between the data, the detector and the evaluation."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# One object's outline: polygons, each (2p,) float64 x0, y0, x1, y1, ...; or a bitmap (H, W) bool.
Mask = list[np.ndarray] | np.ndarray


class Target(NamedTuple):
    """Ground truth of one training image, in pixels of the image as the network sees it; crowds are left out.

    Attributes:
        boxes: (n, 4) float32, x0, y0, x1, y1.
        classes: (n,) int64, from 0 on in the order of the category ids.
        masks: n outlines; none where the detector predicts no masks.
    """

    boxes: Tensor
    classes: Tensor
    masks: list[Mask]

    def to(self, device: torch.device | str) -> "Target":
        """Boxes and classes on a device; masks stay on the host."""
        return self._replace(boxes=self.boxes.to(device), classes=self.classes.to(device))


class Image(NamedTuple):
    """One image as the network sees it.

    Attributes:
        pixels: (3, h, w) uint8, RGB, resized.
        height, width: of the image file.
        image_id: as in the annotations.
        target: None for a test image.
    """

    pixels: Tensor
    height: int
    width: int
    image_id: int
    target: Target | None


class Detections(NamedTuple):
    """What was found in one image, best score first, in pixels of the image file.

    Attributes:
        boxes: (k, 4) float32, x0, y0, x1, y1.
        scores: (k,) float32.
        classes: (k,) int64.
        masks: (k, m, m) float32 probabilities inside the boxes, for `masks.paste`; None for a detector of boxes alone.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None
