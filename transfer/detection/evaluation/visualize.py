"""Pictures of annotated images and of detections."""

import colorsys
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle

from intl_bench.core import files
from transfer.detection.annotations.objects import AnnotatedImage, Annotations
from transfer.detection.evaluation.coco import Result, image_precisions
from transfer.detection.rle import decode_counts, to_bitmap
from transfer.detection.transforms import read_image

_WIDTH = 480  # of a panel, in pixels
_LINE = 14  # height of a line of text in pixels
_SHOWN = 20  # largest number of detections in a panel
_OPACITY = 110  # of a mask, from 0 to 255


class _Mark(NamedTuple):
    """An object or a detection to draw.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the image file.
        text: the text beside the box.
        bitmap: (height, width) bool, or None if there is no mask.
    """

    box: Sequence[float]
    text: str
    bitmap: np.ndarray | None


def draw_worst(
    annotations: Annotations, results: Sequence[Result], n: int, path: Path, *, threshold: float = 0.5
) -> list[int]:
    """Draw the n images with the lowest box AP.

    The annotated objects are on the left, the detections with the highest scores on the right. Each object and each
    detection has its own color. The AP of an image is that of `image_precisions`. Images without objects have no AP and
    are not drawn. Images with equal AP keep their order.

    Args:
        annotations: the test images.
        results: COCO results with boxes, and optionally with masks.
        path: the PNG file to write.
        threshold: lowest score of the detections that are drawn; the default is that of Detectron2's demo. The AP is
            that of all detections.

    Returns:
        The ids of the drawn images in order of increasing AP.

    Raises:
        InputError: an image cannot be read, or the file cannot be written.
    """
    precisions = image_precisions(annotations, results)
    worst = [index for index in np.argsort(precisions, kind="stable").tolist() if precisions[index] >= 0][:n]
    labels = {category_id: label for label, category_id in enumerate(annotations.category_ids)}
    rows = []
    for index in worst:
        annotated = annotations.images[index]
        own = sorted((r for r in results if r["image_id"] == annotated.image_id), key=lambda result: -result["score"])
        sure = [result for result in own if result["score"] >= threshold]
        found = [_mark_detection(result, labels, annotations.category_names) for result in sure[:_SHOWN]]
        title = f"image {annotated.image_id} ({annotated.file_name})   box AP {precisions[index]:.1f}"
        sides = (
            (f"{title}   objects: {len(annotated.objects)}", _mark_objects(annotated, annotations.category_names)),
            (f"best {len(found)} of {len(own)} detections, scores from {threshold:g}", found),
        )
        image = read_image(annotations.file(index), (annotated.width, annotated.height))
        rows.append(_join_columns([_draw_panel(image, text, marks) for text, marks in sides]))
    _write_png(rows or [_draw_panel(Image.new("RGB", (_WIDTH, 1)), "no image has an object", [])], path)
    return [int(annotations.image_ids[index]) for index in worst]


def draw_objects(parts: Mapping[str, tuple[Annotations, Sequence[int]]], path: Path) -> None:
    """Draw annotated images with their boxes, masks and categories, two in a row.

    Args:
        parts: for each split its annotations and the indices of the images to draw.
        path: the PNG file to write.

    Raises:
        InputError: an image cannot be read, or the file cannot be written.
    """
    panels = []
    for split, (annotations, chosen) in parts.items():
        for index in chosen:
            annotated = annotations.images[index]
            image = read_image(annotations.file(index), (annotated.width, annotated.height))
            title = f"{split}: {annotated.file_name}   objects: {len(annotated.objects)}"
            panels.append(_draw_panel(image, title, _mark_objects(annotated, annotations.category_names)))
    _write_png([_join_columns(panels[first : first + 2]) for first in range(0, len(panels), 2)], path)


def _write_png(rows: Sequence[Image.Image], path: Path) -> None:
    content = io.BytesIO()
    _join_rows(rows).save(content, format="PNG")
    files.write_bytes(path, content.getvalue())


