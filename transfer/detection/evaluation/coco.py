"""COCO's average precision of boxes and masks.

pycocotools gives every number that is reported; faster-coco-eval gives the same ones sooner and is meant for
evaluations during training.
"""

import contextlib
import io
import itertools
import json
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from intl_bench.core.copies import fetch
from intl_bench.core.errors import InputError, from_os_error
from transfer.detection import masks
from transfer.detection.annotations.coco import no_collection
from transfer.detection.annotations.objects import Annotations
from transfer.detection.rle import counts_of
from transfer.detection.structures import Detections

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the first six of COCO's twelve
_FIELDS = {"bbox": "bbox", "segm": "segmentation"}
_EVALUATORS = ("pycocotools", "faster-coco-eval")
# By exact type, which keeps bool out and is quick: there may be a million numbers to check.
_NUMBERS = frozenset({int, float, np.float32, np.float64})
# Compressed counts: groups of characters of which each but the last has the sixth bit of its code, less 48, set.
_COUNTS = re.compile("[0-o]*[0-O]")
# Pixels of masks to paste at a time, so that a large photograph with many objects does not fill the memory.
_PASTE_PIXELS = 2**26

Result = Mapping[str, Any]


def evaluate_coco(
    annotations_json: str | Path,
    detections: Iterable[Result] | str | Path,
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    evaluator: str = "pycocotools",
) -> dict[str, float]:
    """Average precision of detections on all images of an annotation file.

    As in Detectron2, an object counts as small, medium or large by the area of its mask where masks are evaluated,
    also if the detections have boxes.

    Args:
        annotations_json: COCO instance annotations.
        detections: COCO results, {"image_id", "category_id", "score"} with "bbox" [x, y, width, height] in pixels of
            the image file, "segmentation" as compressed RLE, or both; or a JSON file of them.
        iou_types: "bbox" for boxes, "segm" for masks.
        evaluator: "pycocotools", or "faster-coco-eval" for the same numbers sooner.

    Returns:
        "bbox/AP", "bbox/AP50", "bbox/AP75", "bbox/APs", "bbox/APm", "bbox/APl" and the same for "segm", from 0 to 100.
        A metric that no annotated object counts for, such as APs without small objects, is left out.

    Raises:
        InputError: a file cannot be read; an annotation or a detection is malformed or about an unknown image or
            category; faster-coco-eval is not installed.
    """
    for iou_type in iou_types:
        if iou_type not in _FIELDS:
            raise InputError(f"iou_types: {iou_type!r} is unknown; expected {' or '.join(_FIELDS)}")
    kinds = import_evaluator(evaluator)
    with no_collection():
        truth = _read_truth(Path(annotations_json), iou_types)
        name = "detections"
        if isinstance(detections, str | Path):
            name, detections = str(detections), _read_json(Path(detections))
        results = check_results(
            detections,
            sizes={image["id"]: [image["height"], image["width"]] for image in truth["images"]},
            category_ids={category["id"] for category in truth["categories"]},
            iou_types=iou_types,
            name=name,
        )
        metrics = {}
        for iou_type in iou_types:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
                stats = _score(kinds, truth, results, iou_type)
            found = zip(_METRICS, stats, strict=False)
            metrics.update({f"{iou_type}/{metric}": 100 * float(value) for metric, value in found if value >= 0})
    return metrics


