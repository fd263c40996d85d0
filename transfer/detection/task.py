"""The common part of the tasks COCO and VOC: from a checkpoint and a configuration to metrics, with either engine."""

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torchvision.models.resnet import Bottleneck

from intl_bench.core import config as configs
from intl_bench.core import distributed, files, inputs
from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity
from intl_bench.core.signals import StopRequest
from pretrain.backbone import ARCHITECTURES, INNER_WIDTHS
from pretrain.checkpoint import Checkpoint
from pretrain.images.data import IMAGENET_NORMALIZATION
from transfer.convert import to_detectron2
from transfer.detection import detectors
from transfer.detection.annotations.categories import match_categories
from transfer.detection.annotations.objects import Annotations
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig, DetectionConfig, ModelConfig, usual_model
from transfer.detection.detectors import Detector
from transfer.detection.engines import choice
from transfer.detection.evaluation.coco import check_results, import_evaluator
from transfer.detection.evaluation.visualize import draw_worst
from transfer.detection.structures import Scores
from transfer.task import Outcome

DETECTIONS = "detections.json"

Result = dict[str, Any]
# (annotations, COCO results, configuration, evaluator) -> scores
Evaluate = Callable[[Annotations, list[Result], DetectionConfig, str], Scores]

# Settings of the detector that the footnote of a table describes in another way.
_DESCRIBED_ELSEWHERE = ("kind", "box_head", "blocks", "bottleneck", "width", "stem", "pixel_mean", "pixel_std")


