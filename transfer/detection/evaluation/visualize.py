"""The test images that a detector does worst on, as one picture."""

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle

from intl_bench.core import files
from transfer.detection.annotations.objects import Annotations, Entry
from transfer.detection.evaluation.coco import Result, image_precisions
from transfer.detection.rle import decode_string, to_bitmap
from transfer.detection.transforms import read_image

_WIDTH = 480  # pixels of a panel
_LINE = 14  # pixels of a line of text
_SHOWN = 20  # detections drawn, so that they can be told apart
_OPACITY = 110  # of a mask, of 255


class _Mark(NamedTuple):
    """What is drawn for one object; box as x0, y0, x1, y1 in pixels of the image file."""

    box: Sequence[float]
    text: str
    label: int
    bitmap: np.ndarray | None


def draw_worst(annotations: Annotations, results: Sequence[Result], n: int, path: Path) -> list[int]:
    """Draws the n images with the lowest box AP: the annotated objects on the left, the best detections on the right.

    An image's AP is that of `image_precisions`: of this image alone, at IoU 0.5 to 0.95, over the categories that it
    has objects of. Images without objects have none and are not drawn; of equal ones, the first comes first.

    Args:
        annotations: the test images.
        results: COCO results with boxes, and masks if there are any.
        path: the PNG file to write.

    Returns:
        The ids of the images drawn, the worst first.

    Raises:
        InputError: an image cannot be read, or the file not be written.
    """
    precisions = image_precisions(annotations, results)
    worst = [index for index in np.argsort(precisions, kind="stable").tolist() if precisions[index] >= 0][:n]
    labels = {category_id: label for label, category_id in enumerate(annotations.category_ids)}
    rows = []
    for index in worst:
        entry = annotations.images[index]
        own = sorted((r for r in results if r["image_id"] == entry.image_id), key=lambda result: -result["score"])
        found = [_detected(result, labels, annotations.category_names) for result in own[:_SHOWN]]
        title = f"image {entry.image_id} ({entry.file_name})   box AP {precisions[index]:.1f}"
        sides = (
            (f"{title}   objects: {len(entry.objects)}", _annotated(entry, annotations.category_names)),
            (f"best {len(found)} of {len(own)} detections", found),
        )
        image = read_image(annotations.file(index))
        rows.append(_beside([_panel(image, text, marks) for text, marks in sides]))
    picture = _below(rows or [_panel(Image.new("RGB", (_WIDTH, 1)), "no image has an object", [])])
    content = io.BytesIO()
    picture.save(content, format="PNG")
    files.write_bytes(path, content.getvalue())
    return [int(annotations.image_ids[index]) for index in worst]


def _annotated(entry: Entry, names: Sequence[str]) -> list[_Mark]:
    marks = []
    for thing in entry.objects:
        remark = " (crowd)" if thing.crowd else " (difficult)" if thing.difficult else ""
        bitmap = None
        if isinstance(thing.outline, dict):
            bitmap = to_bitmap(thing.outline["counts"], entry.height, entry.width)
        elif thing.outline is not None:
            parts = rle.frPyObjects([part.tolist() for part in thing.outline], entry.height, entry.width)
            bitmap = _decoded(rle.merge(parts))
        marks.append(_Mark(thing.box.tolist(), names[thing.class_index] + remark, thing.class_index, bitmap))
    return marks


def _detected(result: Result, labels: dict[int, int], names: Sequence[str]) -> _Mark:
    x, y, width, height = result["bbox"]
    label = labels[result["category_id"]]
    bitmap = _decoded(result["segmentation"]) if "segmentation" in result else None
    return _Mark((x, y, x + width, y + height), f"{names[label]} {result['score']:.2f}", label, bitmap)


def _decoded(code: dict[str, Any]) -> np.ndarray:
    """The bitmap (height, width) bool of compressed RLE."""
    counts = code["counts"]
    return to_bitmap(decode_string(counts.encode() if isinstance(counts, str) else counts), *code["size"])


def _panel(image: Image.Image, title: str, marks: Sequence[_Mark]) -> Image.Image:
    """The image, `_WIDTH` pixels wide, with masks, boxes and names, the last mark at the bottom, under a title."""
    scale = _WIDTH / image.width
    size = (_WIDTH, max(1, round(image.height * scale)))
    panel = Image.new("RGB", (_WIDTH, _LINE + size[1]), "white")
    drawn = image.resize(size)
    for mark in reversed(marks):
        if mark.bitmap is not None:
            opacity = Image.fromarray(mark.bitmap.astype(np.uint8) * _OPACITY).resize(size, Image.Resampling.NEAREST)
            drawn.paste(_color(mark.label), (0, 0, *size), opacity)
    pen = ImageDraw.Draw(drawn)
    for mark in reversed(marks):
        x0, y0, x1, y1 = (float(value) * scale for value in mark.box)
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=_color(mark.label), width=2)
    for mark in reversed(marks):
        x0, y0 = (float(value) * scale for value in mark.box[:2])
        above = y0 - _LINE if y0 >= _LINE else y0  # beside a small object, not over it
        corner = max(0.0, min(x0, _WIDTH - 20)), max(0.0, min(above, size[1] - _LINE))
        _write(pen, corner, mark.text, background=_color(mark.label))
    panel.paste(drawn, (0, _LINE))
    _write(ImageDraw.Draw(panel), (2, 0), title, background=(255, 255, 255))
    return panel


def _write(
    pen: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, *, background: tuple[int, int, int]
) -> None:
    font = ImageFont.load_default()
    text = text.encode("latin-1", "replace").decode("latin-1")  # what the built-in font can write
    pen.rectangle(pen.textbbox(corner, text, font=font), fill=background)
    pen.text(corner, text, fill=(0, 0, 0), font=font)


def _color(label: int) -> tuple[int, int, int]:
    """A light color of its own for each class: the golden ratio spreads the hues."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _beside(panels: Sequence[Image.Image]) -> Image.Image:
    row = Image.new("RGB", (sum(panel.width for panel in panels), panels[0].height))
    for number, panel in enumerate(panels):
        row.paste(panel, (number * _WIDTH, 0))
    return row


def _below(rows: Sequence[Image.Image]) -> Image.Image:
    picture = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    return picture
