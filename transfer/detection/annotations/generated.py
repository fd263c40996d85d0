"""A small generated data set in COCO's layout, for a demonstration without any download.

Colored figures of five classes on colored grounds, one to four in a picture, some partly behind others; some pictures
also have a crowd of small ones. The annotations are those of the pixels: an object's mask is what can be seen of it.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from intl_bench.core import files
from intl_bench.core.errors import InputError
from intl_bench.core.seeding import generator
from pretrain.images import shapes
from transfer.detection import rle

CLASS_NAMES = shapes.FIGURES
_RADII = (13.0, 30.0)  # pixels from a figure's center to about its end
_CROWD_RADII = (4.0, 6.0)
_CROWD = 8  # figures in a crowd
_CROWD_EVERY = 6  # pictures
_VISIBLE = 0.6  # share of what is seen of a figure that each later one must leave
_TRIES = 12  # places drawn for an object before it is left out


def write(folder: Path, *, train: int, test: int, seed: int = 0) -> None:
    """Writes the pictures and annotations of both splits; does nothing where they are already there.

    Picture i of a split is a function of (seed, split, i) alone.

    Args:
        folder: gets annotations/instances_{train,val}2017.json and the pictures in train2017/ and val2017/.
        train, test: number of pictures.

    Raises:
        InputError: the folder holds other annotations, or cannot be written.
        ResourceError: the disk is full.
    """
    for split, count in (("train2017", train), ("val2017", test)):
        listing = folder / "annotations" / f"instances_{split}.json"
        info = {"description": "generated figures", "split": split, "pictures": count, "seed": seed}
        if listing.exists():
            if _info(listing) != info:
                raise InputError(f"{listing}: not the generated annotations {info}; delete it or choose another folder")
            continue
        pictures, objects = list[dict[str, Any]](), list[dict[str, Any]]()
        for number in range(count):
            pixels, found = _picture(seed, split, number)
            name = f"{number + 1:012}.jpg"
            encoded = io.BytesIO()
            Pillow.fromarray(pixels).save(encoded, "JPEG", quality=95)
            files.write_bytes(folder / split / name, encoded.getvalue())
            height, width = pixels.shape[:2]
            pictures.append({"id": number + 1, "file_name": name, "height": height, "width": width})
            objects += [{"id": len(objects) + i, "image_id": number + 1, **one} for i, one in enumerate(found, start=1)]
        categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, start=1)]
        document = {"info": info, "images": pictures, "annotations": objects, "categories": categories}
        # Last, for its presence says that the pictures are complete.
        files.write_text(listing, json.dumps(document))


def _info(listing: Path) -> Any:
    try:
        return json.loads(listing.read_bytes())["info"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _picture(seed: int, split: str, number: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Pixels (H, W, 3) uint8, and the objects without their ids."""
    stream = generator(seed, f"generated {split}", number)
    long, short = int(stream.integers(112, 145)), int(stream.integers(84, 109))
    height, width = (short, long) if stream.random() < 0.6 else (long, short)
    ground = stream.random(3)
    slope = stream.random(2) - 0.5
    across, down = np.linspace(-0.2, 0.2, width), np.linspace(-0.2, 0.2, height)[:, None]
    pixels = np.broadcast_to(ground, (height, width, 3)) + (slope[0] * across + slope[1] * down)[..., None]
    seen = list[tuple[int, bool, np.ndarray]]()  # class, whether a crowd, and what can be seen of it
    if number % _CROWD_EVERY == 0:
        figure, color = int(stream.integers(len(CLASS_NAMES))), _other(ground, stream)
        center, mask = _place(stream, height, width, 20.0), np.zeros((height, width), bool)
        for _ in range(_CROWD):
            at, radius = center + stream.uniform(-16, 16, 2), stream.uniform(*_CROWD_RADII)
            share = _figure(height, width, figure, at, radius, stream)
            pixels, mask = shapes.mix(pixels, color, share), mask | (share >= 0.5)
        seen.append((figure, True, mask))
    for _ in range(int(stream.integers(1, 5))):
        figure, color = int(stream.integers(len(CLASS_NAMES))), _other(ground, stream)
        for _ in range(_TRIES):
            radius = stream.uniform(*_RADII)
            share = _figure(height, width, figure, _place(stream, height, width, radius), radius, stream)
            mask = share >= 0.5
            if all((one & ~mask).sum() >= _VISIBLE * one.sum() for _, _, one in seen):
                pixels = shapes.mix(pixels, color, share)
                seen = [(other, crowd, one & ~mask) for other, crowd, one in seen] + [(figure, False, mask)]
                break
    pixels = pixels + 0.02 * stream.standard_normal((height, width, 3))
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8), [_annotation(*one) for one in seen]


