"""Random views of an image: a data worker crops, the device does the rest for a whole batch at once.

A worker draws every random number of a view (`random_resized_crop_box`, `draw_parameters`) and ships the crop as uint8
with one row of parameters; `augment` applies these on the device: colour jitter, grayscale, blur, solarisation, flip
and normalisation, in the order of the authors' src/transform.py and with torchvision's definitions.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional

# The columns of a row of parameters. FACTORS are brightness, contrast, saturation and hue; ORDER says which of these
# four comes first, second, ...; SIGMA is 0 where there is no blur; the others are flags, 0 or 1.
JITTER, FACTORS, ORDER, GRAY, SIGMA, SOLARIZE, FLIP = 0, slice(1, 5), slice(5, 9), 9, 10, 11, 12
PARAMETERS = 13

_RATIO = (3 / 4, 4 / 3)
_PART = 16 * 224 * 224  # pixels; a CPU takes a batch in parts of this size, whose intermediate results fit its cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How one view of an image is made; the defaults are the CIFAR recipe's but for the size.

    Attributes:
        size: side of the square view, in pixels.
        min_scale, max_scale: range of the crop's area, as a share of the image's.
        interpolation: how a crop gets its size, "bicubic" or "bilinear".
        jitter_p: probability of colour jitter.
        brightness, contrast, saturation, hue: its strengths, as torchvision's `ColorJitter` takes them.
        grayscale_p, blur_p, solarize_p, flip_p: probabilities.
        blur_sigma_min, blur_sigma_max: range of the Gaussian's standard deviation, in pixels of the view.
    """

    size: int = 224
    min_scale: float = 0.08
    max_scale: float = 1.0
    interpolation: str = "bicubic"
    jitter_p: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale_p: float = 0.2
    blur_p: float = 0.0
    blur_sigma_min: float = 0.1
    blur_sigma_max: float = 2.0
    solarize_p: float = 0.0
    flip_p: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"view size={self.size}: expected at least 1 pixel")
        if not 0 < self.min_scale <= self.max_scale <= 1:
            raise ValueError(
                f"view min_scale={self.min_scale}, max_scale={self.max_scale}: expected 0 < min_scale <= max_scale <= 1"
            )
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"view interpolation={self.interpolation!r}: expected bicubic or bilinear")
        for name in ("jitter_p", "grayscale_p", "blur_p", "solarize_p", "flip_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"view {name}={getattr(self, name)}: expected a probability, 0 to 1")
        for name, most in (("brightness", math.inf), ("contrast", math.inf), ("saturation", math.inf), ("hue", 0.5)):
            if not (0 <= getattr(self, name) <= most and math.isfinite(getattr(self, name))):
                raise ValueError(f"view {name}={getattr(self, name)}: expected a finite number, 0 to {most}")
        if not 0 < self.blur_sigma_min <= self.blur_sigma_max < math.inf:
            raise ValueError(
                f"view blur_sigma_min={self.blur_sigma_min}, blur_sigma_max={self.blur_sigma_max}: "
                "expected 0 < blur_sigma_min <= blur_sigma_max"
            )
        if self.blur_p > 0 and self.size <= math.ceil(4 * self.blur_sigma_max):
            raise ValueError(
                f"view size={self.size}: expected more pixels than the blur reaches, 4 x blur_sigma_max="
                f"{4 * self.blur_sigma_max}"
            )


def random_resized_crop_box(
    height: int, width: int, config: ViewConfig, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random crop (top, left, height, width) of an image, distributed as torchvision's `RandomResizedCrop` draws it.

    The area is uniform, the logarithm of the aspect ratio is uniform between 3/4 and 4/3; after ten crops that do not
    fit, the largest central one with such a ratio is taken.
    """
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for _ in range(10):
        area = height * width * generator.uniform(config.min_scale, config.max_scale)
        ratio = math.exp(generator.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w
    w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def draw_parameters(config: ViewConfig, generator: np.random.Generator) -> np.ndarray:
    """One row of random parameters for `augment`, shape (PARAMETERS,) float32, with torchvision's distributions."""
    u = generator.random(PARAMETERS + 1)
    row = np.empty(PARAMETERS, np.float32)
    strengths = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    centres = np.array([1.0, 1.0, 1.0, 0.0])
    lows = np.maximum(centres - strengths, [0, 0, 0, -0.5])
    row[JITTER] = u[JITTER] < config.jitter_p
    row[FACTORS] = lows + (centres + strengths - lows) * u[FACTORS]
    row[ORDER] = np.argsort(u[ORDER])
    row[GRAY] = u[GRAY] < config.grayscale_p
    sigma = config.blur_sigma_min + (config.blur_sigma_max - config.blur_sigma_min) * u[SIGMA]
    row[SIGMA] = sigma if u[PARAMETERS] < config.blur_p else 0
    row[SOLARIZE] = u[SOLARIZE] < config.solarize_p
    row[FLIP] = u[FLIP] < config.flip_p
    return row


def crop(image: np.ndarray, box: tuple[int, int, int, int], size: int, interpolation: str = "bicubic") -> Tensor:
    """Cuts `box` (top, left, height, width) out of a uint8 image (H, W, 3) and resizes it to (3, size, size) uint8.

    With antialiasing, as PIL: of many photos' pixels, one or two in 100,000 differ by more than two levels (bicubic).
    """
    top, left, height, width = box
    # The picture stays in channels-last order, which torch resizes without unpacking it.
    pixels = torch.from_numpy(image[top : top + height, left : left + width])[None].permute(0, 3, 1, 2)
    return F.interpolate(pixels, (size, size), mode=interpolation, antialias=True)[0]


def centre(image: np.ndarray, resize: int | None, crop: int | None) -> Tensor:
    """The one view of a uint8 image (H, W, 3) that is tested on, (3, height, width) uint8, without randomness.

    Args:
        resize: length of the shorter side after torchvision's antialiased bilinear `Resize`; None leaves the image's.
        crop: side of torchvision's `CenterCrop`; None leaves the whole.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    if resize is not None:
        pixels = functional.resize(pixels, [resize], antialias=True)
    return pixels if crop is None else functional.center_crop(pixels, [crop, crop])


@torch.no_grad()
def augment(crops: Tensor, parameters: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The part of the views' making that runs on the device, without waiting for it.

    Args:
        crops: (B, 3, S, S) uint8, on any device.
        parameters: (B, PARAMETERS) float32 on the CPU, a row of `draw_parameters` for each crop.
        mean, std: three values each, for pixels in 0..1.

    Returns:
        (B, 3, S, S) float32 on the device of `crops`.
    """
    part = max(1, _PART // crops[0, 0].numel()) if crops.device.type == "cpu" else len(crops)
    output = torch.empty(crops.shape, dtype=torch.float32, device=crops.device)
    for pixels, rows, images in zip(crops.split(part), parameters.split(part), output.split(part), strict=True):
        images.copy_(pixels).div_(255)
        _augment(images, rows)
    return normalize(output, mean, std)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`images` (B, 3, H, W) minus `mean`, divided by `std`, in place."""
    for channel in range(3):
        images[:, channel].sub_(mean[channel]).div_(std[channel])
    return images


def _augment(images: Tensor, parameters: Tensor) -> None:
    """Everything between the crop and the normalisation, in place on `images` (B, 3, S, S) in 0..1."""
    jitter, order, sigma = parameters[:, JITTER] > 0, parameters[:, ORDER], parameters[:, SIGMA]
    blur = functools.partial(_blur, radius=_reach(sigma.max()))
    steps: list[tuple[Callable[[Tensor, Tensor], Tensor], int, Tensor]] = [
        (operation, FACTORS.start + number, jitter & (order[:, turn] == number))
        for turn in range(4)
        for number, operation in enumerate((_brightness, _contrast, _saturation, _hue))
    ]
    steps += [
        (operation, column, parameters[:, column] > 0)
        for operation, column in ((_grayscale, GRAY), (blur, SIGMA), (_solarize, SOLARIZE), (_flip, FLIP))
    ]
    # Which samples a step changes is known on the CPU and sent in one go, so that the device is never waited for.
    chosen = [mask.nonzero().flatten() for _, _, mask in steps]
    rows = torch.cat(chosen).to(images.device, non_blocking=True).split([len(some) for some in chosen])
    values = parameters.to(images.device, non_blocking=True)
    for (operation, column, _), some in zip(steps, rows, strict=True):
        if len(some):
            changed = operation(images.index_select(0, some), values[some, column, None, None, None])
            images.index_copy_(0, some, changed)


# Each takes its own copy of the chosen images (b, 3, S, S) and a value for each (b, 1, 1, 1).


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return images.mul_(factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _luma(images).mean(dim=(1, 2, 3), keepdim=True)
    return images.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    luma = _luma(images).mul_(1 - factor)
    return images.mul_(factor).add_(luma).clamp_(0, 1)


def _hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turns the hue by `turn` circles, at the same largest and smallest channel of each pixel.

    With the hue in sixths of the circle, red is at its largest around 0, green around 2 and blue around 4; each keeps
    it for one sixth to either side and falls to its smallest within the next.
    """
    red, green, blue = images.split(1, dim=1)
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = high - low
    blue_or_green = torch.where(high == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4))
    sixths = torch.where(high == red, green - blue, blue_or_green).div_(chroma.clamp_(min=1e-12)).add_(6 * turn)
    for channel, peak in ((red, 0), (green, 2), (blue, 4)):
        # The distance from the peak the short way round; 9 makes the dividend positive.
        torch.sub(sixths, peak - 9, out=channel).fmod_(6).sub_(3).abs_().neg_().add_(2)
    return images.clamp_(0, 1).mul_(chroma).add_(low)


def _grayscale(images: Tensor, _: Tensor) -> Tensor:
    return _luma(images).expand_as(images)


def _blur(images: Tensor, sigma: Tensor, *, radius: int) -> Tensor:
    """Gaussian of standard deviation `sigma` pixels (PIL's `radius` is that too), edges mirrored.

    All are cut at `radius`, where the widest reaches 4 sigma; the taps beyond one's own 4 sigma add less than 1e-5.
    """
    b, c, height, width = images.shape
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum(dim=3, keepdim=True)).repeat_interleave(c, dim=0)
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect").flatten(0, 1)[None]
    with torch.autocast(images.device.type, enabled=False):
        rows = F.conv2d(padded, weights, groups=b * c)
        return F.conv2d(rows, weights.mT, groups=b * c).view(b, c, height, width)


def _solarize(images: Tensor, _: Tensor) -> Tensor:
    return torch.where(images >= 128 / 255, 1 - images, images)


def _flip(images: Tensor, _: Tensor) -> Tensor:
    return images.flip(3)


def _luma(images: Tensor) -> Tensor:
    """Brightness (b, 1, S, S) with torchvision's weights."""
    red, green, blue = images.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _reach(sigma: Tensor) -> int:
    return math.ceil(4 * float(sigma))
