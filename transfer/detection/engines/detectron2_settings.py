"""The settings of this project under Detectron2's names. This module does not import Detectron2."""

from pathlib import Path
from typing import Any

from intl_bench.core.datasets import DATASETS
from intl_bench.core.errors import InputError
from intl_bench.core.seeding import torch_seed
from intl_bench.core.sharing import require_even_batch
from transfer.detection.config import DetectionConfig, ModelConfig

HEADS = "Res5ROIHeadsExtraNorm"  # the name in MoCo's train_net.py for the head with a norm after res5
_DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}


def values(
    config: DetectionConfig, *, seed: int, output: Path, weights: Path | None, cuda: bool, processes: int, bitmaps: bool
) -> dict[str, Any]:
    """Return the settings that differ from Detectron2's defaults, as nested dictionaries.

    Args:
        seed: Detectron2 has no seeds of 2**31 and above; one of its seeds is derived from such a seed.
        weights: a converted backbone for Detectron2's own tools.
        processes: number of processes that share a batch.
        bitmaps: whether training needs masks as bitmaps, because some outlines are run-length encodings.

    Raises:
        InputError: a backbone that Detectron2 cannot build, or a batch that does not divide evenly.
    """
    require_even_batch(config.batch_size, processes)
    name = config.data.name
    facts = DATASETS.get(name)
    # The file beside a run uses Detectron2's registered names, so that Detectron2's own tools can read it.
    train, test = (facts and facts.detectron2) or ((f"{name}_train",), (f"{name}_test",))
    # PyTorch's synchronized batch norm does not run on a CPU; that of Detectron2 does.
    synchronized = "SyncBN" if cuda else "naiveSyncBN"
    norm = synchronized if processes > 1 else "BN"
    return {
        "SEED": seed if seed < 2**31 else torch_seed(seed, "detectron2") % 2**31,
        "OUTPUT_DIR": str(output),
        "MODEL": {
            **_detector(config.model, backbone(depth(config.model), config.model.width, norm, config.freeze_at)),
            "WEIGHTS": str(weights or ""),
            "DEVICE": "cuda" if cuda else "cpu",
        },
        "DATASETS": {"TRAIN": train, "TEST": test},
        "DATALOADER": {"NUM_WORKERS": config.workers},
        "INPUT": {
            "FORMAT": "RGB",
            "MASK_FORMAT": "bitmask" if bitmaps else "polygon",
            "MIN_SIZE_TRAIN": tuple(config.min_sizes),
            "MAX_SIZE_TRAIN": config.max_size,
            "MIN_SIZE_TEST": config.test_min_size,
            "MAX_SIZE_TEST": config.test_max_size,
        },
        "SOLVER": {
            "IMS_PER_BATCH": config.batch_size,
            "BASE_LR": config.lr,
            "MAX_ITER": config.iterations,
            # Detectron2 ignores a milestone after the last step with a warning, and rejects one at the last step.
            "STEPS": tuple(step for step in config.milestones if step < config.iterations),
            "WARMUP_ITERS": config.warmup_iterations,
            "WARMUP_FACTOR": config.warmup_factor,
            "WEIGHT_DECAY": config.weight_decay,
            "WEIGHT_DECAY_NORM": config.norm_weight_decay,
            "CHECKPOINT_PERIOD": config.checkpoint_every,
            "AMP": {"ENABLED": config.precision == "bf16"},
        },
        "TEST": {
            "DETECTIONS_PER_IMAGE": config.model.detections_per_image,
            "EVAL_PERIOD": config.eval_every,
            "PRECISE_BN": {"ENABLED": config.precise_bn > 0, "NUM_ITER": config.precise_bn},
        },
    }


def depth(model: ModelConfig) -> int:
    """Return the depth under which Detectron2 knows a backbone.

    Raises:
        InputError: Detectron2 cannot build the backbone.
    """
    if obstacle := find_missing_support(model):
        raise InputError(f"{obstacle}; use --engine builtin")
    return _DEPTHS[model.bottleneck, tuple(model.blocks)]


def find_missing_support(model: ModelConfig) -> str:
    """Describe why Detectron2 cannot build a backbone; empty if it can."""
    number = _DEPTHS.get((model.bottleneck, tuple(model.blocks)))
    if number is not None and model.stem == "imagenet" and (number >= 50 or model.width == 64):
        return ""
    kind = "bottleneck" if model.bottleneck else "basic"
    return (
        f"Detectron2 cannot build a ResNet of {list(model.blocks)} {kind} blocks, width {model.width} and stem "
        f"{model.stem} (it has ResNet-18 and 34 of width 64, and 50, 101 and 152, all with the imagenet stem)"
    )


