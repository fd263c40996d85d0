"""The average precision of PASCAL VOC 2007, with the same numbers as Detectron2's evaluator, except for ties.

Detections with equal scores, rounded to three decimals, are ties. Detectron2 sorts them with an unstable sort, so their
order is that of NumPy's algorithm. Here they keep their order. The AP differed by up to 0.13 because of this.
"""

import numpy as np

from transfer.detection.annotations.objects import Annotations
from transfer.detection.evaluation.coco import Result, check_results

# Overlaps in percent. Divided by 100 they are the same floats as in Detectron2.
_THRESHOLDS = tuple(range(50, 100, 5))
_RECALLS = np.arange(0.0, 1.1, 0.1)


def evaluate_voc(annotations: Annotations, results: list[Result]) -> dict[str, float]:
    """Compute the average precision of boxes by VOC 2007's 11-point metric, at ten overlaps.

    As in VOC, pixels are counted from 1 and the last pixels belong to a box. As in the files that Detectron2 evaluates,
    scores are rounded to three decimals and boxes to one. A difficult object may be missed, and a detection of it is
    neither right nor wrong. Detections with equal scores keep their order in `results`; the order of Detectron2's sort,
    which is not stable, gives other numbers among them. A class without objects has an average precision of 0, as in
    Detectron2.

    Args:
        annotations: all test images.
        results: COCO results in the form of `to_results`.

    Returns:
        "bbox/AP", "bbox/AP50" and "bbox/AP75" from 0 to 100, means over the classes. A detection hits an object if the
        overlap is above 0.5 (AP50) or 0.75 (AP75). "bbox/AP" is the mean over the thresholds 0.5, 0.55, ..., 0.95.

    Raises:
        InputError: a detection is malformed, or its image or category is unknown.
    """
    return score_voc(annotations, results)[0]


def score_voc(annotations: Annotations, results: list[Result]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Compute the metrics of `evaluate_voc`, and the average precision of each class.

    Returns:
        The metrics; and for the same keys, the values from 0 to 100 of each class in the order of the class indices.
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
    scores = _round(np.array([result["score"] for result in results], dtype=np.float64), 3)
    boxes = _to_voc_corners(np.array([result["bbox"] for result in results], dtype=np.float64).reshape(-1, 4))
    order = np.argsort(-scores, kind="stable")
    table = []
    for label, category_id in enumerate(annotations.category_ids):
        chosen = order[categories[order] == category_id]
        overlaps, objects = _match_detections(annotations, label, images[chosen], boxes[chosen])
        wanted = int((~annotations.difficult[annotations.classes == label]).sum())
        table.append(
            [
                _average_precision(overlaps > percent / 100, objects, annotations.difficult, wanted)
                for percent in _THRESHOLDS
            ]
        )
    precisions = 100 * np.array(table)
    means = 100 * np.mean(table, axis=0)
    at_50, at_75 = _THRESHOLDS.index(50), _THRESHOLDS.index(75)
    metrics = {"bbox/AP": float(means.mean()), "bbox/AP50": float(means[at_50]), "bbox/AP75": float(means[at_75])}
    classes = {"bbox/AP": precisions.mean(axis=1), "bbox/AP50": precisions[:, at_50], "bbox/AP75": precisions[:, at_75]}
    return metrics, {metric: values.tolist() for metric, values in classes.items()}


def _round(values: np.ndarray, decimals: int) -> np.ndarray:
    """Round values by formatting them as text, as Detectron2's files do. NumPy rounds some halves differently."""
    return np.array([float(f"{value:.{decimals}f}") for value in values.ravel().tolist()]).reshape(values.shape)


def _to_voc_corners(boxes: np.ndarray) -> np.ndarray:
    """Convert boxes (n, 4) [x, y, width, height], counted from 0, to the corners that Detectron2 writes, from 1."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)
    corners[:, :2] += 1  # only the first column and row: the last pixel, counted from 1, equals the edge from 0
    return _round(corners, 1)


def _match_detections(
    annotations: Annotations, label: int, images: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the object of class `label` that each detection overlaps most in its image.

    Args:
        images: (n,) int64, image of each detection.
        boxes: (n, 4), corners of each detection.

    Returns:
        (n,) overlaps, -inf if the image has no such object; (n,) indices of the objects, or -1.
    """
    overlaps, objects = np.full(len(boxes), -np.inf), np.full(len(boxes), -1)
    by_image = np.argsort(images, kind="stable")
    numbers, starts = np.unique(images[by_image], return_index=True)
    for image, here in zip(numbers.tolist(), np.split(by_image, starts)[1:], strict=True):
        in_image = np.arange(annotations.first[image], annotations.last[image])
        in_image = in_image[annotations.classes[in_image] == label]
        if len(in_image):
            truth = annotations.boxes[in_image].astype(np.float64)
            truth[:, :2] += 1
            pairs = _compute_overlaps(boxes[here], truth)
            overlaps[here], objects[here] = pairs.max(1), in_image[pairs.argmax(1)]
    return overlaps, objects


def _compute_overlaps(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute the intersection over union (n, m) of boxes (n, 4) and (m, 4), which include their last pixels."""

    def area(corners: np.ndarray) -> np.ndarray:
        return np.prod(corners[..., 2:] - corners[..., :2] + 1, axis=-1)

    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    common = np.prod(np.maximum(high - low + 1, 0), axis=-1)
    return common / (area(boxes)[:, None] + area(truth)[None] - common)


def _average_precision(hit: np.ndarray, objects: np.ndarray, difficult: np.ndarray, wanted: int) -> float:
    """Compute the 11-point average precision of detections in order of decreasing score.

    Args:
        hit: (n,) bool, whether the detection overlaps an object enough.
        objects: (n,) int64, index of that object.
        difficult: bool for each object.
        wanted: number of objects that must be found.
    """
    if not wanted:
        return 0.0
    counts = ~hit | ~difficult[objects]
    right = np.zeros(len(hit), dtype=bool)
    right[np.flatnonzero(hit)[np.unique(objects[hit], return_index=True)[1]]] = True
    right &= counts
    found = right.cumsum()
    # `maximum` avoids 0 / 0: before the first detection that counts, nothing is found and the precision is 0.
    precision = found / np.maximum(counts.cumsum(), 1)
    recall = found / wanted
    return float(sum(precision[recall >= at].max(initial=0.0) for at in _RECALLS) / len(_RECALLS))