def from_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the settings that a checkpoint determines: the architecture of the backbone and the pixel statistics.

    Raises:
        InputError: the detector has no such backbone.
    """
    name = checkpoint.architecture.name
    if name in INNER_WIDTHS:
        raise InputError(
            f"checkpoint {checkpoint.path}: a {name}; the detectors have no ResNet with wider 3x3 convolutions; score "
            "it with linear, knn or finetune, or convert it (convert --to detectron2)"
        )
    block, blocks, width = ARCHITECTURES[name]
    model: dict[str, Any] = {"blocks": blocks, "bottleneck": block is Bottleneck, "width": width}
    preprocessing = checkpoint.preprocessing
    mean, std = IMAGENET_NORMALIZATION if preprocessing is None else (preprocessing.mean, preprocessing.std)
    pixels = {"pixel_mean": mean, "pixel_std": std}
    model |= {key: [round(255 * value, 6) for value in values] for key, values in pixels.items()}
    return {"model": {**model, "stem": checkpoint.architecture.stem}}


def open_images(config: DetectionConfig) -> tuple[Annotations, Annotations]:
    """Read the annotations of the training and of the test images; see `transfer.task.Task.images`."""
    return read_annotations(config, "train"), read_annotations(config, "test")


def digests(config: DetectionConfig, train: Annotations, test: Annotations) -> dict[str, str]:
    """Return `Annotations.fingerprint` of both splits; see `transfer.task.Task.digests`."""
    return {"train": train.fingerprint(), "test": test.fingerprint()}


def read_annotations(config: DetectionConfig, split: str) -> Annotations:
    """Read the annotations of a split. The seeds of one command share them if the files do not change."""
    root = Path(os.path.expanduser(config.data.root)).absolute()
    state = []
    for file in config.data.train if split == "train" else config.data.test:
        with contextlib.suppress(OSError):  # `read_split` reports a missing file
            status = (root / file).stat()
            state.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    return _read_cached(config.data, split, config.model.masks, root, tuple(state))


@functools.lru_cache(maxsize=2)
def _read_cached(data: AnnotatedDataConfig, split: str, masks: bool, root: Path, state: tuple[Any, ...]) -> Annotations:
    return read_split(data, split, masks=masks)


def protocol(config: DetectionConfig) -> dict[str, Any]:
    """Describe the protocol in words for the footnote of a table. Its identity is `core.identity.identity`."""
    usual, used = configs.to_dict(usual_model(config.model.kind)), configs.to_dict(config.model)
    is_pyramid = config.model.kind == "fpn"
    changed = {key: value for key, value in used.items() if value != usual[key] and key not in _DESCRIBED_ELSEWHERE}
    mean, std = (
        " ".join(f"{value:g}" for value in values) for values in (config.model.pixel_mean, config.model.pixel_std)
    )
    return {
        "protocol": config.data.kind,
        "detector": "fpn" if is_pyramid else None,
        "box_head": config.model.box_head if is_pyramid else None,
        "schedule": config.schedule,
        "engine": config.engine,
        "evaluator": "pycocotools" if config.data.kind == "coco" else "VOC07",
        "batch_size": config.batch_size,
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "warmup_iterations": config.warmup_iterations,
        "train_sizes": f"{min(config.min_sizes)}-{max(config.min_sizes)}, at most {config.max_size}",
        "test_size": f"{config.test_min_size}, at most {config.test_max_size}",
        "precise_bn": config.precise_bn,
        "precision": config.precision,
        "accumulate": config.accumulate if config.accumulate > 1 else None,
        "freeze_at": config.freeze_at or None,
        "percent": None if config.data.percent is None else f"{config.data.percent:g} (fold {config.data.fold})",
        "normalization": f"mean {mean}, std {std}",
        "detector_changes": ", ".join(f"{key} {value}" for key, value in changed.items()) or None,
    }


def run(
    checkpoint: Checkpoint,
    config: DetectionConfig,
    seed: int,
    *,
    folder: Path,
    evaluate: Evaluate,
) -> Outcome:
    """Train a detector from the backbone of a checkpoint and score it on the test images.

    Args:
        seed: seed of the weights of new layers, of the order, sizes and flips of images, and of the sampled regions.
        folder: receives the state, the detector and its detections. A run resumes from the state.

    Raises:
        InputError: the engine is not installed, or annotations, images, weights or the state are invalid. The engine
            raises other errors too; see its `run`.
    """
    config = choice.resolve(config)
    engine = _import_engine(config.engine)  # before the annotations, because reading large ones takes time
    train, test = (read_annotations(config, split) for split in ("train", "test"))
    test = match_categories(train, test)
    if config.eval_every:
        import_evaluator(config.evaluator)  # a missing package is reported before training
    config = _with_classes(config, train)
    run_identity = {
        "weights": checkpoint.weights_sha256,
        "seed": seed,
        "train_images": len(train),
        "test_images": len(test),
        **identity(config),
    }
    with distributed.start(config.device) as process, StopRequest() as stop:
        if process.is_main:
            for split in (train, test):
                for note in split.notes:
                    print(f"{split.path}: {note}", file=sys.stderr)
        results = engine.run(
            to_detectron2(checkpoint.backbone),
            config,
            seed,
            folder=folder,
            train=train,
            test=test,
            identity=run_identity,
            evaluate=lambda results: evaluate(test, results, config, config.evaluator).metrics,
            process=process,
            stop=stop,
            about=detectors.describe(config, train),
        )
        scores = _keep_and_score(results, test, config, folder, process, evaluate)
    details = {"train_images": len(train), "test_images": len(test), "categories": len(train.category_ids)}
    drawn = None if config.data.percent is None else b"\n".join(train.file_names.tolist()) + b"\n"
    return Outcome(metrics=scores.metrics, details={**details, "per_category": scores.per_category}, image_list=drawn)


def evaluate_detector(detector: Detector, config: DetectionConfig, folder: Path, *, evaluate: Evaluate) -> Outcome:
    """Score a trained detector on the test images without training.

    Args:
        folder: receives the detections.

    Raises:
        InputError: the engine is not installed, or annotations, images or weights are invalid.
    """
    config = choice.resolve(config)
    engine = _import_engine(config.engine)
    test = detectors.match_categories(detector, read_annotations(config, "test"))
    config = _with_classes(config, test)
    with distributed.start(config.device) as process, StopRequest() as stop:
        results = engine.detect(detector.weights, config, test=test, process=process, stop=stop)
        scores = _keep_and_score(results, test, config, folder, process, evaluate)
    details = {"test_images": len(test), "categories": len(test.category_ids)}
    return Outcome(metrics=scores.metrics, details={**details, "per_category": scores.per_category})


def draw(config: DetectionConfig, folder: Path, picture: Path) -> bool:
    """Draw the worst test images from the detections in `folder`, and tell where; return False if there are none.

    Raises:
        InputError: the annotations, the detections or an image cannot be read.
    """
    path = folder / DETECTIONS
    if not path.exists():
        return False
    test = read_annotations(config, "test")
    sizes = np.stack([test.heights, test.widths], 1).tolist()
    results = check_results(
        inputs.read_json(path, "the detections", any_number=True),
        sizes=dict(zip(test.image_ids.tolist(), sizes, strict=True)),
        category_ids=test.category_ids,
        iou_types=("bbox", "segm") if config.model.masks else ("bbox",),
        name=str(path),
    )
    count = min(config.visualize, len(test))
    draw_worst(test, results, count, picture, threshold=config.visualize_threshold)
    print(f"pictures of the {count} worst images: {picture}")
    return True


def _with_classes(config: DetectionConfig, annotations: Annotations) -> DetectionConfig:
    """Set the number of classes to that of the annotations."""
    classes = len(annotations.category_ids)
    if config.model.num_classes not in (ModelConfig().num_classes, classes):
        raise InputError(
            f"model.num_classes={config.model.num_classes}: {annotations.path} has {classes} categories; remove the "
            "setting, because the annotations determine it"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=classes))


def _keep_and_score(
    results: list[Result],
    test: Annotations,
    config: DetectionConfig,
    folder: Path,
    process: distributed.Process,
    evaluate: Evaluate,
) -> Scores:
    """Write the detections of all processes, which are on the first one, and score them."""
    if process.is_main:
        files.write_text(folder / DETECTIONS, json.dumps(results, separators=(",", ":")))
    return distributed.from_main(lambda: evaluate(test, results, config, "pycocotools"))


def _import_engine(name: str) -> ModuleType:
    """Import the module of an engine. Detectron2 is imported only if it is used."""
    if name == "detectron2":
        from transfer.detection.engines import detectron2

        return detectron2
    from transfer.detection.engines import builtin

    return builtin