def image_precisions(annotations: Annotations, results: Sequence[Result]) -> np.ndarray:
    """Box AP (IoU 0.5 to 0.95) of each image by itself, a mean over the categories that it has objects of.

    VOC's difficult objects are treated as crowds: they need not be found.

    Args:
        annotations: n images.
        results: COCO results with boxes, for these images.

    Returns:
        (n,) float64 from 0 to 100; NaN for an image without objects.
    """
    make, evaluator = import_evaluator("pycocotools")
    ids = annotations.image_ids.tolist()
    aside = annotations.crowd | annotations.difficult
    truth: dict[str, list[dict[str, Any]]] = {
        "images": [{"id": image_id} for image_id in ids],
        "categories": [{"id": category_id} for category_id in annotations.category_ids],
        "annotations": [],
    }
    precisions = np.full(len(ids), np.nan)
    for image_id, first, last in zip(ids, annotations.first.tolist(), annotations.last.tolist(), strict=True):
        for i in range(first, last):
            x0, y0, x1, y1 = annotations.boxes[i].tolist()
            entry = {"id": len(truth["annotations"]) + 1, "image_id": image_id, "iscrowd": int(aside[i])}
            entry["category_id"] = annotations.category_ids[annotations.classes[i]]
            truth["annotations"].append({**entry, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": 1.0})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluator(*_index(make, truth, results, "bbox"), iouType="bbox")
        everything = [0.0, math.inf]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [everything], ["all"]
        evaluation.params.maxDets = [100]
        for index, (first, last) in enumerate(zip(annotations.first, annotations.last, strict=True)):
            present = sorted(set(annotations.classes[first:last][~aside[first:last]].tolist()))
            if present:
                evaluation.params.imgIds = [ids[index]]
                evaluation.params.catIds = [annotations.category_ids[label] for label in present]
                evaluation.evaluate()
                evaluation.accumulate()
                precisions[index] = 100 * evaluation.eval["precision"].mean()
    return precisions


def to_results(
    image_id: int, detections: Detections, category_ids: Sequence[int], height: int, width: int
) -> list[dict[str, Any]]:
    """What was found in one image as COCO results, ready for JSON.

    Args:
        image_id: as in the annotations.
        detections: in pixels of the image file.
        category_ids: category id of each class.
        height, width: of the image file.

    Returns:
        One dict a detection: image_id, category_id, score, bbox [x, y, width, height], and segmentation (compressed
        RLE) where there are masks.
    """
    fetched = [fetch(numbers) for numbers in (detections.boxes, detections.scores, detections.classes)]
    boxes, scores, classes = (numbers.read() for numbers in fetched)
    # In float64 the difference of two float32 is exact, so that x + width is the right edge again.
    boxes = boxes.double()
    sides = boxes[:, 2:] - boxes[:, :2]
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label], "score": score, "bbox": [*corner, *side]}
        for label, score, corner, side in zip(
            classes.tolist(), scores.tolist(), boxes[:, :2].tolist(), sides.tolist(), strict=True
        )
    ]
    if detections.masks is not None:
        step = max(1, _PASTE_PIXELS // (height * width))
        for first in range(0, len(results), step):
            part = slice(first, first + step)
            pasted = masks.paste(detections.masks[part], detections.boxes[part], height, width)
            columns = np.asfortranarray(fetch(pasted).read().numpy().astype(np.uint8).transpose(1, 2, 0))
            for result, code in zip(results[part], rle.encode(columns), strict=True):
                result["segmentation"] = {"size": [height, width], "counts": code["counts"].decode("ascii")}
    return results


def check_results(
    results: Any,
    *,
    sizes: Mapping[Any, list[int]],
    category_ids: Collection[int],
    iou_types: Sequence[str],
    name: str = "detections",
) -> list[Result]:
    """Returns `results` if they are COCO results for these images.

    Args:
        sizes: [height, width] of each image id.
        iou_types: what the results are to be scored by.
        name: of the results, for the message.

    Raises:
        InputError: one of them is malformed; the message names its index and field.
    """
    if not isinstance(results, list | tuple):
        raise InputError(f"{name}: expected a list of COCO results, not {type(results).__name__}")
    fields = [_FIELDS[iou_type] for iou_type in iou_types]
    if not _plainly_right(results, sizes, category_ids, fields):
        for position, result in enumerate(results):
            problem = _result_problem(result, sizes, category_ids, fields)
            if problem:
                raise InputError(f"{name}[{position}]: {problem}")
    return list(results)


def import_evaluator(evaluator: str) -> tuple[Callable[[], Any], Callable[..., Any]]:
    """The data set class and the evaluator class."""
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
            "evaluator=faster-coco-eval: it is not installed; pip install 'intl-bench[fast]', or use pycocotools"
        ) from error
    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _score(
    kinds: tuple[Callable[[], Any], Callable[..., Any]],
    truth: dict[str, list[dict[str, Any]]],
    results: Sequence[Result],
    iou_type: str,
) -> Sequence[float]:
    """COCO's twelve numbers, from 0 to 1, or -1 where there is nothing to measure."""
    make, evaluator = kinds
    evaluation = evaluator(*_index(make, truth, results, iou_type), iouType=iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


def _index(
    make: Callable[[], Any], truth: dict[str, list[dict[str, Any]]], results: Sequence[Result], iou_type: str
) -> list[Any]:
    """Truth and results as data sets for an evaluator, which writes into their entries."""
    field = _FIELDS[iou_type]
    outlines = [result[field] for result in results]
    areas = [*map(_area, outlines)]
    found = [
        {
            "id": number,
            "image_id": result["image_id"],
            "category_id": result["category_id"],
            "score": result["score"],
            field: outline,
            "area": area,
            "iscrowd": 0,
        }
        for number, (result, outline, area) in enumerate(zip(results, outlines, areas, strict=True), start=1)
    ]
    sets = []
    for entries in ([dict(entry) for entry in truth["annotations"]], found):
        coco = make()
        coco.dataset = {**truth, "annotations": entries}
        coco.createIndex()
        sets.append(coco)
    return sets


def _area(outline: Any) -> float:
    return float(rle.area(outline)) if isinstance(outline, dict) else outline[2] * outline[3]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error


def _read_truth(path: Path, iou_types: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The annotation file, checked and reduced to the fields that it is scored by."""
    content = _read_json(path)
    for part, needed in (("images", ("id", "height", "width")), ("categories", ("id",)), ("annotations", ())):
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{path}: {part} is missing; expected COCO instance annotations")
        for position, entry in enumerate(entries):
            problem = _missing(entry, needed)
            if problem:
                raise InputError(f"{path}: {part}[{position}]: {problem}")
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    fields = [_FIELDS[iou_type] for iou_type in iou_types]
    annotations = []
    for position, entry in enumerate(content["annotations"]):
        problem = _missing(entry, ("image_id", "category_id", "area", *fields))
        problem = problem or ("bbox" in fields and _box_problem(entry["bbox"])) or ""
        problem = problem or ("segmentation" in fields and _outline_problem(entry, sizes)) or ""
        if problem:
            raise InputError(f"{path}: annotations[{position}]: {problem}")
        kept = {key: entry[key] for key in ("image_id", "category_id", "area", *fields)}
        # Numbered anew, because both evaluators take the id 0 for "nothing was matched".
        annotations.append({**kept, "id": position + 1, "iscrowd": int(bool(entry.get("iscrowd", 0)))})
    return {"images": content["images"], "categories": content["categories"], "annotations": annotations}


def _plainly_right(
    results: Sequence[Any], sizes: Mapping[Any, list[int]], category_ids: Collection[int], fields: list[str]
) -> bool:
    """Whether nothing is wrong with any detection, found in whole columns; where not, each has to be looked at."""
    if not {*map(type, results)} <= {dict}:
        return False
    try:
        images, categories, numbers, *outlines = (
            [*map(operator.itemgetter(key), results)] for key in ("image_id", "category_id", "score", *fields)
        )
        right = {*images} <= sizes.keys() and {*categories} <= {*category_ids}
        for field, column in zip(fields, outlines, strict=True):
            if field == "bbox":
                right &= {*map(type, column)} <= {list, tuple} and {*map(len, column)} <= {4}
                right &= all(box[2] >= 0 and box[3] >= 0 for box in column)
                numbers += itertools.chain.from_iterable(column)
            else:
                right &= not any(map(_rle_problem, column, map(sizes.__getitem__, images)))
        return right and {*map(type, numbers)} <= _NUMBERS and bool(np.isfinite(np.array(numbers, np.float64)).all())
    except (KeyError, TypeError, IndexError, OverflowError, ValueError):
        return False


def _result_problem(
    result: Any, sizes: Mapping[Any, list[int]], category_ids: Collection[int], fields: list[str]
) -> str:
    """What is wrong with a detection; empty if nothing is."""
    problem = _missing(result, ("image_id", "category_id", "score", *fields))
    if problem:
        return problem
    for key, known, what in (("image_id", sizes, "image"), ("category_id", category_ids, "category")):
        if result[key].__hash__ is None or result[key] not in known:
            return f"{key} is {result[key]!r}, but the annotations have no such {what}"
    if not _is_number(result["score"]):
        return f"score is {result['score']!r}, expected a finite number"
    if "bbox" in fields and (problem := _box_problem(result["bbox"])):
        return problem
    return _rle_problem(result["segmentation"], sizes[result["image_id"]]) if "segmentation" in fields else ""


def _missing(entry: Any, keys: Iterable[str]) -> str:
    if not isinstance(entry, dict):
        return f"expected an object, not {type(entry).__name__}"
    for key in keys:
        if key not in entry:
            return f"{key} is missing"
    return ""


def _box_problem(box: Any) -> str:
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
        return f"bbox is {box!r}, expected x, y, width and height, finite, the latter two not negative"
    return ""


def _outline_problem(entry: dict[str, Any], sizes: Mapping[Any, tuple[int, int]]) -> str:
    outline = entry["segmentation"]
    if isinstance(outline, dict) and entry["image_id"] in sizes:
        try:
            counts_of(outline, *sizes[entry["image_id"]])
        except ValueError as error:
            return f"segmentation has {error}"
        return ""
    if isinstance(outline, list) and outline and all(isinstance(part, list) and len(part) >= 6 for part in outline):
        return ""
    return "segmentation: expected polygons of at least three points, or RLE"


def _rle_problem(code: Any, size: list[int]) -> str:
    if not isinstance(code, dict) or not isinstance(code.get("counts"), str | bytes) or not code["counts"]:
        return "segmentation: expected compressed RLE, an object of size [height, width] and counts"
    if list(code.get("size", ())) != size:
        return f"segmentation: size is {code.get('size')!r}, but the image's height and width are {size}"
    counts = code["counts"]
    if not _COUNTS.fullmatch(counts if isinstance(counts, str) else counts.decode("latin-1")):
        return "segmentation: counts is damaged, it is not what pycocotools writes"
    return ""


def _is_number(value: Any) -> bool:
    return type(value) in _NUMBERS and math.isfinite(value)
