"""Time the COCO evaluation of this project, with its checks, against pycocotools, and compare the results.

    python benchmarks/coco_eval.py                         1000 images with 100 detections each, about a minute
    python benchmarks/coco_eval.py --images 100

All methods read the same annotation file and the same list of detections. Times are the best of `--repeats` in one run.
The masks are rough ellipses of at least 20 points.
"""

import argparse
import collections
import contextlib
import functools
import importlib.util
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from pycocotools import mask as rle

from transfer.detection.evaluation.coco import evaluate_coco

HEIGHT, WIDTH, CATEGORIES = 480, 640, 80


def outline(box: np.ndarray, random: np.random.Generator) -> list[float]:
    """Draw a polygon like that of an object: around the center of the box, with a radius reduced by up to a fifth."""
    points = int(random.integers(20, 40))
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = random.uniform(0.4, 0.5, points)
    x = box[0] + box[2] * (0.5 + radius * np.cos(angles))
    y = box[1] + box[3] * (0.5 + radius * np.sin(angles))
    return np.stack([x, y], 1).ravel().round(2).tolist()


def boxes(count: int, random: np.random.Generator) -> np.ndarray:
    """Draw boxes (count, 4) [x, y, width, height] inside the image, as in COCO: many small, some as large as it."""
    sides = np.exp(random.uniform(np.log(12), np.log([WIDTH * 0.9, HEIGHT * 0.9]), (count, 2)))
    corners = random.uniform(0, 1, (count, 2)) * ([WIDTH, HEIGHT] - sides)
    return np.concatenate([corners, sides], 1)


def problem(images: int, per_image: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw seven objects per image as in COCO, and detections: three near each object, others anywhere."""
    random = np.random.default_rng(0)
    truth: dict[str, Any] = {
        "images": [{"id": i + 1, "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "categories": [{"id": i + 1, "name": str(i + 1)} for i in range(CATEGORIES)],
        "annotations": [],
    }
    results = []
    for image in range(1, images + 1):
        objects = boxes(int(random.integers(1, 14)), random)
        labels = random.integers(1, CATEGORIES + 1, len(objects))
        for box, label in zip(objects, labels.tolist(), strict=True):
            entry = {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": label, "iscrowd": 0}
            entry |= {"bbox": box.tolist(), "area": float(box[2] * box[3]), "segmentation": [outline(box, random)]}
            truth["annotations"].append(entry)
        near = np.repeat(objects, 3, 0)[:per_image] * random.normal(1, 0.05, (min(3 * len(objects), per_image), 4))
        found = np.concatenate([near, boxes(per_image - len(near), random)])
        kinds = np.concatenate(
            [np.repeat(labels, 3)[:per_image], random.integers(1, CATEGORIES + 1, per_image - len(near))]
        )
        codes = rle.frPyObjects([outline(box, random) for box in found], HEIGHT, WIDTH)
        for box, label, code in zip(found.tolist(), kinds.tolist(), codes, strict=True):
            mask = {"size": code["size"], "counts": code["counts"].decode()}
            entry = {"image_id": image, "category_id": label, "score": float(random.uniform(0.05, 1))}
            results.append({**entry, "bbox": box, "segmentation": mask})
    return truth, results


def peer(evaluator: str, truth: Path, results: list[dict[str, Any]], iou_type: str) -> list[float]:
    """Evaluate with a package as its demonstration does; return the first six of the twelve numbers, 0 to 100."""
    if evaluator == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    field = {"bbox": "bbox", "segm": "segmentation"}[iou_type]
    kept = [{key: one[key] for key in ("image_id", "category_id", "score", field)} for one in results]
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(str(truth))
        evaluation = COCOeval(annotations, annotations.loadRes(kept), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * float(value) for value in evaluation.stats[:6]]


def ours(evaluator: str, truth: Path, results: list[dict[str, Any]], iou_type: str) -> list[float]:
    found = evaluate_coco(truth, results, iou_types=(iou_type,), evaluator=evaluator)
    return [found.get(f"{iou_type}/{name}", -100.0) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]


# The first method is the reference.
WAYS: dict[str, Callable[[Path, list[dict[str, Any]], str], list[float]]] = {
    "pycocotools": functools.partial(peer, "pycocotools"),
    "faster-coco-eval": functools.partial(peer, "faster-coco-eval"),
    "ours, evaluator=pycocotools": functools.partial(ours, "pycocotools"),
    "ours, evaluator=faster-coco-eval": functools.partial(ours, "faster-coco-eval"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--detections", type=int, default=100, help="number per image")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    truth, results = problem(options.images, options.detections)
    print(f"{options.images} images, {len(truth['annotations'])} objects, {len(results)} detections")
    print("| method | boxes, s | pycocotools / method | masks, s | pycocotools / method | largest difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(truth))
        times: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
        numbers: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.repeats):
            for way, evaluate in WAYS.items():
                for iou_type in ("bbox", "segm"):
                    if "faster-coco-eval" in way and not importlib.util.find_spec("faster_coco_eval"):
                        continue
                    started = time.perf_counter()
                    numbers[way, iou_type] = evaluate(path, results, iou_type)
                    times[way, iou_type].append(time.perf_counter() - started)
    for way in WAYS:
        if (way, "bbox") not in times:
            print(f"| {way} | not installed | | | | |")
            continue
        cells, difference = "", 0.0
        for iou_type in ("bbox", "segm"):
            taken, slowest = min(times[way, iou_type]), min(times["pycocotools", iou_type])
            cells += f" {taken:.2f} | {slowest / taken:.1f} |"
            pairs = zip(numbers[way, iou_type], numbers["pycocotools", iou_type], strict=True)
            difference = max(difference, *(abs(own - theirs) for own, theirs in pairs))
        print(f"| {way} |{cells} {difference:.1e} |")


if __name__ == "__main__":
    main()
