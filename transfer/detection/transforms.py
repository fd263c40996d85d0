"""How an image and its objects become what the detector sees: EXIF orientation, RGB, resize, flip.

Every step gives the numbers of Detectron2's `DatasetMapper` with `ResizeShortestEdge` and `RandomFlip`.
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from intl_bench.core.errors import InputError, from_os_error
from transfer.detection import rle
from transfer.detection.annotations.objects import Annotations
from transfer.detection.structures import Mask, Target

_SMALLEST_SIDE = 1e-5  # of a box in the resized image; a smaller one is empty
_ORIENTATION = 0x0112
_TURNS = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}


def read_image(path: Path) -> Pillow.Image:
    """An image file, decoded, upright and in RGB.

    Raises:
        InputError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error
    try:
        with Pillow.open(io.BytesIO(content)) as image:
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
            upright = image if turn is None else image.transpose(turn)
            return upright.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged bytes
        raise InputError(f"{path}: not a readable image ({' '.join(str(error).split())}); restore it") from error


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Height and width after a resize of the shorter side to `min_size`, or of the longer one to `max_size` if less.

    The same float operations as `ResizeShortestEdge`, for the rounding of halves depends on their order; but a side
    that it would round to 0 is 1.
    """
    scale = min_size * 1.0 / min(height, width)
    new_height, new_width = (float(min_size), scale * width) if height < width else (scale * height, float(min_size))
    longer = max(new_height, new_width)
    if longer > max_size:
        scale = max_size * 1.0 / longer
        new_height, new_width = new_height * scale, new_width * scale
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_image(image: Pillow.Image, height: int, width: int, *, flip: bool) -> Tensor:
    """Pixels (3, height, width) uint8 after Pillow's bilinear (antialiased) resize; `flip` swaps left and right."""
    pixels = np.asarray(image.resize((width, height), Pillow.Resampling.BILINEAR))
    if flip:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def make_target(annotations: Annotations, index: int, height: int, width: int, *, flip: bool, masks: bool) -> Target:
    """Ground truth of image `index` when it is resized to (height, width): crowds and empty boxes are left out."""
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
        outlines = [_outline(annotations, i, size, (height, width), scale, flip) for i in chosen[kept].tolist()]
    if any(isinstance(outline, np.ndarray) and not outline.any() for outline in outlines):
        seen = [not isinstance(outline, np.ndarray) or bool(outline.any()) for outline in outlines]
        outlines = [outline for outline, some in zip(outlines, seen, strict=True) if some]
        kept[np.flatnonzero(kept)[~np.array(seen)]] = False
    return Target(torch.from_numpy(boxes[kept]), torch.from_numpy(annotations.classes[chosen[kept]]), outlines)


def _outline(
    annotations: Annotations,
    index: int,
    size: tuple[int, int],
    new_size: tuple[int, int],
    scale: np.ndarray,
    flip: bool,
) -> Mask:
    assert annotations.outlines is not None, "the annotations were read without masks"
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