def backbone(depth: int, width: int, norm: str, freeze_at: int = 0) -> dict[str, Any]:
    """Return the part of MODEL that describes a ResNet with strides in the 3x3 convolutions.

    Args:
        freeze_at: number of stages that are not trained.
    """
    resnet = {
        "DEPTH": depth,
        "NORM": norm,
        "STRIDE_IN_1X1": False,
        "STEM_OUT_CHANNELS": width,
        "WIDTH_PER_GROUP": width,
        "RES2_OUT_CHANNELS": width if depth < 50 else 4 * width,
    }
    return {"RESNETS": resnet, "BACKBONE": {"FREEZE_AT": freeze_at}}


def _detector(model: ModelConfig, backbone: dict[str, Any]) -> dict[str, Any]:
    """Return the part of MODEL that describes a detector, given the part that describes its backbone."""
    if model.kind == "fpn":
        return _pyramid(model, backbone)
    return {
        **backbone,
        **_common(model),
        "ANCHOR_GENERATOR": {
            "SIZES": [list(model.anchor_sizes)],
            "ASPECT_RATIOS": [list(model.aspect_ratios)],
        },
        "ROI_HEADS": {"NAME": HEADS, **_regions(model)},
        "ROI_BOX_HEAD": {"POOLER_RESOLUTION": model.pool_size},
        "ROI_MASK_HEAD": {"POOLER_RESOLUTION": model.pool_size, "CONV_DIM": model.mask_channels},
    }


def _pyramid(model: ModelConfig, backbone: dict[str, Any]) -> dict[str, Any]:
    stages, levels = [f"res{n}" for n in range(2, 6)], [f"p{n}" for n in range(2, 7)]
    norm = backbone["RESNETS"]["NORM"]
    convolutions, linear, head_norm = (4, 1, norm) if model.box_head == "4conv1fc" else (0, 2, "")
    common = _common(model)
    return {
        "BACKBONE": {**backbone["BACKBONE"], "NAME": "build_resnet_fpn_backbone"},
        "RESNETS": {**backbone["RESNETS"], "OUT_FEATURES": stages},
        "FPN": {"IN_FEATURES": stages, "OUT_CHANNELS": model.fpn_channels, "NORM": norm},
        **common,
        "RPN": {**common["RPN"], "IN_FEATURES": levels},
        "ANCHOR_GENERATOR": {
            "SIZES": [[size] for size in model.anchor_sizes],
            "ASPECT_RATIOS": [list(model.aspect_ratios)],
        },
        "ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": levels[:-1], **_regions(model)},
        "ROI_BOX_HEAD": {
            "NAME": "FastRCNNConvFCHead",
            "POOLER_RESOLUTION": model.pool_size,
            "NUM_CONV": convolutions,
            "CONV_DIM": model.fpn_channels,
            "NUM_FC": linear,
            "FC_DIM": model.fc_channels,
            "NORM": head_norm,
        },
        "ROI_MASK_HEAD": {
            "NAME": "MaskRCNNConvUpsampleHead",
            "POOLER_RESOLUTION": 2 * model.pool_size,
            "NUM_CONV": 4,
            "CONV_DIM": model.mask_channels,
            "NORM": head_norm,
        },
    }


def _common(model: ModelConfig) -> dict[str, Any]:
    return {
        "PIXEL_MEAN": list(model.pixel_mean),
        "PIXEL_STD": list(model.pixel_std),
        "MASK_ON": model.masks,
        "RPN": {
            "BATCH_SIZE_PER_IMAGE": model.rpn_batch,
            "PRE_NMS_TOPK_TRAIN": model.pre_nms_train,
            "POST_NMS_TOPK_TRAIN": model.post_nms_train,
            "PRE_NMS_TOPK_TEST": model.pre_nms_test,
            "POST_NMS_TOPK_TEST": model.post_nms_test,
        },
    }


def _regions(model: ModelConfig) -> dict[str, Any]:
    return {
        "NUM_CLASSES": model.num_classes,
        "BATCH_SIZE_PER_IMAGE": model.roi_batch,
        "SCORE_THRESH_TEST": model.score_threshold,
        "NMS_THRESH_TEST": model.nms_threshold,
    }
