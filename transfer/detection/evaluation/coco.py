"""COCO's average precision of boxes and masks.

All reported numbers are computed by pycocotools. faster-coco-eval computes the same numbers in less time, for
evaluations during training.
"""

import contextlib
import io
import itertools
import math
import operator
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from intl_bench.core.copies import fetch
from intl_bench.core.errors import InputError
from transfer.detection import masks
from transfer.detection.annotations.coco import without_garbage_collection
from transfer.detection.annotations.documents import load_json
from transfer.detection.annotations.objects import Annotations
from transfer.detection.annotations.rows import read_id
from transfer.detection.evaluation.truth import read_truth
from transfer.detection.structures import Detections

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_FIELDS = {"bbox": "bbox", "segm": "segmentation"}
_EVALUATORS = ("pycocotools", "faster-coco-eval")
# Exact types, because a comparison of types is fast for a million numbers, and because bool is not allowed.
_NUMBER_TYPES = frozenset({int, float, np.float32, np.float64})
# Compressed counts, as in `rle.decode_counts`. Only the last character of a group is from 0 to O.
_COMPRESSED_COUNTS = re.compile("[0-o]*[0-O]")

Result = Mapping[str, Any]


def evaluate_coco(
    annotations_json: str | Path,
    detections: Iterable[Result] | str | Path,
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    evaluator: str = "pycocotools",
    category_ids: Sequence[int] | None = None,
) -> dict[str, float]:
    """Compute the average precision of detections on all images of an annotation file.

    As in Detectron2, masks of detections are small, medium or large by their own area, even if the detections have
    boxes. Ids may be any whole numbers, also written as text. Where `iscrowd` is missing it is 0. Where `area` is
    missing it is that of the mask, or of the box if there are no masks; a warning says so.

    Args:
        annotations_json: instances JSON of COCO.
        detections: COCO results {"image_id", "category_id", "score"} with "bbox" [x, y, width, height] in pixels of
            the image file, "segmentation" as a compressed run-length encoding, or both; or a JSON file of results.
        iou_types: "bbox" for boxes, "segm" for masks.
        evaluator: "pycocotools", or "faster-coco-eval" for the same numbers in less time.
        category_ids: the ids of the file in the order in which the precisions of the categories are added up, which
            determines the last digit; by default in increasing order.

    Returns:
        COCO's twelve numbers from 0 to 100: "bbox/AP", "bbox/AP50", "bbox/AP75", "bbox/APs", "bbox/APm", "bbox/APl",
        "bbox/AR1", "bbox/AR10", "bbox/AR100", "bbox/ARs", "bbox/ARm", "bbox/ARl", and the same for "segm". A metric
        without annotated objects, such as APs without small objects, is left out.

    Raises:
        InputError: a file cannot be read, an annotation or a detection is malformed, the image or category of a
            detection is unknown, or faster-coco-eval is not installed.
    """
    return score_coco(
        annotations_json, detections, iou_types=iou_types, evaluator=evaluator, category_ids=category_ids
    )[0]


def score_coco(
    annotations_json: str | Path,
    detections: Iterable[Result] | str | Path,
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    evaluator: str = "pycocotools",
    category_ids: Sequence[int] | None = None,
) -> tuple[dict[str, float], dict[str, dict[int, float | None]]]:
    """Compute the metrics of `evaluate_coco`, and the AP of each category.

    Returns:
        The metrics; and {"bbox": {category id: AP from 0 to 100}, "segm": the same}. The AP of a category without
        objects is None.
    """
    for iou_type in iou_types:
        if iou_type not in _FIELDS:
            raise InputError(f"iou_types: {iou_type!r} is unknown; expected {' or '.join(_FIELDS)}")
    dataset_class, evaluator_class = import_evaluator(evaluator)
    with without_garbage_collection():
        truth = read_truth(Path(annotations_json), iou_types, category_ids)
        name = "detections"
        if isinstance(detections, str | Path):
            name, (detections, _) = str(detections), load_json(Path(detections), "the detections")
        checked = check_results(
            detections, sizes=truth.sizes, category_ids=truth.category_numbers, iou_types=iou_types, name=name
        )
        results = truth.renumber(checked)
        metrics, categories = dict[str, float](), dict[str, dict[int, float | None]]()
        for iou_type in iou_types:
            with contextlib.redirect_stdout(io.StringIO()):  # the evaluators print their progress
                datasets = _build_datasets(dataset_class, truth.dataset, results, iou_type)
                evaluation = evaluator_class(*datasets, iouType=iou_type)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            categories[iou_type] = dict(zip(truth.category_numbers, _average_by_category(evaluation), strict=True))
            # COCO's twelve numbers from 0 to 1, or -1 for a metric without objects.
            values = zip(_METRICS, evaluation.stats, strict=False)
            metrics.update({f"{iou_type}/{metric}": 100 * float(value) for metric, value in values if value >= 0})
    for note in truth.notes:
        warnings.warn(f"{annotations_json}: {note}", stacklevel=2)
    return metrics, categories


