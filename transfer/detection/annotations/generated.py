"""A small generated data set in COCO's layout, for a demonstration without a download.

A picture has a colored background and one to four colored figures of five classes, which may hide each other partly.
Some pictures also have a crowd of small figures. The mask of an object is its visible part, exactly to the pixel.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from intl_bench.core import files, inputs
from intl_bench.core.errors import InputError
from intl_bench.core.seeding import generator
from pretrain.images import shapes
from transfer.detection import rle

CLASS_NAMES = shapes.FIGURES
_RADII = (13.0, 30.0)  # smallest and largest radius of a figure in pixels, approximately
_CROWD_RADII = (4.0, 6.0)
_CROWD = 8  # figures in a crowd
_CROWD_EVERY = 6  # one picture of this many has a crowd
_VISIBLE = 0.6  # a new figure must leave this share of the visible part of each earlier one
_TRIES = 12  # positions tried for a figure before it is left out


def write(folder: Path, *, train: int, test: int, seed: int = 0) -> None:
    """Write the pictures and annotations of both splits, except those that already exist.

    Picture i of a split depends only on (seed, split, i).

    Args:
        folder: receives annotations/instances_{train,val}2017.json, and the pictures in train2017/ and val2017/.
        train, test: number of pictures.

    Raises:
        InputError: the folder contains other annotations, or cannot be written.
        ResourceError: the disk is full.
    """
    for split, count in (("train2017", train), ("val2017", test)):
        listing = folder / "annotations" / f"instances_{split}.json"
        info = {"description": "generated figures", "split": split, "pictures": count, "seed": seed}
        if listing.exists():
            found = _read_info(listing)
            if found != info:
                raise InputError(f"{listing}: info {found}; expected {info}; delete the file, or use another folder")
            continue
        pictures, objects = list[dict[str, Any]](), list[dict[str, Any]]()
        for number in range(count):
            pixels, contents = _draw_picture(seed, split, number)
            name = f"{number + 1:012}.jpg"
            encoded = io.BytesIO()
            Pillow.fromarray(pixels).save(encoded, "JPEG", quality=95)
            files.write_bytes(folder / split / name, encoded.getvalue())
            height, width = pixels.shape[:2]
            pictures.append({"id": number + 1, "file_name": name, "height": height, "width": width})
            first_id = len(objects) + 1
            objects += [{"id": first_id + i, "image_id": number + 1, **item} for i, item in enumerate(contents)]
        categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, start=1)]
        document = {"info": info, "images": pictures, "annotations": objects, "categories": categories}
        # The annotations are written last, so their existence shows that the pictures are complete.
        files.write_text(listing, json.dumps(document))


def _read_info(listing: Path) -> Any:
    """Read the field `info` of an annotation file; None if this fails."""
    try:
        return inputs.read_json(listing, "the annotations")["info"]
    except (InputError, KeyError, TypeError):
        return None


def _draw_picture(seed: int, split: str, number: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw a picture (H, W, 3) uint8 and return it with its annotations, which have no ids yet."""
    stream = generator(seed, f"generated {split}", number)
    long, short = int(stream.integers(112, 145)), int(stream.integers(84, 109))
    height, width = (short, long) if stream.random() < 0.6 else (long, short)
    background = stream.random(3)
    slope = stream.random(2) - 0.5
    across, down = np.linspace(-0.2, 0.2, width), np.linspace(-0.2, 0.2, height)[:, None]
    pixels = np.broadcast_to(background, (height, width, 3)) + (slope[0] * across + slope[1] * down)[..., None]
    drawn = list[tuple[int, bool, np.ndarray]]()  # class, whether it is a crowd, and mask of the visible part
    if number % _CROWD_EVERY == 0:
        figure, color = int(stream.integers(len(CLASS_NAMES))), _draw_color(background, stream)
        center, mask = _draw_center(stream, height, width, 20.0), np.zeros((height, width), bool)
        for _ in range(_CROWD):
            at, radius = center + stream.uniform(-16, 16, 2), stream.uniform(*_CROWD_RADII)
            share = _draw_figure(height, width, figure, at, radius, stream)
            pixels, mask = shapes.mix(pixels, color, share), mask | (share >= 0.5)
        drawn.append((figure, True, mask))
    for _ in range(int(stream.integers(1, 5))):
        figure, color = int(stream.integers(len(CLASS_NAMES))), _draw_color(background, stream)
        for _ in range(_TRIES):
            radius = stream.uniform(*_RADII)
            share = _draw_figure(height, width, figure, _draw_center(stream, height, width, radius), radius, stream)
            mask = share >= 0.5
            if all((earlier & ~mask).sum() >= _VISIBLE * earlier.sum() for _, _, earlier in drawn):
                pixels = shapes.mix(pixels, color, share)
                drawn = [(other, crowd, earlier & ~mask) for other, crowd, earlier in drawn] + [(figure, False, mask)]
                break
    pixels = pixels + 0.02 * stream.standard_normal((height, width, 3))
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8), [_annotate(*item) for item in drawn]


