"""The work of the detection tasks. The costs are those of the built-in engine."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intl_bench.core.datasets import DATASETS
from intl_bench.core.errors import BenchError
from pretrain.checkpoint import Checkpoint
from pretrain.dry_run import costs
from pretrain.dry_run.costs import Cost
from pretrain.dry_run.machine import Machine, Preparation, time_batches
from transfer.detection.annotations.objects import Annotations
from transfer.detection.config import DetectionConfig
from transfer.detection.data import test_images
from transfer.detection.modeling.mask_rcnn import MaskRCNN, build_model
from transfer.detection.modeling.pooling import Bins, pool
from transfer.detection.modeling.resnet import freeze
from transfer.detection.task import read_annotations
from transfer.dry_run.work import Phase, Work, bytes_of

_POSITIONS = 9  # positions of the feature map that a bin of a region is the sum of
_FOREGROUND = 4  # every fourth region has a mask in training
_USUAL_SHAPE = (480, 640)  # of an image, if none can be opened
_SAMPLE = 4  # images that are loaded


def detect(checkpoint: Checkpoint | None, config: DetectionConfig, here: Machine, *, train: bool = True) -> Work:
    """Return the work of `intl-bench coco` and `intl-bench voc`.

    Args:
        checkpoint: it decides nothing that `config` does not hold.
        train: False for the detection with a trained detector.

    Raises:
        InputError: an image cannot be read.
    """
    splits: dict[str, Annotations] = {}
    names, facts = ("train", "test") if train else ("test",), DATASETS.get(config.data.dataset)
    try:
        splits = {split: read_annotations(config, split) for split in names}
        counts = {split: len(read) for split, read in splits.items()}
        classes, words = len(splits["test"].category_ids), "counted"
    except BenchError as error:
        root = Path(os.path.expanduser(config.data.root))
        if all((root / file).exists() for split in names for file in getattr(config.data, split)):
            raise
        counts = {split: getattr(facts, split) for split in names} if facts else {}
        if train and facts and config.data.percent is not None:
            counts["train"] = int(facts.train * config.data.percent / 100)
        classes = facts.classes if facts else config.model.num_classes
        words = f"{'as published; ' if facts else ''}NOT OPENED: {' '.join(str(error).split())}"
    numbers = " and ".join(f"{n:,} {'training' if split == 'train' else split} images" for split, n in counts.items())
    where = f" in {config.data.root}" if config.data.root else ""
    sizes = round(float(np.mean(config.min_sizes))), config.max_size
    shapes = {
        "train": _mean_shape(splits.get("train"), *sizes),
        "test": _mean_shape(splits.get("test"), config.test_min_size, config.test_max_size),
    }
    with torch.device("meta"):
        model = build_model(config.model)
        freeze(model.backbone, config.freeze_at)
    half, trained = config.precision == "bf16", bytes_of(model, trained=True)
    state = sum(4 * value.numel() for value in model.state_dict().values())
    with costs.without_data():
        costs.strip(model)
        part = config.batch_size // config.accumulate
        step = costs.count(lambda: _losses(model, part, shapes["train"], half)) if train else None
        model.eval()
        test = costs.count_forward(lambda: _detections(model, shapes["test"], half))
    phases = [
        Phase(name="tests", steps=counts.get("test", 0), cost=test, images=counts.get("test", 0), weights=trained)
    ]
    if step is not None:
        steps, statistics = config.iterations * config.accumulate, config.precise_bn
        seen = config.iterations * config.batch_size
        forward = _without_backward(step)
        phases = [
            Phase(name="training", steps=steps, cost=step, images=seen, weights=trained, trained=trained),
            Phase(name="statistics", steps=statistics, cost=forward, images=statistics * config.batch_size),
            *phases,
        ]
    epochs = config.iterations * config.batch_size / counts["train"] if counts.get("train") else 0
    batch = f"{config.batch_size:,} images; {config.iterations:,} steps" + (f", {epochs:.1f} epochs" if epochs else "")
    return Work(
        data=f"{config.data.dataset} ({config.data.kind}{where}): "
        + (f"{numbers} of {classes} categories, " if numbers else "")
        + words,
        batch=batch if train else "",
        phases=tuple(phases) if counts else (),
        preparation=_preparation(splits.get("test"), config),
        workers=config.workers,
        state=2 * trained if train else 0,
        results=state if train else 0,
    )


def _mean_shape(annotations: Annotations | None, shorter: int, longest: int) -> tuple[int, int]:
    """Return the mean height and width of the resized images."""
    height, width = (np.array([n], np.float64) for n in _USUAL_SHAPE)
    if annotations is not None and len(annotations):
        height, width = (values.astype(np.float64) for values in (annotations.heights, annotations.widths))
    scale = np.minimum(shorter / np.minimum(height, width), longest / np.maximum(height, width))
    return round(float(np.mean(height * scale))), round(float(np.mean(width * scale)))


def _preparation(annotations: Annotations | None, config: DetectionConfig) -> Preparation | None:
    """Measure the loading of some test images; None if there are too few of them."""
    if annotations is None or len(annotations) < _SAMPLE:
        return None
    images = test_images(annotations, min_size=config.test_min_size, max_size=config.test_max_size, last=_SAMPLE)
    return time_batches(images, 1)


def _losses(model: MaskRCNN, batch: int, shape: tuple[int, int], half: bool) -> torch.Tensor:
    """Compute what the losses of a batch are made of, with regions in no particular place."""
    config = model.config
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        features = model.backbone(torch.empty(batch, 3, *shape))
        outputs = [output for level in features for output in model.proposal_generator.rpn_head(level)]
        heads, count = model.roi_heads, batch * config.roi_batch
        regions = _regions(model, features, count)
        outputs += heads.box_predictor(heads.summarize(regions))
        if heads.mask_head is not None:
            chosen = count // _FOREGROUND
            outputs.append(
                heads.mask_head(_regions(model, features, chosen, 2) if _is_fpn(model) else regions[:chosen])
            )
    return torch.stack([output.float().sum() for output in outputs]).sum()


def _detections(model: MaskRCNN, shape: tuple[int, int], half: bool) -> Any:
    """Compute what the detections in an image are made of."""
    config = model.config
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        features = model.backbone(torch.empty(1, 3, *shape))
        for level in features:
            model.proposal_generator.rpn_head(level)
        heads = model.roi_heads
        heads.box_predictor(heads.summarize(_regions(model, features, config.post_nms_test)))
        if heads.mask_head is not None:
            heads.mask_head(_regions(model, features, config.detections_per_image, 2))


def _is_fpn(model: MaskRCNN) -> bool:
    return model.config.kind == "fpn"


def _regions(model: MaskRCNN, features: list[torch.Tensor], count: int, scale: int = 1) -> torch.Tensor:
    """Pool regions, of a pyramid with `scale` times its size, and else apply the last stage to them."""
    full = model.config.pool_size
    if _is_fpn(model):
        return pool(features[:1], _bins(count, scale * full))
    stage: Any = model.roi_heads.res5
    first, *others = stage
    x = first.forward_regions(stage.project(features[0]), *(_bins(count, side) for side in (full, -(-full // 2))))
    for module in others:
        x = module(x)
    return x


def _bins(regions: int, side: int) -> Bins:
    bins = regions * side**2
    return Bins(
        positions=torch.empty(bins * _POSITIONS, dtype=torch.int64),
        weights=torch.empty(bins * _POSITIONS),
        starts=torch.empty(bins, dtype=torch.int64),
        side=side,
    )


def _without_backward(step: Cost) -> Cost:
    """Return the cost of a step without its backward pass, a third of the step, as usual."""
    thirds = {operation: -(-n // 3) for operation, n in step.operations.items()}
    return Cost(operations=type(step.operations)(thirds), saved=0, peak=step.saved)
