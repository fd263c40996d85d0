"""Trained detectors in files: `detector.pth` of this project, and checkpoints of Detectron2."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from pretrain import states
from transfer.detection.annotations import categories
from transfer.detection.annotations.objects import Annotations
from transfer.detection.config import DetectionConfig, usual_model
from transfer.formats import safe_load

# Settings of the machine or of the training, which do not describe a detector.
_LEFT_OUT = ("device", "workers", "visualize", "eval_every", "checkpoint_every", "evaluator")
# Needed weights that tell no setting. The norm after res5 is that of MoCo's detection code.
_RPN = "proposal_generator.rpn_head.objectness_logits.weight"
_RES5_NORM, _PYRAMID_NORM = "roi_heads.res5.norm.weight", "backbone.fpn_lateral2.norm.weight"
# Buffers that earlier versions of Detectron2 stored among the weights.
_ANCHORS = "proposal_generator.anchor_generator."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detector:
    """A trained detector.

    Attributes:
        sha256: digest of the file.
        weights: the weights of all layers, with Detectron2's names.
        settings: nested values of `DetectionConfig` that the file tells: all of them for a detector of this project,
            else those of the network that follow from the weights.
        category_ids, category_names: of the training, in the order of the classes; None if they are unknown.
    """

    path: Path
    sha256: str
    weights: dict[str, Tensor]
    settings: dict[str, Any]
    category_ids: tuple[int, ...] | None = None
    category_names: tuple[str, ...] | None = None

    @property
    def is_ours(self) -> bool:
        return self.category_names is not None


def describe(config: DetectionConfig, train: Annotations) -> dict[str, Any]:
    """Describe a detector, as its file stores it: its settings without paths, and its categories."""
    settings = {key: value for key, value in configs.to_dict(config).items() if key not in _LEFT_OUT}
    settings["data"] = {key: value for key, value in settings["data"].items() if key != "root"}
    return {
        "settings": settings,
        "category_ids": list(train.category_ids),
        "category_names": list(train.category_names),
    }


def read(path: Path) -> Detector:
    """Read a trained detector without running code that the file could hold.

    Args:
        path: `detector.pth`, its folder, or a checkpoint of Detectron2 such as `model_final.pth`.

    Raises:
        InputError: the file cannot be read, or has no detector with Detectron2's names.
    """
    content = safe_load.read(path)
    path = content.path
    data = content.data if isinstance(content.data, dict) else {}
    weights = safe_load.tensors(data.get("model", data))
    statistics = {key: weights.pop(key) for key in ("pixel_mean", "pixel_std") if key in weights}
    weights = {key: value for key, value in weights.items() if not key.startswith(_ANCHORS)}
    try:
        model = _read_architecture(weights) | {key: value.flatten().tolist() for key, value in statistics.items()}
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"{path}: no detector: {error.args[0]} is missing; expected detector.pth of this project, or a checkpoint "
            "of Detectron2's R50-C4 with a norm after res5, as MoCo's, or of its R50-FPN with norms in the pyramid"
        ) from error
    if name := states.not_finite(weights):
        raise InputError(f"{path}: {name} is not finite; expected a trained detector")
    about = data.get("intl_bench")
    if not about:
        return Detector(path=path, sha256=content.sha256, weights=weights, settings={"model": model})
    if (
        not isinstance(about, dict)
        or not all(
            isinstance(about.get(key), kind)
            for key, kind in (("settings", dict), ("category_ids", list), ("category_names", list))
        )
        or not all(isinstance(about["settings"].get(key), dict) for key in ("model", "data"))
    ):
        raise InputError(f"{path}: its field intl_bench is damaged; expected settings and categories; restore the file")
    settings = dict(about["settings"])
    # Where Detectron2 is not installed, the built-in engine gives the same detections.
    settings["engine"] = "builtin" if settings.get("engine") == "builtin" else "auto"
    return Detector(
        path=path,
        sha256=content.sha256,
        weights=weights,
        settings=settings,
        category_ids=tuple(about["category_ids"]),
        category_names=tuple(about["category_names"]),
    )


def _read_architecture(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return the values of `ModelConfig` that follow from the names and shapes of the weights."""
    pyramid = "backbone.fpn_lateral2.weight" in weights
    network = "backbone.bottom_up" if pyramid else "backbone"
    stem = weights[f"{network}.stem.conv1.weight"]
    stages = [f"{network}.res{n}" for n in (2, 3, 4)] + [f"{network}.res5" if pyramid else "roi_heads.res5"]
    blocks = [
        len({key.removeprefix(f"{stage}.").split(".")[0] for key in weights if key.startswith(f"{stage}.")} - {"norm"})
        for stage in stages
    ]
    model: dict[str, Any] = _read_pyramid(weights) if pyramid else {}
    model |= {
        "blocks": blocks,
        "bottleneck": f"{network}.res2.0.conv3.weight" in weights,
        "width": len(stem),
        "stem": "imagenet" if stem.shape[-1] == 7 else "cifar",
        "num_classes": len(weights["roi_heads.box_predictor.cls_score.weight"]) - 1,
        "masks": "roi_heads.mask_head.deconv.weight" in weights,
    }
    if model["masks"]:
        model["mask_channels"] = weights["roi_heads.mask_head.deconv.weight"].shape[1]
    for name in (_RPN, _PYRAMID_NORM if pyramid else _RES5_NORM):
        if name not in weights:
            raise KeyError(name)
    return model


def _read_pyramid(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return the values of `ModelConfig` of a detector with a pyramid. What weights do not tell is as in Detectron2."""
    channels, first = len(weights["backbone.fpn_lateral2.weight"]), weights["roi_heads.box_head.fc1.weight"]
    return {
        **configs.to_dict(usual_model("fpn")),
        "fpn_channels": channels,
        "box_head": "4conv1fc" if "roi_heads.box_head.conv1.weight" in weights else "2fc",
        "fc_channels": len(first),
        "pool_size": math.isqrt(first.shape[1] // channels),
    }


def match_categories(detector: Detector, test: Annotations) -> Annotations:
    """Return the test images with class indices that mean what they mean to a detector.

    The names of the categories are compared, if the detector's are known.

    Raises:
        InputError: the categories are not those that the detector was trained on, or their number differs.
    """
    classes = detector.settings["model"]["num_classes"]
    if len(test.category_ids) != classes:
        raise InputError(
            f"{test.path}: {len(test.category_ids)} categories; expected {classes}, as {detector.path} detects"
        )
    if detector.category_ids is None or detector.category_names is None:
        return test
    trained = dataclasses.replace(
        test, path=detector.path, category_ids=detector.category_ids, category_names=detector.category_names
    )
    return categories.match_categories(trained, test)
