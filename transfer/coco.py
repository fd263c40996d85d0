"""COCO detection and instance segmentation: Mask R-CNN R50-C4 on the pre-trained backbone.

The protocol is that of the authors and of MoCo: all layers are trained, SyncBN everywhere and after res5, PreciseBN at
the end.
"""

from pathlib import Path
from typing import Any

from pretrain.checkpoint import Checkpoint
from transfer.detection import task as detection
from transfer.detection.annotations.objects import Annotations
from transfer.detection.config import DetectionConfig
from transfer.detection.evaluation.coco import evaluate_coco
from transfer.task import Outcome, Task

__all__ = ["TASK", "DetectionConfig", "evaluate_coco"]


def run(checkpoint: Checkpoint, config: DetectionConfig, seed: int, *, folder: Path) -> Outcome:
    """Train and score one detector: `bbox/AP`, `bbox/AP50`, ..., `segm/AP75`. See `transfer.detection.task.run`."""
    return detection.run(checkpoint, config, seed, folder=folder, evaluate=_evaluate)


def _evaluate(
    test: Annotations, results: list[dict[str, Any]], config: DetectionConfig, evaluator: str
) -> dict[str, float]:
    kinds = ("bbox", "segm") if config.model.masks else ("bbox",)
    return evaluate_coco(test.path, results, iou_types=kinds, evaluator=evaluator, category_ids=test.category_ids)


TASK = Task(
    config=DetectionConfig,
    run=run,
    protocol=detection.protocol,
    fingerprints=detection.fingerprints,
    from_checkpoint=detection.from_checkpoint,
    default="r50_c4_2x",
)
