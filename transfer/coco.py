"""COCO detection and instance segmentation: Mask R-CNN R50-C4 on the pre-trained backbone, everything trained.

The protocol is the authors' and MoCo's: SyncBN everywhere and after res5, nothing frozen, PreciseBN at the end.
"""

from pathlib import Path
from typing import Any

from pretrain.checkpoint import Checkpoint
from transfer.detection import task
from transfer.detection.annotations.objects import Annotations
from transfer.detection.config import DetectionConfig
from transfer.detection.evaluation.coco import evaluate_coco
from transfer.outcome import Outcome

__all__ = [
    "DEFAULT",
    "SEEDED",
    "DetectionConfig",
    "evaluate_coco",
    "fingerprints",
    "from_checkpoint",
    "protocol",
    "run",
]

SEEDED = True
DEFAULT = "r50_c4_2x"
from_checkpoint = task.from_checkpoint
fingerprints = task.fingerprints
protocol = task.protocol


def run(checkpoint: Checkpoint, config: DetectionConfig, seed: int, *, folder: Path) -> Outcome:
    """Trains and scores one detector: `bbox/AP`, `bbox/AP50`, ..., `segm/AP75`; arguments and errors as `task.run`."""
    return task.run(checkpoint, config, seed, folder=folder, evaluate=_evaluate)


def _evaluate(
    test: Annotations, results: list[dict[str, Any]], config: DetectionConfig, evaluator: str
) -> dict[str, float]:
    kinds = ("bbox", "segm") if config.model.masks else ("bbox",)
    return evaluate_coco(test.path, results, iou_types=kinds, evaluator=evaluator)