def _average_by_category(evaluation: Any) -> list[float | None]:
    """Compute the AP from 0 to 100 of each category, in the order of their numbers; None without objects."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (overlaps, recalls, categories), of all areas
    found = [precision[:, :, index] for index in range(precision.shape[2])]
    return [100 * float(values[values > -1].mean()) if (values > -1).any() else None for values in found]


def image_precisions(annotations: Annotations, results: Sequence[Result]) -> np.ndarray:
    """Compute the box AP (IoU 0.5 to 0.95) of each image on its own.

    The AP of an image is the mean over the categories of its objects. VOC's difficult objects are treated as crowds,
    so they may be missed.

    Args:
        annotations: n images.
        results: COCO results with boxes, for these images.

    Returns:
        (n,) float64 from 0 to 100; NaN for an image without objects.
    """
    dataset_class, evaluator_class = import_evaluator("pycocotools")
    numbers = {image_id: number for number, image_id in enumerate(annotations.image_ids.tolist(), start=1)}
    labels = {category_id: label for label, category_id in enumerate(annotations.category_ids)}
    results = [
        {**one, "image_id": numbers[one["image_id"]], "category_id": labels[one["category_id"]]} for one in results
    ]
    optional = annotations.crowd | annotations.difficult
    truth: dict[str, list[dict[str, Any]]] = {
        "images": [{"id": number} for number in numbers.values()],
        "categories": [{"id": label} for label in labels.values()],
        "annotations": [],
    }
    precisions = np.full(len(numbers), np.nan)
    bounds = zip(annotations.first.tolist(), annotations.last.tolist(), strict=True)
    for number, (first, last) in enumerate(bounds, start=1):
        for i in range(first, last):
            x0, y0, x1, y1 = annotations.boxes[i].tolist()
            entry = {"id": len(truth["annotations"]) + 1, "image_id": number, "iscrowd": int(optional[i])}
            entry["category_id"] = int(annotations.classes[i])
            truth["annotations"].append({**entry, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": 1.0})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluator_class(*_build_datasets(dataset_class, truth, results, "bbox"), iouType="bbox")
        all_areas = [0.0, math.inf]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [all_areas], ["all"]
        evaluation.params.maxDets = [100]
        for index, (first, last) in enumerate(zip(annotations.first, annotations.last, strict=True)):
            present = sorted(set(annotations.classes[first:last][~optional[first:last]].tolist()))
            if present:
                evaluation.params.imgIds = [index + 1]
                evaluation.params.catIds = present
                evaluation.evaluate()
                evaluation.accumulate()
                precisions[index] = 100 * evaluation.eval["precision"].mean()
    return precisions


def to_results(
    image_id: int,
    detections: Detections,
    category_ids: Sequence[int],
    height: int,
    width: int,
    *,
    paste_pixels: int = 2**26,
) -> list[dict[str, Any]]:
    """Convert the detections of one image to COCO results, which can be written as JSON.

    Args:
        image_id: id of the image in the annotations.
        detections: detections in pixels of the image file.
        category_ids: category id of each class.
        height, width: size of the image file.
        paste_pixels: largest number of pixels of masks in memory at a time, but at least one mask.

    Returns:
        One dict for each detection: image_id, category_id, score, bbox [x, y, width, height], and segmentation (a
        compressed run-length encoding) if there are masks.
    """
    fetched = [fetch(numbers) for numbers in (detections.boxes, detections.scores, detections.classes)]
    boxes, scores, classes = (numbers.read() for numbers in fetched)
    # The difference of two float32 is exact in float64, so x + width is exactly the right edge.
    boxes = boxes.double()
    sides = boxes[:, 2:] - boxes[:, :2]
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label], "score": score, "bbox": [*corner, *side]}
        for label, score, corner, side in zip(
            classes.tolist(), scores.tolist(), boxes[:, :2].tolist(), sides.tolist(), strict=True
        )
    ]
    if detections.masks is not None:
        step = max(1, paste_pixels // (height * width))
        for first in range(0, len(results), step):
            part = slice(first, first + step)
            pasted = masks.paste(detections.masks[part], detections.boxes[part], height, width)
            columns = np.asfortranarray(fetch(pasted).read().numpy().astype(np.uint8).transpose(1, 2, 0))
            for result, encoding in zip(results[part], coco_mask.encode(columns), strict=True):
                result["segmentation"] = {"size": [height, width], "counts": encoding["counts"].decode("ascii")}
    return results


def check_results(
    results: Any,
    *,
    sizes: Mapping[Any, list[int]],
    category_ids: Collection[int],
    iou_types: Sequence[str],
    name: str = "detections",
) -> list[Result]:
    """Check COCO results and return them as a list, with ids as whole numbers.

    Args:
        sizes: [height, width] of each image id.
        category_ids: the known category ids.
        iou_types: "bbox" if the results need boxes, "segm" if they need masks.
        name: name of the results, for messages.

    Raises:
        InputError: a result is malformed. The message names its index and field.
    """
    if not isinstance(results, list | tuple):
        raise InputError(f"{name}: a {type(results).__name__}; expected a list of COCO results")
    results = _read_ids(results)
    fields = [_FIELDS[iou_type] for iou_type in iou_types]
    if not _are_all_valid(results, sizes, category_ids, fields):
        for position, result in enumerate(results):
            problem = _find_result_problem(result, sizes, category_ids, fields)
            if problem:
                raise InputError(f"{name}[{position}]: {problem}")
    return list(results)


def import_evaluator(evaluator: str) -> tuple[Callable[[], Any], Callable[..., Any]]:
    """Import the data set class and the evaluator class of an evaluator.

    Raises:
        InputError: the evaluator is unknown or not installed.
    """
    if evaluator == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    if evaluator != "faster-coco-eval":
        raise InputError(f"evaluator={evaluator}: expected {' or '.join(_EVALUATORS)}")
    try:
        import faster_coco_eval
    except ImportError as error:
        raise InputError(
            "evaluator=faster-coco-eval: the package is not installed; run pip install faster-coco-eval, or set "
            "evaluator=pycocotools"
        ) from error
    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _build_datasets(
    dataset_class: Callable[[], Any], truth: dict[str, list[dict[str, Any]]], results: Sequence[Result], iou_type: str
) -> list[Any]:
    """Build the data sets of the truth and of the results for an evaluator.

    The entries are copies, because an evaluator writes to them.
    """
    field = _FIELDS[iou_type]
    shapes = [result[field] for result in results]
    areas = [*map(_compute_area, shapes)]
    found = [
        {
            "id": number,
            "image_id": result["image_id"],
            "category_id": result["category_id"],
            "score": result["score"],
            field: shape,
            "area": area,
            "iscrowd": 0,
        }
        for number, (result, shape, area) in enumerate(zip(results, shapes, areas, strict=True), start=1)
    ]
    datasets = []
    for entries in ([dict(entry) for entry in truth["annotations"]], found):
        dataset = dataset_class()
        dataset.dataset = {**truth, "annotations": entries}
        dataset.createIndex()
        datasets.append(dataset)
    return datasets


def _compute_area(shape: Any) -> float:
    """Compute the area of a mask (a run-length encoding) or of a box [x, y, width, height]."""
    return float(coco_mask.area(shape)) if isinstance(shape, dict) else shape[2] * shape[3]


def _read_ids(results: Sequence[Any]) -> list[Any]:
    """Read the ids of results, which may be written as 5, 5.0 or "5". Others stay as they are."""
    keys = ("image_id", "category_id")
    objects = [result for result in results if isinstance(result, Mapping)]
    if all({type(result.get(key)) for result in objects} <= {int} for key in keys):
        return list(results)
    changed = []
    for result in results:
        ids = {key: read_id(result[key]) for key in keys if key in result} if isinstance(result, Mapping) else {}
        changed.append({**result, **{key: value for key, value in ids.items() if value is not None}} if ids else result)
    return changed


def _are_all_valid(
    results: Sequence[Any], sizes: Mapping[Any, list[int]], category_ids: Collection[int], fields: list[str]
) -> bool:
    """Check the fields of all results at once, which is faster than one result at a time.

    Returns:
        False if a result may be malformed; then each result must be checked on its own.
    """
    if not {*map(type, results)} <= {dict}:
        return False
    try:
        images, categories, numbers, *outlines = (
            [*map(operator.itemgetter(key), results)] for key in ("image_id", "category_id", "score", *fields)
        )
        valid = {*images} <= sizes.keys() and {*categories} <= {*category_ids}
        for field, column in zip(fields, outlines, strict=True):
            if field == "bbox":
                valid &= {*map(type, column)} <= {list, tuple} and {*map(len, column)} <= {4}
                valid &= all(box[2] >= 0 and box[3] >= 0 for box in column)
                numbers += itertools.chain.from_iterable(column)
            else:
                valid &= not any(map(_find_encoding_problem, column, map(sizes.__getitem__, images)))
        valid = valid and {*map(type, numbers)} <= _NUMBER_TYPES
        return valid and bool(np.isfinite(np.array(numbers, np.float64)).all())
    except (KeyError, TypeError, IndexError, OverflowError, ValueError):
        return False


def _find_result_problem(
    result: Any, sizes: Mapping[Any, list[int]], category_ids: Collection[int], fields: list[str]
) -> str:
    """Describe the first problem of a result; empty if there is none."""
    problem = _find_missing_field(result, ("image_id", "category_id", "score", *fields))
    if problem:
        return problem
    for key, known, what in (("image_id", sizes, "an image"), ("category_id", category_ids, "a category")):
        if result[key].__hash__ is None or result[key] not in known:
            return f"{key} is {result[key]!r}; expected the id of {what} of the annotations"
    if not _is_finite_number(result["score"]):
        return f"score is {result['score']!r}; expected a finite number"
    if "bbox" in fields and (problem := _find_box_problem(result["bbox"])):
        return problem
    return _find_encoding_problem(result["segmentation"], sizes[result["image_id"]]) if "segmentation" in fields else ""


def _find_missing_field(entry: Any, keys: Iterable[str]) -> str:
    if not isinstance(entry, dict):
        return f"a {type(entry).__name__}; expected an object"
    for key in keys:
        if key not in entry:
            return f"{key} is missing"
    return ""


def _find_box_problem(box: Any) -> str:
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_finite_number, box)) or min(box[2:]) < 0:
        return f"bbox is {box!r}; expected [x, y, width, height], finite numbers, width and height at least 0"
    return ""


def _find_encoding_problem(encoding: Any, size: list[int]) -> str:
    """Describe the problem of the mask of a result; empty if there is none. `size` is the [height, width] expected."""
    if not isinstance(encoding, dict) or not isinstance(encoding.get("counts"), str | bytes) or not encoding["counts"]:
        return "segmentation: expected compressed RLE, an object with size [height, width] and counts"
    if list(encoding.get("size", ())) != size:
        return f"segmentation: size is {encoding.get('size')!r}; expected the image's [height, width], {size}"
    counts = encoding["counts"]
    if not _COMPRESSED_COUNTS.fullmatch(counts if isinstance(counts, str) else counts.decode("latin-1")):
        return "segmentation: counts are not valid; expected the compressed string that pycocotools writes"
    return ""


def _is_finite_number(value: Any) -> bool:
    return type(value) in _NUMBER_TYPES and math.isfinite(value)
