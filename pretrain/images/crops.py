"""Crop images to the uint8 squares that become views: random boxes, and antialiased resizing of their content.

`crop` cuts one image, in a data worker. `ResidentImages` cuts a whole batch of small images on the device that holds
all images. Both give the same pixels, bit for bit.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional

from intl_bench.core.copies import send
from pretrain.images.views import ViewConfig

_RATIO = (3 / 4, 4 / 3)
_TRIES = 10
BOX_DRAWS = 2 * _TRIES + 2  # random numbers per box


def draw_shapes(config: ViewConfig, uniform: np.ndarray) -> np.ndarray:
    """Draw the part of random boxes that does not depend on the size of an image.

    Args:
        uniform: (m, BOX_DRAWS), in [0, 1).

    Returns:
        (m, BOX_DRAWS): the heights of ten boxes and then their widths, relative to the square root of the image area;
        then the vertical and the horizontal position of the chosen box within the image, 0 to 1.
    """
    share = config.min_scale + (config.max_scale - config.min_scale) * uniform[:, :_TRIES]
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    ratio = np.exp(low + (high - low) * uniform[:, _TRIES : 2 * _TRIES])
    return np.concatenate([np.sqrt(share / ratio), np.sqrt(share * ratio), uniform[:, 2 * _TRIES :]], axis=1)


def fit_boxes(shapes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Choose boxes in images of one size, with the distribution of torchvision's `RandomResizedCrop`.

    The area is uniform. The logarithm of the aspect ratio is uniform between the logarithms of 3/4 and 4/3. The first
    of ten boxes that fits is chosen. If no box fits, the result is the largest central box with an allowed ratio.

    Args:
        shapes: (m, BOX_DRAWS) of `draw_shapes`.

    Returns:
        (m, 4) int64: top, left, height, width.
    """
    room = np.array([[height], [width]])
    sides = np.rint(shapes[:, : 2 * _TRIES] * math.sqrt(height * width)).reshape(-1, 2, _TRIES)
    inside = (sides >= 1) & (sides <= room)
    fits = inside[:, 0] & inside[:, 1]
    rows, first = np.arange(len(shapes)), fits.argmax(axis=1)
    sides = sides[rows, :, first]
    corners = np.floor(shapes[:, 2 * _TRIES :] * (room[:, 0] + 1 - sides))
    boxes = np.concatenate([corners, sides], axis=1).astype(np.int64)
    if not (found := fits[rows, first]).all():
        h, w = min(height, round(width / _RATIO[0])), min(width, round(height * _RATIO[1]))
        boxes[~found] = (height - h) // 2, (width - w) // 2, h, w
    return boxes


def crop(image: np.ndarray, box: Sequence[int], size: int, interpolation: str = "bicubic") -> Tensor:
    """Cut `box` (top, left, height, width) out of a uint8 image (H, W, 3) and resize it to (3, size, size) uint8.

    The resize is antialiased, as in PIL. For bicubic interpolation of photos, one or two pixels in 100,000 differ from
    PIL by more than two levels.
    """
    top, left, height, width = box
    # The pixels stay in channels-last order, which torch resizes without a copy to another layout.
    pixels = torch.from_numpy(image[top : top + height, left : left + width])[None].permute(0, 3, 1, 2)
    return F.interpolate(pixels, (size, size), mode=interpolation, antialias=True)[0]


def center(image: np.ndarray, resize: int | None, crop: int | None, interpolation: str = "bilinear") -> Tensor:
    """Return the test view (3, height, width) uint8 of a uint8 image (H, W, 3), without randomness.

    Args:
        resize: length of the shorter side after torchvision's antialiased `Resize`; None keeps the size.
        crop: side of torchvision's `CenterCrop`; None keeps the whole image.
        interpolation: of the resize, "bicubic" or "bilinear".
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    if resize is not None:
        mode = functional.InterpolationMode(interpolation)
        pixels = functional.resize(pixels, [resize], interpolation=mode, antialias=True)
    return pixels if crop is None else functional.center_crop(pixels, [crop, crop])


class ResidentImages:
    """Small images of one size that stay on a device, which crops them without a synchronization with the host.

    A resize is two matrix products, one for each direction. The matrices hold the 16-bit integer weights of PyTorch's
    uint8 CPU kernel. Therefore the sums are exact in float64, and the results are those of that kernel.

    Args:
        images: (n, H, W, 3) uint8.
    """

    def __init__(self, images: np.ndarray, device: torch.device) -> None:
        self.images = torch.from_numpy(images).to(device)
        self.weights = functools.lru_cache(functools.partial(_weights, max(images.shape[1:3]), device))

    def crops(self, places: Tensor, size: int, interpolation: str = "bicubic") -> Tensor:
        """Return the crops (b, 3, size, size) uint8 that `crop` would give.

        Args:
            places: (b, 5) int64, the index of an image and then its box (top, left, height, width).
            size: side of a crop in pixels.
            interpolation: "bicubic" or "bilinear".
        """
        _, height, width, _ = self.images.shape
        weights = self.weights(size, interpolation)
        sent = send(places, self.images.device)
        which, top, left, h, w = sent[:, :, None, None].unbind(1)
        # The indices go beyond the box. Pixels outside of it have weight 0; `clamp_` keeps the indices valid.
        rows = (top + torch.arange(height, device=sent.device)[:, None]).clamp_(max=height - 1)
        columns = (left + torch.arange(width, device=sent.device)).clamp_(max=width - 1)
        pixels = self.images[which, rows, columns].movedim(3, 1).to(torch.float64).flatten(1, 2)  # (b, 3 H, W)
        pixels = _levels(pixels @ weights[w[:, 0, 0], :width]).unflatten(1, (3, height))
        across = pixels.transpose(2, 3).flatten(1, 2)  # (b, 3 size, H)
        levels = _levels(across @ weights[h[:, 0, 0], :height]).unflatten(1, (3, size))
        return levels.to(torch.uint8).transpose(2, 3).contiguous()


def _levels(sums: Tensor) -> Tensor:
    return sums.add_(0.5).floor_().clamp_(0, 255)


def _weights(longest: int, device: torch.device, size: int, interpolation: str) -> Tensor:
    """Return the weights that resize rows of 0, 1, ..., `longest` pixels to `size`, (longest + 1, longest, size)."""
    weights = torch.zeros(longest + 1, longest, size, dtype=torch.float64)
    for length in range(1, longest + 1):
        pixels = torch.eye(length, dtype=torch.float64)[None, None]
        exact = F.interpolate(pixels, (length, size), mode=interpolation, antialias=True)[0, 0]
        # The number of fractional bits is the largest that keeps every rounded weight below 2**15. Halves are rounded
        # away from 0.
        unit = 2.0 ** math.floor(math.log2((2**15 - 0.5) / float(exact.max())))
        weights[length, :length] = (exact.abs() * unit + 0.5).floor().copysign(exact) / unit
    return weights.to(device)
