"""Masks: what the mask head must predict for a box, and its predictions pasted into the image."""

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as coco_mask
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from transfer.detection.structures import Mask


def crop_targets(masks: Sequence[Mask], objects: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Every box's part of its object's mask, at the resolution of the mask head.

    Polygons are moved and scaled with the box and then rasterized by pycocotools; bitmaps are averaged by RoIAlign and
    cut at 0.5. Both are what Detectron2 does.

    Args:
        masks: of the image's objects; bitmaps (H, W).
        objects: (n,) int64, each box's object.
        boxes: (n, 4) float32 on the CPU, in pixels of the image.
        size: side of a target.

    Returns:
        (n, size, size) bool on the CPU.
    """
    targets = torch.zeros((len(boxes), size, size), dtype=torch.bool)
    bitmaps: list[np.ndarray] = []
    rows: list[int] = []
    places: list[int] = []
    seen: dict[int, int] = {}
    for row, (index, box) in enumerate(zip(objects.tolist(), boxes.numpy(), strict=True)):
        mask = masks[index]
        if isinstance(mask, list):
            targets[row] = torch.from_numpy(_rasterize(mask, box, size))
            continue
        if index not in seen:
            seen[index] = len(bitmaps)
            bitmaps.append(mask)
        rows.append(row)
        places.append(seen[index])
    if rows:
        stack = torch.from_numpy(np.stack(bitmaps).astype(np.float32))[:, None]
        regions = torch.cat([torch.tensor(places, dtype=torch.float32)[:, None], boxes[rows]], dim=1)
        targets[rows] = roi_align(stack, regions, size, aligned=True)[:, 0] >= 0.5
    return targets


def _rasterize(polygons: list[np.ndarray], box: np.ndarray, size: int) -> np.ndarray:
    """Polygons as a bitmap (size, size) of `box`, (4,) float32; a side below 0.1 counts as 0.1."""
    if not polygons:
        return np.zeros((size, size), bool)
    scale = np.float32(size) / np.maximum(box[2:] - box[:2], np.float32(0.1))
    moved = [((polygon.reshape(-1, 2) - box[:2]) * scale).ravel() for polygon in polygons]
    encodings = coco_mask.frPyObjects(moved, size, size)
    return coco_mask.decode(coco_mask.merge(encodings)).astype(bool)


@torch.inference_mode()
def paste(masks: Tensor, boxes: Tensor, height: int, width: int, *, chunk_bytes: int = 2**28) -> Tensor:
    """Masks at the resolution of the image: bilinear in between, at the boxes' exact places, cut at 0.5.

    Args:
        masks: (k, m, m) probabilities inside the boxes.
        boxes: (k, 4) in pixels of an image of `height` x `width`.
        chunk_bytes: most bytes of the sampling grid at a time, on a GPU; a CPU takes one mask after the other.

    Returns:
        (k, height, width) bool.
    """
    pasted = torch.zeros((len(masks), height, width), dtype=torch.bool, device=masks.device)
    masks, boxes = masks.float(), boxes.float()
    if masks.device.type == "cpu":
        # One pixel more than the box on every side; what lies farther out is below 0.5 anyway.
        low = (boxes[:, :2].floor() - 1).clamp(min=0).int().tolist()
        high = (boxes[:, 2:].ceil() + 1).int().tolist()
        for mask, (x0, y0), (x1, y1) in zip(range(len(masks)), low, high, strict=True):
            part = slice(y0, min(y1, height)), slice(x0, min(x1, width))
            one = slice(mask, mask + 1)
            pasted[mask, part[0], part[1]] = _sample(masks[one], boxes[one], *part)[0] >= 0.5
        return pasted
    rows = max(1, chunk_bytes // (8 * height * width))
    for first in range(0, len(masks), rows):
        some = slice(first, first + rows)
        pasted[some] = _sample(masks[some], boxes[some], slice(0, height), slice(0, width)) >= 0.5
    return pasted


def _sample(masks: Tensor, boxes: Tensor, rows: slice, columns: slice) -> Tensor:
    """Masks (k, m, m) at the centers of the pixels in `rows` and `columns` of the image: (k, rows, columns)."""
    y = torch.arange(rows.start, rows.stop, device=masks.device) + 0.5
    x = torch.arange(columns.start, columns.stop, device=masks.device) + 0.5
    # -1 and 1 are the box's edges.
    y = (y - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2]) * 2 - 1
    x = (x - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1]) * 2 - 1
    shape = (len(masks), y.shape[1], x.shape[1])
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