def _draw_color(background: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Draw a color that differs from that of the background in every channel."""
    return (background + 0.35 + 0.3 * stream.random(3)) % 1


def _draw_center(stream: np.random.Generator, height: int, width: int, radius: float) -> np.ndarray:
    """Draw the center (x, y) of a disk inside the picture."""
    return stream.uniform(radius, np.array([width, height]) - radius)


def _draw_figure(
    height: int, width: int, figure: int, center: np.ndarray, radius: float, stream: np.random.Generator
) -> np.ndarray:
    """Compute the share of each pixel (H, W) that a figure at a random angle covers."""
    angle = stream.uniform(0, 2 * np.pi)
    right = (np.arange(width) + 0.5 - center[0]) / radius
    down = (np.arange(height)[:, None] + 0.5 - center[1]) / radius
    x, y = np.cos(angle) * right + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * right
    return shapes.cover(shapes.distances(x, y)[figure] * radius)


def _annotate(figure: int, crowd: bool, mask: np.ndarray) -> dict[str, Any]:
    """Build the annotation of an object with the visible part `mask`, (H, W) bool."""
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
    """Compute polygons that cover exactly the pixels of a mask (H, W) bool. They follow the edges of the pixels.

    A polygon of COCO has no holes, so a mask with a hole is cut vertically through the hole into two masks.
    """
    polygons = list[list[int]]()
    for loop in _trace_edges(mask):
        x, y = loop[:, 0], loop[:, 1]
        if (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() < 0:  # a loop around a hole runs in the other direction
            cut = int(x.min() + x.max()) // 2
            right = [[value + cut * (i % 2 == 0) for i, value in enumerate(part)] for part in trace(mask[:, cut:])]
            return trace(mask[:, :cut]) + right
        polygons.append(loop.ravel().tolist())
    return polygons


def _trace_edges(mask: np.ndarray) -> list[np.ndarray]:
    """Compute the edges of a mask as closed loops of corners (p, 2), x and y, with the mask on the right side."""
    padded = np.pad(mask, 1)
    leaving: dict[tuple[int, int], list[tuple[int, int]]] = {}  # directions of the edges that start at each corner
    # The offset of a neighbor outside the mask, the start of the edge to it, and the direction of the edge.
    sides = [((-1, 0), (0, 0), (1, 0)), ((0, 1), (1, 0), (0, 1)), ((1, 0), (1, 1), (-1, 0)), ((0, -1), (0, 1), (0, -1))]
    for shift, (start_x, start_y), direction in sides:
        for y, x in zip(*np.nonzero(padded & ~np.roll(padded, (-shift[0], -shift[1]), (0, 1))), strict=True):
            leaving.setdefault((int(x) - 1 + start_x, int(y) - 1 + start_y), []).append(direction)
    loops = []
    while leaving:
        at, step, corners = min(leaving), (0, 0), list[tuple[int, int]]()  # only one edge starts at the first corner
        while at in leaving:
            choices, right_turn = leaving[at], (-step[1], step[0])
            # If two pixels touch only at a corner, a right turn keeps their loops separate.
            following = right_turn if right_turn in choices else choices[0]
            choices.remove(following)
            if not choices:
                del leaving[at]
            if following != step:
                corners.append(at)
            at, step = (at[0] + following[0], at[1] + following[1]), following
        loops.append(np.array(corners))
    return loops
