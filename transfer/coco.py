"""COCO detection and instance segmentation: Mask R-CNN R50-C4 on the pre-trained backbone.

The protocol is that of the authors and of MoCo: all layers are trained, SyncBN everywhere and after res5, PreciseBN at
the end.
"""

import collections
from pathlib import Path
from typing import Any

from pretrain.checkpoint import Checkpoint
from transfer.detection import detectors
from transfer.detection import task as detection
from transfer.detection.annotations.objects import Annotations
from transfer.detection.config import DetectionConfig
from transfer.detection.detectors import Detector
from transfer.detection.engines import choice
from transfer.detection.evaluation.coco import evaluate_coco, score_coco
from transfer.detection.structures import Scores
from transfer.task import Outcome, Task

__all__ = ["TASK", "DetectionConfig", "evaluate_coco"]


def run(checkpoint: Checkpoint, config: DetectionConfig, seed: int, *, folder: Path) -> Outcome:
    """Train and score one detector: `bbox/AP`, `bbox/AP50`, ..., `segm/ARl`. See `transfer.detection.task.run`."""
    return detection.run(checkpoint, config, seed, folder=folder, evaluate=_evaluate)


def _evaluate_detector(detector: Detector, config: DetectionConfig, folder: Path) -> Outcome:
    return detection.evaluate_detector(detector, config, folder, evaluate=_evaluate)


def _evaluate(test: Annotations, results: list[dict[str, Any]], config: DetectionConfig, evaluator: str) -> Scores:
    kinds = ("bbox", "segm") if config.model.masks else ("bbox",)
    metrics, categories = score_coco(
        test.path, results, iou_types=kinds, evaluator=evaluator, category_ids=test.category_ids
    )
    counts = collections.Counter(test.category_names)
    names = {
        number: name if counts[name] == 1 else f"{name} ({number})"
        for number, name in zip(test.category_ids, test.category_names, strict=True)
    }
    named = {
        kind: {names[number]: value for number, value in values.items() if value is not None}
        for kind, values in categories.items()
    }
    return Scores(metrics=metrics, per_category=named)


TASK = Task(
    config=DetectionConfig,
    run=run,
    protocol=detection.protocol,
    images=detection.open_images,
    digests=detection.digests,
    from_checkpoint=detection.from_checkpoint,
    default="r50_c4_2x",
    resolve=choice.resolve,
    draw=detection.draw,
    read_detector=detectors.read,
    evaluate=_evaluate_detector,
)
