"""VOC 2007's average precision, compared with its definition and with Detectron2's evaluator; and its properties."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intl_bench.core.errors import InputError
from transfer.detection.annotations.objects import Annotations
from transfer.detection.evaluation.coco import to_results
from transfer.detection.evaluation.voc import evaluate_voc
from transfer.detection.structures import Detections

CLASSES = ("aeroplane", "bicycle", "bird")


def make(images: list[list[tuple[list[float], int, bool]]]) -> Annotations:
    """Make annotations from (box, class, difficult) of each image. x0 and y0 are one less than in VOC's files."""
    objects = [entry for image in images for entry in image]
    last = np.cumsum([len(image) for image in images])
    return Annotations(
        name="voc",
        path=Path("test.txt"),
        sha256="",
        folder=Path(),
        category_ids=tuple(range(1, len(CLASSES) + 1)),
        category_names=CLASSES,
        notes=[],
        image_ids=np.arange(len(images)) + 100,
        heights=np.full(len(images), 300),
        widths=np.full(len(images), 400),
        file_names=np.array([f"{100 + i}.jpg".encode() for i in range(len(images))]),
        first=last - [len(image) for image in images],
        last=last,
        annotation_ids=np.arange(len(objects)) + 1,
        classes=np.array([label for _, label, _ in objects], dtype=np.int64),
        boxes=np.array([box for box, _, _ in objects], dtype=np.float32).reshape(-1, 4),
        crowd=np.zeros(len(objects), dtype=bool),
        difficult=np.array([difficult for _, _, difficult in objects], dtype=bool),
        outlines=None,
    )


def random_case(seed: int, *, ties: bool) -> tuple[Annotations, list[Detections]]:
    """Return objects of every class, some difficult, and detections.

    Some detections are near an object, repeated or not, some have the wrong class, and some are at other positions.
    """
    random = np.random.default_rng(seed)
    images: list[list[tuple[list[float], int, bool]]] = []
    for number in range(12):
        image = []
        for _ in range(random.integers(0, 5) if number > 2 else 1):
            x, y = random.integers(0, 250, 2).tolist()
            width, height = random.integers(10, 140, 2).tolist()
            label = number if number < 3 else int(random.integers(3))
            image.append(([x, y, x + width, min(y + height, 300)], label, number > 2 and random.uniform() < 0.3))
        images.append(image)
    found = []
    for image in images:
        boxes, labels = [], []
        for box, label, _ in image:
            for _ in range(random.integers(0, 4)):
                boxes.append((np.asarray(box) + random.normal(0, 6, 4)).tolist())
                labels.append(label if random.uniform() < 0.8 else int(random.integers(3)))
        for _ in range(random.integers(0, 3)):
            boxes.append(random.uniform([0, 0, 200, 150], [200, 150, 400, 300]).tolist())
            labels.append(int(random.integers(3)))
        corners = torch.tensor(boxes).reshape(-1, 4)
        corners = torch.cat([corners[:, :2], torch.maximum(corners[:, 2:], corners[:, :2] + 1)], 1)
        found.append(
            Detections(corners.float(), torch.zeros(len(boxes)), torch.tensor(labels, dtype=torch.int64), None)
        )
    count = sum(len(detections.boxes) for detections in found)
    # Without ties, all scores differ after rounding to three decimals. With ties, rounding makes many of them equal.
    scores = torch.from_numpy(random.permutation(990)[:count] + 5) / 1000
    scores = (scores * 6).round() / 6 + random.uniform(-1e-4, 1e-4, count) if ties else scores + 0.0003
    parts = scores.float().split([len(detections.boxes) for detections in found])
    return make(images), [entry._replace(scores=part) for entry, part in zip(found, parts, strict=True)]


def results_of(annotations: Annotations, found: list[Detections]) -> list[dict[str, Any]]:
    return [
        result
        for image, detections in zip(annotations.images, found, strict=True)
        for result in to_results(image.image_id, detections, annotations.category_ids, image.height, image.width)
    ]


def definition(annotations: Annotations, found: list[Detections]) -> dict[str, float]:
    """Apply the rules of VOC to one detection at a time, without arrays."""
    table = {}
    for percent in range(50, 100, 5):
        aps = []
        for label in range(len(CLASSES)):
            detections = []
            for image, entry in zip(annotations.images, found, strict=True):
                for box, score, found_label in zip(
                    entry.boxes, entry.scores.tolist(), entry.classes.tolist(), strict=True
                ):
                    if found_label == label:
                        written = [float(f"{v:.1f}") for v in (box + torch.tensor([1, 1, 0, 0])).tolist()]
                        detections.append((float(f"{score:.3f}"), image, written))
            wanted = sum(o.class_index == label and not o.difficult for i in annotations.images for o in i.objects)
            taken, curve, right, wrong = set(), [], 0, 0
            for _, image, (x0, y0, x1, y1) in sorted(detections, key=lambda entry: -entry[0]):
                best, target = -1.0, None
                for thing in image.objects:
                    if thing.class_index == label:
                        a0, b0, a1, b1 = (float(v) + plus for v, plus in zip(thing.box, (1, 1, 0, 0), strict=True))
                        width, height = min(x1, a1) - max(x0, a0) + 1, min(y1, b1) - max(y0, b0) + 1
                        common = max(width, 0.0) * max(height, 0.0)
                        either = (x1 - x0 + 1) * (y1 - y0 + 1) + (a1 - a0 + 1) * (b1 - b0 + 1) - common
                        if common / either > best:
                            best, target = common / either, thing
                if target is not None and best > percent / 100:
                    if not target.difficult:
                        right += target.annotation_id not in taken
                        wrong += target.annotation_id in taken
                        taken.add(target.annotation_id)
                else:
                    wrong += 1
                curve.append((right / wanted, right / max(right + wrong, 1)))
            at = [max((p for r, p in curve if r >= t), default=0.0) for t in np.arange(0, 1.1, 0.1)]
            aps.append(100 * sum(at) / 11)
        table[percent] = sum(aps) / len(aps)
    return {"bbox/AP": sum(table.values()) / len(table), "bbox/AP50": table[50], "bbox/AP75": table[75]}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_metrics_equal_the_definition(seed: int, ties: bool) -> None:
    annotations, found = random_case(seed, ties=ties)
    metrics = evaluate_voc(annotations, results_of(annotations, found))
    assert metrics == pytest.approx(definition(annotations, found), abs=1e-10)
    assert 0 < metrics["bbox/AP75"] < metrics["bbox/AP50"] < 100


