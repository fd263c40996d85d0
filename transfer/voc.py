"""PASCAL VOC detection: Faster R-CNN R50-C4 trained on VOC07+12 trainval, scored on VOC07 test by the VOC07 metric."""

from pathlib import Path
from typing import Any

from pretrain.checkpoint import Checkpoint
from transfer.detection import task
from transfer.detection.annotations.objects import Annotations
from transfer.detection.config import DetectionConfig
from transfer.detection.evaluation.voc import evaluate_voc
from transfer.outcome import Outcome

__all__ = ["DEFAULT", "SEEDED", "DetectionConfig", "fingerprints", "from_checkpoint", "protocol", "run"]

SEEDED = True
DEFAULT = "r50_c4_24k"
from_checkpoint = task.from_checkpoint
fingerprints = task.fingerprints
protocol = task.protocol


def run(checkpoint: Checkpoint, config: DetectionConfig, seed: int, *, folder: Path) -> Outcome:
    """Trains and scores one detector: `bbox/AP`, `bbox/AP50`, `bbox/AP75`; arguments and errors as `task.run`."""
    return task.run(checkpoint, config, seed, folder=folder, evaluate=_evaluate)


def _evaluate(test: Annotations, results: list[Any], config: DetectionConfig, evaluator: str) -> dict[str, float]:
    return evaluate_voc(test, results)