def _mark_objects(image: AnnotatedImage, names: Sequence[str]) -> list[_Mark]:
    """Make the marks of the annotated objects of an image."""
    marks = []
    for item in image.objects:
        remark = " (crowd)" if item.crowd else " (difficult)" if item.difficult else ""
        bitmap = None
        if isinstance(item.outline, dict):
            bitmap = to_bitmap(item.outline["counts"], image.height, image.width)
        elif item.outline is not None:
            parts = rle.frPyObjects([part.tolist() for part in item.outline], image.height, image.width)
            bitmap = _decode(rle.merge(parts))
        marks.append(_Mark(item.box.tolist(), names[item.class_index] + remark, bitmap))
    return marks


def _mark_detection(result: Result, labels: dict[int, int], names: Sequence[str]) -> _Mark:
    """Make the mark of a detection. `labels` maps a category id to the index of its class."""
    x, y, width, height = result["bbox"]
    name = names[labels[result["category_id"]]]
    bitmap = _decode(result["segmentation"]) if "segmentation" in result else None
    return _Mark((x, y, x + width, y + height), f"{name} {result['score']:.2f}", bitmap)


def _decode(encoding: dict[str, Any]) -> np.ndarray:
    """Decode a compressed run-length encoding to a bitmap (height, width) bool."""
    counts = encoding["counts"]
    return to_bitmap(decode_counts(counts.encode() if isinstance(counts, str) else counts), *encoding["size"])


def _draw_panel(image: Image.Image, title: str, marks: Sequence[_Mark]) -> Image.Image:
    """Draw an image, `_WIDTH` pixels wide, with masks, boxes and texts, below a title. The first mark is on top."""
    scale = _WIDTH / image.width
    size = (_WIDTH, max(1, round(image.height * scale)))
    panel = Image.new("RGB", (_WIDTH, _LINE + size[1]), "white")
    drawn = image.resize(size)
    colored = [(mark, _color(number)) for number, mark in enumerate(marks)][::-1]
    for mark, color in colored:
        if mark.bitmap is not None:
            opacity = Image.fromarray(mark.bitmap.astype(np.uint8) * _OPACITY).resize(size, Image.Resampling.NEAREST)
            drawn.paste(color, (0, 0, *size), opacity)
    pen = ImageDraw.Draw(drawn)
    for mark, color in colored:
        x0, y0, x1, y1 = (float(value) * scale for value in mark.box)
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=2)
    for mark, color in colored:
        x0, y0 = (float(value) * scale for value in mark.box[:2])
        above = y0 - _LINE if y0 >= _LINE else y0  # above the box if possible: inside, the text hides a small object
        corner = max(0.0, min(x0, _WIDTH - 20)), max(0.0, min(above, size[1] - _LINE))
        _write(pen, corner, mark.text, background=color)
    panel.paste(drawn, (0, _LINE))
    _write(ImageDraw.Draw(panel), (2, 0), title, background=(255, 255, 255))
    return panel


def _write(
    pen: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, *, background: tuple[int, int, int]
) -> None:
    """Write text on a filled rectangle."""
    font = ImageFont.load_default()
    text = text.encode("latin-1", "replace").decode("latin-1")  # the built-in font has only these characters
    pen.rectangle(pen.textbbox(corner, text, font=font), fill=background)
    pen.text(corner, text, fill=(0, 0, 0), font=font)


def _color(number: int) -> tuple[int, int, int]:
    """Choose a light color. Steps of the golden ratio give different hues to all numbers."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _join_columns(panels: Sequence[Image.Image]) -> Image.Image:
    height = max(panel.height for panel in panels)
    row = Image.new("RGB", (sum(panel.width for panel in panels), height), "white")
    for number, panel in enumerate(panels):
        row.paste(panel, (number * _WIDTH, 0))
    return row


def _join_rows(rows: Sequence[Image.Image]) -> Image.Image:
    size = max(row.width for row in rows), sum(row.height for row in rows)
    picture = Image.new("RGB", size, "white")
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    return picture
