"""Targets of the mask head, and the conversion of its predictions to masks of the image."""

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as coco_mask
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from transfer.detection.structures import Mask


def crop_targets(masks: Sequence[Mask], objects: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crop the mask of an object to each box, at the resolution of the mask head.

    Polygons are moved and scaled with the box and then rasterized by pycocotools. Bitmaps are averaged by RoIAlign, and
    a pixel is set if its value is at least 0.5. Both are the same as in Detectron2.

    Args:
        masks: outlines of the objects of the image; bitmaps are (H, W).
        objects: (n,) int64, index of the object of each box.
        boxes: (n, 4) float32 on the CPU, in pixels of the image.
        size: side of a target in pixels.

    Returns:
        (n, size, size) bool on the CPU.
    """
    targets = torch.zeros((len(boxes), size, size), dtype=torch.bool)
    bitmaps: list[np.ndarray] = []
    rows: list[int] = []
    places: list[int] = []
    place_of_object: dict[int, int] = {}
    for row, (index, box) in enumerate(zip(objects.tolist(), boxes.numpy(), strict=True)):
        mask = masks[index]
        if isinstance(mask, list):
            targets[row] = torch.from_numpy(_rasterize(mask, box, size))
            continue
        if index not in place_of_object:
            place_of_object[index] = len(bitmaps)
            bitmaps.append(mask)
        rows.append(row)
        places.append(place_of_object[index])
    if rows:
        stack = torch.from_numpy(np.stack(bitmaps).astype(np.float32))[:, None]
        regions = torch.cat([torch.tensor(places, dtype=torch.float32)[:, None], boxes[rows]], dim=1)
        targets[rows] = roi_align(stack, regions, size, aligned=True)[:, 0] >= 0.5
    return targets


def _rasterize(polygons: list[np.ndarray], box: np.ndarray, size: int) -> np.ndarray:
    """Rasterize the part of polygons inside `box`, (4,) float32, to a bitmap (size, size) bool.

    A side of the box below 0.1 pixels counts as 0.1 pixels.
    """
    if not polygons:
        return np.zeros((size, size), bool)
    scale = np.float32(size) / np.maximum(box[2:] - box[:2], np.float32(0.1))
    moved = [((polygon.reshape(-1, 2) - box[:2]) * scale).ravel() for polygon in polygons]
    encodings = coco_mask.frPyObjects(moved, size, size)
    return coco_mask.decode(coco_mask.merge(encodings)).astype(bool)


@torch.inference_mode()
def paste(masks: Tensor, boxes: Tensor, height: int, width: int, *, chunk_bytes: int = 2**28) -> Tensor:
    """Resample masks to the resolution of the image.

    The values are interpolated bilinearly at the exact positions of the boxes. A pixel is set if its value is at least
    0.5.

    Args:
        masks: (k, m, m) probabilities inside the boxes.
        boxes: (k, 4) in pixels of an image of `height` x `width`.
        chunk_bytes: on a GPU, the largest size of the sampling grid in bytes. On a CPU one mask is pasted at a time.

    Returns:
        (k, height, width) bool.
    """
    pasted = torch.zeros((len(masks), height, width), dtype=torch.bool, device=masks.device)
    masks, boxes = masks.float(), boxes.float()
    if masks.device.type == "cpu":
        # Only the pixels of the box and one pixel around it: farther out all values are below 0.5.
        low = (boxes[:, :2].floor() - 1).clamp(min=0).int().tolist()
        high = (boxes[:, 2:].ceil() + 1).int().tolist()
        for index, (x0, y0), (x1, y1) in zip(range(len(masks)), low, high, strict=True):
            rows, columns = slice(y0, min(y1, height)), slice(x0, min(x1, width))
            one = slice(index, index + 1)
            pasted[index, rows, columns] = _sample(masks[one], boxes[one], rows, columns)[0] >= 0.5
        return pasted
    count = max(1, chunk_bytes // (8 * height * width))
    for first in range(0, len(masks), count):
        chunk = slice(first, first + count)
        pasted[chunk] = _sample(masks[chunk], boxes[chunk], slice(0, height), slice(0, width)) >= 0.5
    return pasted


def _sample(masks: Tensor, boxes: Tensor, rows: slice, columns: slice) -> Tensor:
    """Interpolate masks (k, m, m) at the centers of some pixels of the image.

    Returns:
        (k, number of rows, number of columns).
    """
    y = torch.arange(rows.start, rows.stop, device=masks.device) + 0.5
    x = torch.arange(columns.start, columns.stop, device=masks.device) + 0.5
    # In the coordinates of `grid_sample`, -1 and 1 are the edges of the box.
    y = (y - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2]) * 2 - 1
    x = (x - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1]) * 2 - 1
    shape = (len(masks), y.shape[1], x.shape[1])
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