def _other(ground: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """A color apart from the ground's in every channel."""
    return (ground + 0.35 + 0.3 * stream.random(3)) % 1


def _place(stream: np.random.Generator, height: int, width: int, radius: float) -> np.ndarray:
    """The center, x and y, of something that lies inside the picture."""
    return stream.uniform(radius, np.array([width, height]) - radius)


def _figure(
    height: int, width: int, figure: int, center: np.ndarray, radius: float, stream: np.random.Generator
) -> np.ndarray:
    """The share of each pixel (H, W) that a figure at a random angle covers."""
    angle = stream.uniform(0, 2 * np.pi)
    right = (np.arange(width) + 0.5 - center[0]) / radius
    down = (np.arange(height)[:, None] + 0.5 - center[1]) / radius
    x, y = np.cos(angle) * right + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * right
    return shapes.cover(shapes.distances(x, y)[figure] * radius)


def _annotation(figure: int, crowd: bool, mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "category_id": figure + 1,
        "iscrowd": int(crowd),
        "area": int(mask.sum()),
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "segmentation": rle.from_bitmap(mask) if crowd else trace(mask),
    }


def trace(mask: np.ndarray) -> list[list[int]]:
    """Polygons along the pixels' edges that together cover exactly the pixels of a mask (H, W) bool.

    A polygon of COCO has no holes, so a mask with a hole is cut in two down through it.
    """
    polygons = list[list[int]]()
    for loop in _loops(mask):
        x, y = loop[:, 0], loop[:, 1]
        if (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() < 0:  # around a hole, the other way
            cut = int(x.min() + x.max()) // 2
            right = [[value + cut * (i % 2 == 0) for i, value in enumerate(one)] for one in trace(mask[:, cut:])]
            return trace(mask[:, :cut]) + right
        polygons.append(loop.ravel().tolist())
    return polygons


def _loops(mask: np.ndarray) -> list[np.ndarray]:
    """The edges between inside and outside as closed loops of corners (p, 2), x and y, the inside on their right."""
    padded = np.pad(mask, 1)
    leaving: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # The inside pixel's neighbor that is outside, where its edge to it starts, and the edge's direction.
    sides = [((-1, 0), (0, 0), (1, 0)), ((0, 1), (1, 0), (0, 1)), ((1, 0), (1, 1), (-1, 0)), ((0, -1), (0, 1), (0, -1))]
    for shift, (start_x, start_y), direction in sides:
        for y, x in zip(*np.nonzero(padded & ~np.roll(padded, (-shift[0], -shift[1]), (0, 1))), strict=True):
            leaving.setdefault((int(x) - 1 + start_x, int(y) - 1 + start_y), []).append(direction)
    loops = []
    while leaving:
        at, step, corners = min(leaving), (0, 0), list[tuple[int, int]]()  # the first one is a corner left by one edge
        while at in leaving:
            choices, turned = leaving[at], (-step[1], step[0])
            # Where two pixels touch at a corner alone, turning right keeps them apart.
            following = turned if turned in choices else choices[0]
            choices.remove(following)
            if not choices:
                del leaving[at]
            if following != step:
                corners.append(at)
            at, step = (at[0] + following[0], at[1] + following[1]), following
        loops.append(np.array(corners))
    return loops