def write_xml(folder: Path, annotations: Annotations) -> None:
    """Write the annotations in VOC's layout, where the first pixel has the number 1."""
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for image in annotations.images:
        things = ""
        for thing in image.objects:
            x0, y0, x1, y1 = (int(v) + plus for v, plus in zip(thing.box, (1, 1, 0, 0), strict=True))
            things += (
                f"<object><name>{CLASSES[thing.class_index]}</name><pose>Left</pose><truncated>0</truncated>"
                f"<difficult>{int(thing.difficult)}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
                f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            )
        (folder / "Annotations" / f"{image.image_id}.xml").write_text(f"<annotation>{things}</annotation>")
    names = "\n".join(str(image.image_id) for image in annotations.images)
    (folder / "ImageSets/Main/test.txt").write_text(names)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_detectron2s_evaluator(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("detectron2")
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, Instances

    annotations, found = random_case(seed, ties=False)
    write_xml(tmp_path, annotations)
    name = f"voc_evaluation_{tmp_path.name}"
    MetadataCatalog.get(name).set(dirname=str(tmp_path), split="test", year=2007, thing_classes=list(CLASSES))
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for image, detections in zip(annotations.images, found, strict=True):
        instances = Instances((image.height, image.width))
        instances.pred_boxes = Boxes(detections.boxes.clone())
        instances.scores, instances.pred_classes = detections.scores, detections.classes
        evaluator.process([{"image_id": str(image.image_id)}], [{"instances": instances}])
    theirs = {f"bbox/{key}": value for key, value in evaluator.evaluate()["bbox"].items()}
    assert evaluate_voc(annotations, results_of(annotations, found)) == pytest.approx(theirs, abs=1e-10)


def test_perfect_detections_score_100_and_difficult_ones_do_not_count() -> None:
    annotations = make([[([10, 20, 110, 90], 0, False), ([0, 0, 5, 5], 1, False)], [([30, 30, 60, 70], 2, False)], []])
    results = [
        {"image_id": image.image_id, "category_id": thing.class_index + 1, "score": 0.9, "bbox": [*low, *(high - low)]}
        for image in annotations.images
        for thing in image.objects
        for low, high in [(thing.box[:2].astype(float), thing.box[2:].astype(float))]
    ]
    results = [{**result, "bbox": [float(value) for value in result["bbox"]]} for result in results]
    perfect = {"bbox/AP": 100.0, "bbox/AP50": 100.0, "bbox/AP75": 100.0}
    assert evaluate_voc(annotations, results) == pytest.approx(perfect)
    hard = [[(list(thing.box), thing.class_index, False) for thing in image.objects] for image in annotations.images]
    hard[1].append(([200, 200, 250, 260], 2, True))
    assert evaluate_voc(make(hard), results) == pytest.approx(perfect), "a difficult object may be missed"
    found = {"image_id": 101, "category_id": 3, "score": 1.0, "bbox": [200.0, 200.0, 50.0, 60.0]}
    assert evaluate_voc(make(hard), [*results, found, found]) == pytest.approx(perfect), (
        "detections of a difficult object do not count"
    )
    without = evaluate_voc(annotations, results[:2])
    assert without["bbox/AP50"] == pytest.approx(200 / 3)


def test_no_detections_score_zero() -> None:
    annotations, _ = random_case(0, ties=False)
    assert evaluate_voc(annotations, []) == {"bbox/AP": 0.0, "bbox/AP50": 0.0, "bbox/AP75": 0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"image_id": 1}, "image_id is 1"), ({"category_id": 0}, "category_id is 0"), ({"bbox": [1, 2]}, "bbox is")],
)
def test_a_malformed_detection_is_named(change: dict[str, Any], message: str) -> None:
    annotations, _ = random_case(0, ties=False)
    good = {"image_id": 100, "category_id": 1, "score": 0.5, "bbox": [1.0, 2.0, 3.0, 4.0]}
    with pytest.raises(InputError, match=rf"^detections\[1\]: {message}"):
        evaluate_voc(annotations, [good, {**good, **change}])
