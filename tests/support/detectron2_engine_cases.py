"""A small run with Detectron2, which is imported only when `run` is called."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from intl_bench.core import distributed
from intl_bench.core.signals import StopRequest
from transfer.detection import build_model
from transfer.detection.annotations.objects import Annotations
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig, DetectionConfig, ModelConfig
from transfer.detection.evaluation.coco import evaluate_coco

MODEL = ModelConfig(
    width=8,
    mask_channels=8,
    rpn_batch=16,
    roi_batch=8,
    pre_nms_train=100,
    post_nms_train=20,
    pre_nms_test=50,
    post_nms_test=10,
    score_threshold=0.011,
    detections_per_image=20,
)
CONFIG = DetectionConfig(
    model=MODEL,
    engine="detectron2",
    iterations=6,
    milestones=(4, 5),
    warmup_iterations=2,
    batch_size=2,
    lr=0.005,
    min_sizes=(48, 64),
    max_size=96,
    test_min_size=64,
    test_max_size=96,
    precise_bn=2,
    checkpoint_every=3,
    workers=0,
    device="cpu",
)


def read_splits(folder: Path) -> tuple[Annotations, Annotations]:
    """Read eight training and four test images."""
    config = AnnotatedDataConfig(root=str(folder / "coco_tiny"))
    train, test = (read_split(config, split, masks=True) for split in ("train", "test"))
    return train.select(np.arange(len(train)) < 8, []), test.select(np.arange(len(test)) < 4, [])


def backbone() -> dict[str, torch.Tensor]:
    """Make the weights of a random backbone, under the names that `run` expects."""
    torch.manual_seed(0)
    state = build_model(MODEL).state_dict()
    prefixes = ("backbone.", "roi_heads.res5.")
    named = {key: value for key, value in state.items() if key.startswith(prefixes) and "res5.norm." not in key}
    return {key.removeprefix("backbone.").removeprefix("roi_heads."): value for key, value in named.items()}


def run(
    config: DetectionConfig,
    folder: Path,
    train: Annotations,
    test: Annotations,
    weights: dict[str, torch.Tensor] | None = None,
    signalled: int | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Train and detect; a signal number in `signalled` stops the run after its first step."""
    from transfer.detection.engines import detectron2

    with distributed.start("cpu") as process, StopRequest() as stop:
        stop.received = signalled
        return detectron2.run(
            backbone() if weights is None else weights,
            config,
            seed,
            folder=folder,
            train=train,
            test=test,
            identity={"seed": seed},
            evaluate=lambda results: evaluate_coco(test.path, results),
            process=process,
            stop=stop,
        )
