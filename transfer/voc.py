"""PASCAL VOC detection: Faster R-CNN R50-C4 trained on VOC07+12 trainval, scored on VOC07 test by the VOC07 metric."""

from pathlib import Path
from typing import Any

from pretrain.checkpoint import Checkpoint
from transfer.detection import detectors
from transfer.detection import task as detection
from transfer.detection.annotations.objects import Annotations
from transfer.detection.config import DetectionConfig
from transfer.detection.detectors import Detector
from transfer.detection.engines import choice
from transfer.detection.evaluation.voc import score_voc
from transfer.detection.structures import Scores
from transfer.task import Outcome, Task

__all__ = ["TASK", "DetectionConfig"]


def run(checkpoint: Checkpoint, config: DetectionConfig, seed: int, *, folder: Path) -> Outcome:
    """Train and score one detector: `bbox/AP`, `bbox/AP50`, `bbox/AP75`. See `transfer.detection.task.run`."""
    return detection.run(checkpoint, config, seed, folder=folder, evaluate=_evaluate)


def _evaluate_detector(detector: Detector, config: DetectionConfig, folder: Path) -> Outcome:
    return detection.evaluate_detector(detector, config, folder, evaluate=_evaluate)


def _evaluate(test: Annotations, results: list[Any], config: DetectionConfig, evaluator: str) -> Scores:
    metrics, classes = score_voc(test, results)
    named = {key: dict(zip(test.category_names, values, strict=True)) for key, values in classes.items()}
    return Scores(metrics=metrics, per_category={"bbox": named.pop("bbox/AP"), **named})


TASK = Task(
    config=DetectionConfig,
    run=run,
    protocol=detection.protocol,
    images=detection.open_images,
    digests=detection.digests,
    from_checkpoint=detection.from_checkpoint,
    default="r50_c4_24k",
    resolve=choice.resolve,
    draw=detection.draw,
    read_detector=detectors.read,
    evaluate=_evaluate_detector,
)
