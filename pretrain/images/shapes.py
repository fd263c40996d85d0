"""Generated images for a demonstration without a download: colored figures on colored backgrounds, ten classes.

A class is a figure with a surface (see `CLASS_NAMES`). Position, size, angle and all colors are random, with the same
distribution for all classes. Neither a mean color nor a single pixel shows the class; a network has to use the form.
"""

import functools
import itertools

import numpy as np

from intl_bench.core.seeding import generator

SIZE = 32
FIGURES = ("disc", "square", "triangle", "ring", "cross")
_SURFACES = ("plain", "striped")
CLASS_NAMES = [f"{surface} {figure}" for surface, figure in itertools.product(_SURFACES, FIGURES)]

_DRAWS = 17  # random numbers per image, without the noise
_PART = 1024  # images drawn at once


@functools.lru_cache(maxsize=2)  # a command opens its training and test images several times
def make(n: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Generate the first `n` images of a split, (n, SIZE, SIZE, 3) uint8, and their labels (n,) int64.

    The labels repeat 0, 1, ..., 9. Image i depends on `split` and i only.
    """
    labels = np.arange(n) % len(CLASS_NAMES)
    images = np.empty((n, SIZE, SIZE, 3), np.uint8)
    for start in range(0, n, _PART):
        part = slice(start, min(start + _PART, n))
        images[part] = _draw(range(part.start, part.stop), labels[part], split)
    return images, labels


def _draw(indices: range, labels: np.ndarray, split: str) -> np.ndarray:
    streams = [generator(0, f"shapes {split}", index) for index in indices]
    u = np.stack([stream.random(_DRAWS, np.float32) for stream in streams])[:, None, None]
    noise = np.stack([stream.standard_normal((SIZE, SIZE, 3), np.float32) for stream in streams])
    line = np.linspace(-1, 1, SIZE, dtype=np.float32)
    # Coordinates of the figure, whose radius is about 1 in them; before `scale`, the image is 2 wide.
    scale, angle = 0.45 + 0.3 * u[..., 0], 2 * np.pi * u[..., 1]
    right, down = (line - 0.7 * (u[..., 2] - 0.5)) / scale, (line[:, None] - 0.7 * (u[..., 3] - 0.5)) / scale
    x, y = np.cos(angle) * right + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * right
    surface, figure = np.divmod(labels[:, None, None], len(FIGURES))
    inside = cover(np.choose(figure, distances(x, y)) * scale * SIZE / 2)
    stripes = surface * cover(np.sin((7 + 4 * u[..., 4]) * y) / 8 * SIZE / 2)
    # Each color is uniform and differs in every channel from the color below it.
    ground = u[..., 5:8]
    fill = (ground + 0.35 + 0.3 * u[..., 8:11]) % 1
    stripe = (fill + 0.35 + 0.3 * u[..., 11:14]) % 1
    slope = (u[..., 14] - 0.5) * line + (u[..., 15] - 0.5) * line[:, None]
    pixels = mix(ground + 0.2 * slope[..., None], mix(fill, stripe, stripes), inside) + 0.06 * u[..., 16:] * noise
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def distances(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Return the distance of each point to the edge of each figure (negative inside), in the order of `FIGURES`.

    The center of a figure is 0, and its radius is about 1.
    """
    radius, across, along = np.hypot(x, y), np.abs(x), np.abs(y)
    return [
        radius - 0.85,
        np.maximum(across, along) - 0.75,
        np.maximum(-y, y / 2 + across * np.sqrt(0.75)) - 0.5,
        np.abs(radius - 0.72) - 0.22,
        np.maximum(np.maximum(across, along) - 0.95, np.minimum(across, along) - 0.28),
    ]


def cover(distance: np.ndarray) -> np.ndarray:
    """Return the share of a pixel that a form covers.

    Args:
        distance: from the edge of the form to the center of the pixel, in pixels; negative inside the form.
    """
    return (0.5 - distance).clip(0, 1)


def mix(below: np.ndarray, above: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Blend the color `above` over the color `below`; it covers the share `share`."""
    return below + (above - below) * share[..., None]
