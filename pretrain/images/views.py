"""Random views of images: crops (`pretrain.images.crops`), then operations on a whole batch on the device.

Each crop is uint8 and has a row of parameters (`draw_parameters`), which `augment` applies on the device: color jitter,
grayscale, blur, solarization, flip and normalization. The order is that of the authors' src/transform.py; the
definitions are those of torchvision.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from intl_bench.core.copies import pinned, send
from intl_bench.core.ranges import Checked, Choice, NonNegative, Pixels, Share

# Columns of a row of parameters. FACTORS are brightness, contrast, saturation and hue. ORDER holds the numbers of these
# four in the order of their application. SIGMA is 0 for no blur. The others are flags, 0 or 1.
JITTER, FACTORS, ORDER, GRAY, SIGMA, SOLARIZE, FLIP = 0, slice(1, 5), slice(5, 9), 9, 10, 11, 12
PARAMETERS = 13
PARAMETER_DRAWS = PARAMETERS + 1  # random numbers per row

_CONTRAST, _SATURATION, _HUE = 1, 2, 3  # positions within FACTORS
_PART = 8 * 224 * 224  # pixels: a CPU processes a batch in parts of this size, whose intermediate results fit its cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewConfig(Checked):
    """Settings of one view of an image; except for the size, the defaults are those of the CIFAR recipe.

    Attributes:
        size: side of the square view in pixels.
        min_scale, max_scale: range of the area of the crop, as a share of the area of the image.
        interpolation: interpolation of the resize, "bicubic" or "bilinear".
        jitter_p: probability of color jitter.
        brightness, contrast, saturation, hue: strengths of the color jitter, as in torchvision's `ColorJitter`.
        grayscale_p: probability that the view loses its colors.
        blur_p: probability of Gaussian blur.
        blur_sigma_min, blur_sigma_max: range of the standard deviation of the Gaussian blur, in pixels of the view.
        solarize_p: probability that bright pixels are inverted.
        flip_p: probability of a horizontal flip.
    """

    size: Pixels = 224
    min_scale: Share = 0.08
    max_scale: Share = 1.0
    interpolation: Annotated[str, Choice(("bicubic", "bilinear"))] = "bicubic"
    jitter_p: Share = 0.8
    brightness: NonNegative = 0.4
    contrast: NonNegative = 0.4
    saturation: NonNegative = 0.2
    hue: NonNegative = 0.1
    grayscale_p: Share = 0.2
    blur_p: Share = 0.0
    blur_sigma_min: NonNegative = 0.1
    blur_sigma_max: NonNegative = 2.0
    solarize_p: Share = 0.0
    flip_p: Share = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(
                f"view min_scale={self.min_scale}, max_scale={self.max_scale}: expected 0 < min_scale <= max_scale"
            )
        if self.hue > 0.5:
            raise ValueError(f"view hue={self.hue}: expected at most 0.5")
        if not 0 < self.blur_sigma_min <= self.blur_sigma_max:
            raise ValueError(
                f"view blur_sigma_min={self.blur_sigma_min}, blur_sigma_max={self.blur_sigma_max}: "
                "expected 0 < blur_sigma_min <= blur_sigma_max"
            )
        if self.blur_p > 0 and self.size <= math.ceil(4 * self.blur_sigma_max):
            raise ValueError(
                f"view size={self.size}: expected more pixels than the reach of the blur, 4 x blur_sigma_max="
                f"{4 * self.blur_sigma_max}"
            )


def draw_parameters(config: ViewConfig, uniform: np.ndarray) -> np.ndarray:
    """Draw random parameters for `augment`, with the distributions of torchvision.

    Args:
        uniform: (m, PARAMETER_DRAWS), in [0, 1).

    Returns:
        (m, PARAMETERS) float32, one row for each view.
    """
    rows = np.empty((len(uniform), PARAMETERS), np.float32)
    strengths = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    centers = np.array([1.0, 1.0, 1.0, 0.0])
    lows = np.maximum(centers - strengths, [0, 0, 0, -0.5])
    rows[:, FACTORS] = lows + (centers + strengths - lows) * uniform[:, FACTORS]
    rows[:, ORDER] = uniform[:, ORDER].argsort(axis=1)
    sigma = config.blur_sigma_min + (config.blur_sigma_max - config.blur_sigma_min) * uniform[:, SIGMA]
    rows[:, SIGMA] = np.where(uniform[:, PARAMETERS] < config.blur_p, sigma, 0)
    flags = [JITTER, GRAY, SOLARIZE, FLIP]
    rows[:, flags] = uniform[:, flags] < [config.jitter_p, config.grayscale_p, config.solarize_p, config.flip_p]
    return rows


@torch.no_grad()
def augment(crops: Tensor, parameters: "Tensor | Prepared", mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Make views of crops on their device, without a synchronization with the host.

    Args:
        crops: (B, 3, S, S) uint8, on any device.
        parameters: (B, PARAMETERS) float32 on the CPU, a row of `draw_parameters` for each crop; or the result of
            `prepare` for these rows.
        mean, std: three values each, for pixels in 0..1.

    Returns:
        (B, 3, S, S) float32 on the device of `crops`.
    """
    output = torch.empty(crops.shape, dtype=torch.float32, device=crops.device)
    if isinstance(parameters, Prepared):
        _augment(crops.contiguous(), parameters, mean, std, output)
        return output
    part = max(1, _PART // crops[0, 0].numel()) if crops.device.type == "cpu" else len(crops)
    for pixels, rows, views in zip(crops.split(part), parameters.split(part), output.split(part), strict=True):
        _augment(pixels.contiguous(), prepare(rows, crops.device), mean, std, views)
    return output


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract `mean` from `images` (B, 3, H, W) and divide by `std`, in place; return `images`."""
    for channel in range(3):
        images[:, channel].sub_(mean[channel]).div_(std[channel])
    return images


class Prepared(NamedTuple):
    """Parameters of a batch, sorted by the position of the hue change among the four jitter operations of a sample.

    Brightness, contrast and saturation are one operation with different values, `_blend`. Each sample has three blends;
    each comes before or after the hue change. In the sorted batch, the samples whose first blend comes after the hue
    change are consecutive, and so are the others. The same holds for the second and the third blend.

    Attributes:
        indices: int64, several lists of sample indices for the device, concatenated for a single copy.
        lengths: the lengths of these lists.
        values: (B, 11), sorted: the arguments of the three blends of a sample, its hue change, the sigma of its blur.
        jittered: number of samples with color jitter; the samples without it come last.
        blended_after: for the first, second and third blend, the number of samples in which it follows the hue change.
        blur_radius: reach of the widest blur in pixels.
    """

    indices: Tensor
    lengths: list[int]
    values: Tensor
    jittered: int
    blended_after: list[int]
    blur_radius: int


def prepare(parameters: Tensor, device: torch.device) -> Prepared:
    """Do the part of `augment` that runs on the host.

    Args:
        parameters: (B, PARAMETERS), rows of `draw_parameters`.
        device: the device of the crops.
    """
    turn = (parameters[:, ORDER] == _HUE).int().argmax(dim=1).where(parameters[:, JITTER] > 0, 4)
    order = turn.argsort(stable=True)
    rows = parameters[order]
    numbers = rows[:, ORDER][rows[:, ORDER] != _HUE].view(-1, 3).long()
    own = rows[:, FACTORS].gather(1, numbers)
    blends = torch.stack([own, (1 - own) * (numbers == _CONTRAST), (1 - own) * (numbers == _SATURATION)], dim=2)
    *blended_after, jittered = [int((turn <= last).sum()) for last in range(4)]
    # The host selects the samples of each operation and sends them in one copy: no operation waits for the device.
    flipped, *chosen = ((rows[:, column] > 0).nonzero().flatten() for column in (FLIP, GRAY, SIGMA, SOLARIZE))
    origin = order.clone()
    origin[flipped] = len(order) + torch.arange(len(flipped))  # flipped crops are appended to the batch
    lists = [order[flipped], origin, order.argsort(), *chosen]
    return Prepared(
        indices=pinned(torch.cat(lists), device),
        lengths=[len(part) for part in lists],
        values=pinned(torch.cat([blends.flatten(1), rows[:, [FACTORS.start + _HUE, SIGMA]]], dim=1), device),
        jittered=jittered,
        blended_after=blended_after,
        blur_radius=math.ceil(4 * float(rows[:, SIGMA].max())),
    )


def _augment(crops: Tensor, prepared: Prepared, mean: Sequence[float], std: Sequence[float], views: Tensor) -> None:
    """Apply all operations to the crops (B, 3, S, S), and write the result to `views` (B, 3, S, S)."""
    flipped, origin, back, gray, blurred, solarized = send(prepared.indices, crops.device).split(prepared.lengths)
    values = send(prepared.values, crops.device)[..., None, None, None]
    blends, turn, sigma = values[:, :9].unflatten(1, (3, 3)), values[:, 9], values[:, 10]
    jittered, blended_after = prepared.jittered, prepared.blended_after

    crops = torch.cat([crops, crops.index_select(0, flipped).flip(3)]).index_select(0, origin)
    images = crops.to(torch.float32).div_(255)
    for blend, after in enumerate(blended_after):
        if after < jittered:
            _blend(images[after:jittered], *blends[after:jittered, blend].unbind(1))
    if jittered:
        _turn_hue(images[:jittered], turn[:jittered])
    for blend, after in enumerate(blended_after):
        if after:
            _blend(images[:after], *blends[:after, blend].unbind(1))
    if len(gray):
        _replace(images, gray, _luma(images.index_select(0, gray)).expand(-1, 3, -1, -1))
    if len(blurred):
        some, sigmas = images.index_select(0, blurred), sigma.index_select(0, blurred)
        _replace(images, blurred, _blur(some, sigmas, radius=prepared.blur_radius))
    if len(solarized):
        # A value above 1/2 is inverted, as with torchvision's threshold, the first uint8 level above one half.
        some = images.index_select(0, solarized)
        _replace(images, solarized, torch.minimum(some, 1 - some))
    torch.index_select(normalize(images, mean, std), 0, back, out=views)


def _replace(images: Tensor, rows: Tensor, changed: Tensor) -> None:
    """Overwrite the images with the indices `rows` by `changed`."""
    if images.is_cuda:
        images.index_copy_(0, rows, changed)
        return
    for row, image in zip(rows.tolist(), changed, strict=True):  # on a CPU `index_copy_` is five times slower
        images[row] = image


def _blend(images: Tensor, own: Tensor, mean: Tensor, luma: Tensor) -> None:
    """Replace each pixel by a weighted sum, clamped to 0..1, in place.

    The sum is own x pixel + mean x mean brightness of the image + luma x brightness of the pixel.

    Args:
        images: (b, 3, S, S).
        own: (b, 1, 1, 1), the factor of torchvision.
        mean, luma: (b, 1, 1, 1), one minus the factor: `mean` for contrast, `luma` for saturation; otherwise 0.
    """
    target = _luma(images)
    mean = target.mean(dim=(2, 3), keepdim=True).mul_(mean)
    images.mul_(own).add_(target.mul_(luma).add_(mean)).clamp_(0, 1)


def _turn_hue(images: Tensor, turn: Tensor) -> None:
    """Rotate the hue of `images` (b, 3, S, S) by `turn` circles (b, 1, 1, 1), in place.

    Each pixel keeps the values of its largest and its smallest channel. Red is the largest channel for a hue within a
    sixth of the circle around 0, and falls to the smallest within the next sixth. Green does so around one third of the
    circle, and blue around two thirds.
    """
    red, green, blue = images.split(1, dim=1)
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = high - low
    scale = chroma.clamp(min=1e-12).reciprocal_()
    redness, side = (red - low).mul_(scale), (green - blue).mul_(scale)
    # The distance of the hue from red is (2 - redness + (1 - |side|) (1 - 2 redness)) / 6, because |side| is 1 if red
    # is neither the largest nor the smallest channel. The sign of `side` tells which of green and blue is larger.
    even = side.abs()
    hue = torch.rsub(even, 1 / 2, alpha=1 / 6).addcmul_(redness, torch.rsub(even, 1 / 2, alpha=1 / 3), value=-1)
    peaks = torch.arange(3, device=images.device).view(3, 1, 1) / 3
    torch.add(hue.copysign_(side), turn - peaks, out=images)
    images.sub_(images.round()).abs_().mul_(-6).add_(2).clamp_(0, 1).mul_(chroma).add_(low)


def _blur(images: Tensor, sigma: Tensor, *, radius: int) -> Tensor:
    """Blur by Gaussians, with mirrored edges.

    Each Gaussian ends at 4 sigma, so the result does not depend on the other images of the batch.

    Args:
        images: (b, 3, S, S).
        sigma: (b, 1, 1, 1), standard deviations in pixels (the `radius` of PIL).
        radius: reach of the widest Gaussian in pixels.
    """
    b, c, height, width = images.shape
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2) * (offsets.abs() <= (4 * sigma).ceil())
    weights = (weights / weights.sum(dim=3, keepdim=True)).repeat_interleave(c, dim=0)
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect").flatten(0, 1)[None]
    with torch.autocast(images.device.type, enabled=False):
        rows = F.conv2d(padded, weights, groups=b * c)
        return F.conv2d(rows, weights.mT, groups=b * c).view(b, c, height, width)


def _luma(images: Tensor) -> Tensor:
    """Return the brightness (b, 1, S, S) with the weights of torchvision."""
    red, green, blue = images.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
