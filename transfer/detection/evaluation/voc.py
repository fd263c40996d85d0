"""Pascal VOC 2007's average precision, in the numbers of Detectron2's evaluator."""

import numpy as np

from transfer.detection.annotations.objects import Annotations
from transfer.detection.evaluation.coco import Result, check_results

# Percent, so that 0.55 and the others are the numbers that Detectron2 compares with.
_THRESHOLDS = tuple(range(50, 100, 5))
_RECALLS = np.arange(0.0, 1.1, 0.1)


def evaluate_voc(annotations: Annotations, results: list[Result]) -> dict[str, float]:
    """Average precision of boxes by VOC 2007's 11-point metric, also at higher overlaps.

    Pixels are counted as VOC counts them: from 1 on, a box's last ones included. Before that, scores are rounded to
    three decimals and boxes to one, as Detectron2 rounds them in the files that it evaluates. An object marked
    difficult need not be found, and finding it counts neither way. Of equal scores, the one that comes first in
    `results` goes first. A class without objects has an average precision of 0, as in Detectron2.

    Args:
        annotations: all test images.
        results: COCO results, as `evaluation.to_results` makes them.

    Returns:
        "bbox/AP" (mean over overlaps above 0.5, 0.55, ..., 0.95), "bbox/AP50", "bbox/AP75", from 0 to 100, each a
        mean over the classes.

    Raises:
        InputError: a detection is malformed or about an unknown image or category.
    """
    sizes = np.stack([annotations.heights, annotations.widths], 1).tolist()
    results = check_results(
        results,
        sizes=dict(zip(annotations.image_ids.tolist(), sizes, strict=True)),
        category_ids=annotations.category_ids,
        iou_types=("bbox",),
    )
    place = {image_id: index for index, image_id in enumerate(annotations.image_ids.tolist())}
    images = np.array([place[result["image_id"]] for result in results], dtype=np.int64)
    categories = np.array([result["category_id"] for result in results], dtype=np.int64)
    scores = _rounded(np.array([result["score"] for result in results], dtype=np.float64), 3)
    boxes = _as_written(np.array([result["bbox"] for result in results], dtype=np.float64).reshape(-1, 4))
    order = np.argsort(-scores, kind="stable")
    table = []
    for label, category_id in enumerate(annotations.category_ids):
        chosen = order[categories[order] == category_id]
        overlaps, objects = _match(annotations, label, images[chosen], boxes[chosen])
        wanted = int((~annotations.difficult[annotations.classes == label]).sum())
        table.append(
            [_precision(overlaps > percent / 100, objects, annotations.difficult, wanted) for percent in _THRESHOLDS]
        )
    means = 100 * np.mean(table, axis=0)
    return {
        "bbox/AP": float(means.mean()),
        "bbox/AP50": float(means[_THRESHOLDS.index(50)]),
        "bbox/AP75": float(means[_THRESHOLDS.index(75)]),
    }


def _rounded(values: np.ndarray, decimals: int) -> np.ndarray:
    """Rounded by way of text, as a file would hold it, with the same side of every half."""
    return np.array([float(f"{value:.{decimals}f}") for value in values.ravel().tolist()]).reshape(values.shape)


def _as_written(boxes: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) [x, y, width, height], from 0 on, as the corners that Detectron2 writes, from 1 on."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)
    corners[:, :2] += 1  # pixel numbers of the first column and row; the last ones are one less than the edge
    return _rounded(corners, 1)


def _match(
    annotations: Annotations, label: int, images: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection (n,) of a class, the overlap with the object it overlaps most in its image, and its index."""
    overlaps, objects = np.full(len(boxes), -np.inf), np.full(len(boxes), -1)
    by_image = np.argsort(images, kind="stable")
    numbers, starts = np.unique(images[by_image], return_index=True)
    for image, here in zip(numbers.tolist(), np.split(by_image, starts)[1:], strict=True):
        in_image = np.arange(annotations.first[image], annotations.last[image])
        in_image = in_image[annotations.classes[in_image] == label]
        if len(in_image):
            truth = annotations.boxes[in_image].astype(np.float64)
            truth[:, :2] += 1
            ratio = _overlap(boxes[here], truth)
            overlaps[here], objects[here] = ratio.max(1), in_image[ratio.argmax(1)]
    return overlaps, objects


def _overlap(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4), first and last pixels included."""

    def area(corners: np.ndarray) -> np.ndarray:
        return np.prod(corners[..., 2:] - corners[..., :2] + 1, axis=-1)

    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    common = np.prod(np.maximum(high - low + 1, 0), axis=-1)
    return common / (area(boxes)[:, None] + area(truth)[None] - common)


def _precision(hit: np.ndarray, objects: np.ndarray, difficult: np.ndarray, wanted: int) -> float:
    """11-point average precision of detections (n,), best first: does it hit an object, and which."""
    if not wanted:
        return 0.0
    counts = ~hit | ~difficult[objects]
    right = np.zeros(len(hit), dtype=bool)
    right[np.flatnonzero(hit)[np.unique(objects[hit], return_index=True)[1]]] = True
    right &= counts
    found = right.cumsum()
    # Where nothing has counted yet, nothing was found either: 0.
    precision = found / np.maximum(counts.cumsum(), 1)
    recall = found / wanted
    return float(sum(precision[recall >= at].max(initial=0.0) for at in _RECALLS) / len(_RECALLS))
