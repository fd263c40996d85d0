"""COCO evaluation: faster-coco-eval's time against pycocotools' on the same detections, and that the numbers are equal.

    python benchmarks/coco_eval.py                         1000 images with 100 detections each, about a minute
    python benchmarks/coco_eval.py --images 100

Every way reads the same annotation file and the same list of detections, through `evaluate_coco` with its checks.
Times are the best of `--repeats` within one run. The masks are rough ellipses of 20 points and more.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from pycocotools import mask as rle

from transfer.detection.evaluation import evaluate_coco

HEIGHT, WIDTH, CATEGORIES = 480, 640, 80


def outline(box: np.ndarray, random: np.random.Generator) -> list[float]:
    """A polygon like an object's: around the middle of the box, its radius up to a fifth shorter here and there."""
    points = int(random.integers(20, 40))
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = random.uniform(0.4, 0.5, points)
    x = box[0] + box[2] * (0.5 + radius * np.cos(angles))
    y = box[1] + box[3] * (0.5 + radius * np.sin(angles))
    return np.stack([x, y], 1).ravel().round(2).tolist()


def boxes(count: int, random: np.random.Generator) -> np.ndarray:
    """Boxes (count, 4) [x, y, width, height] inside the image, sizes as in COCO: many small, some as large as it."""
    sides = np.exp(random.uniform(np.log(12), np.log([WIDTH * 0.9, HEIGHT * 0.9]), (count, 2)))
    corners = random.uniform(0, 1, (count, 2)) * ([WIDTH, HEIGHT] - sides)
    return np.concatenate([corners, sides], 1)


def problem(images: int, per_image: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations, seven objects an image as in COCO; detections, three near each object, the others anywhere."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--detections", type=int, default=100, help="of each image")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    truth, results = problem(options.images, options.detections)
    print(f"{options.images} images, {len(truth['annotations'])} objects, {len(results)} detections")
    print("| evaluated | pycocotools s | faster-coco-eval s | ratio | largest difference |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(truth))
        for iou_type, name in (("bbox", "boxes"), ("segm", "masks")):
            times: dict[str, list[float]] = {"pycocotools": [], "faster-coco-eval": []}
            metrics = {}
            for _ in range(options.repeats):
                for evaluator, taken in times.items():
                    started = time.perf_counter()
                    metrics[evaluator] = evaluate_coco(path, results, iou_types=(iou_type,), evaluator=evaluator)
                    taken.append(time.perf_counter() - started)
            slow, fast = (min(taken) for taken in times.values())
            theirs, ours = metrics.values()
            difference = max(abs(theirs[key] - ours[key]) for key in theirs)
            print(f"| {name} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} | {difference:.1e} |")


if __name__ == "__main__":
    main()
