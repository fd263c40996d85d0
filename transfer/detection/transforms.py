"""Transformations of an image and its objects before the detector: EXIF orientation, RGB, resize, flip.

Every step gives the same numbers as Detectron2's `DatasetMapper` with `ResizeShortestEdge` and `RandomFlip`.
"""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from intl_bench.core import inputs
from intl_bench.core.errors import InputError
from pretrain.images.decode import LARGEST, decode_image
from transfer.detection import rle
from transfer.detection.annotations.objects import Annotations
from transfer.detection.structures import Mask, Target

_SMALLEST_SIDE = 1e-5  # pixels of the resized image; a box with a side of at most this length is empty


def read_image(path: Path, annotated: tuple[int, int] = (0, 0)) -> Pillow.Image:
    """Decode an image file to RGB and apply its EXIF orientation.

    Args:
        annotated: width and height that `data.max_pixels` accepted when the annotations were checked. A larger file is
            refused only if it is also above the default limit.

    Raises:
        InputError: the file cannot be read.
    """
    content = inputs.read_bytes(path)
    try:
        return decode_image(content, max(LARGEST, math.prod(annotated)), upright=True)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds of errors if the bytes are damaged
        raise InputError(f"{path}: not a readable image ({' '.join(str(error).split())}); restore it") from error


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Compute height and width after a resize.

    The shorter side becomes `min_size`, or less if the longer side would exceed `max_size`. The float operations are
    those of `ResizeShortestEdge` in the same order, because the rounding depends on them. A side that
    `ResizeShortestEdge` rounds to 0 is 1 here.
    """
    scale = min_size * 1.0 / min(height, width)
    new_height, new_width = (float(min_size), scale * width) if height < width else (scale * height, float(min_size))
    longer = max(new_height, new_width)
    if longer > max_size:
        scale = max_size * 1.0 / longer
        new_height, new_width = new_height * scale, new_width * scale
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_image(image: Pillow.Image, height: int, width: int, *, flip: bool) -> Tensor:
    """Resize an image with Pillow's bilinear (antialiased) filter, then flip it from left to right if `flip` is set.

    Returns:
        (3, height, width) uint8.
    """
    pixels = np.asarray(image.resize((width, height), Pillow.Resampling.BILINEAR))
    if flip:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def make_target(annotations: Annotations, index: int, height: int, width: int, *, flip: bool, masks: bool) -> Target:
    """Compute the ground truth of image `index` after a resize to (height, width) and a flip.

    Crowds, empty boxes and objects whose bitmap has no pixel left are left out, as in Detectron2.

    Args:
        index: index of the image in the annotations.
        masks: whether the target has masks; the annotations must have outlines then.
    """
    chosen = np.arange(annotations.first[index], annotations.last[index])
    chosen = chosen[~annotations.crowd[chosen]]
    size = int(annotations.heights[index]), int(annotations.widths[index])
    scale = np.array([width * 1.0 / size[1], height * 1.0 / size[0]])
    corners = annotations.boxes[chosen].reshape(-1, 2, 2) * scale
    if flip:
        corners[:, :, 0] = width - corners[:, ::-1, 0]
    boxes = corners.clip(0, [width, height]).reshape(-1, 4).astype(np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = (sides > _SMALLEST_SIDE).all(1)
    outlines = []
    if masks:
        outlines = [
            _transform_outline(annotations, i, size, (height, width), scale, flip) for i in chosen[kept].tolist()
        ]
    visible = [not isinstance(outline, np.ndarray) or bool(outline.any()) for outline in outlines]
    if not all(visible):
        outlines = [outline for outline, is_visible in zip(outlines, visible, strict=True) if is_visible]
        kept[np.flatnonzero(kept)[~np.array(visible)]] = False
    return Target(torch.from_numpy(boxes[kept]), torch.from_numpy(annotations.classes[chosen[kept]]), outlines)


def _transform_outline(
    annotations: Annotations,
    index: int,
    size: tuple[int, int],
    new_size: tuple[int, int],
    scale: np.ndarray,
    flip: bool,
) -> Mask:
    """Resize and flip the outline of object `index` from an image of `size` to `new_size`, both (height, width).

    Args:
        scale: (2,) factors of x and y.
    """
    assert annotations.outlines is not None, "the annotations were read without masks; expected outlines"
    parts = annotations.outlines.parts(index)
    height, width = new_size
    if annotations.outlines.is_encoded(index):
        bitmap = Pillow.fromarray(rle.to_bitmap(parts[0], *size).astype(np.uint8))
        pixels = np.asarray(bitmap.resize((width, height), Pillow.Resampling.NEAREST)) > 0
        return np.ascontiguousarray(pixels[:, ::-1] if flip else pixels)
    polygons = [part.reshape(-1, 2) * scale for part in parts]
    if flip:
        for polygon in polygons:
            polygon[:, 0] = width - polygon[:, 0]
    return [polygon.ravel() for polygon in polygons]
