"""Small detectors, pictures and ground truth without files, and the values of the built-in detector for them."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intl_bench.core.seeding import generator
from transfer.detection import MaskRCNN, build_model, masks
from transfer.detection.config import ModelConfig
from transfer.detection.structures import Mask, Target

SMALL = ModelConfig(
    width=8,
    num_classes=5,
    mask_channels=16,
    rpn_batch=32,
    roi_batch=12,
    pre_nms_train=200,
    post_nms_train=40,
    pre_nms_test=100,
    post_nms_test=20,
    detections_per_image=10,
    score_threshold=0.2,
)
# Few proposals of each level, so that regions of all sizes are drawn.
SMALL_FPN = dataclasses.replace(
    SMALL,
    kind="fpn",
    pool_size=3,
    fpn_channels=16,
    fc_channels=24,
    anchor_sizes=(32.0, 128.0, 256.0, 512.0, 900.0),
    roi_batch=40,
    pre_nms_train=20,
    post_nms_train=80,
    pre_nms_test=10,
    post_nms_test=40,
)
TINY = ModelConfig(
    blocks=(1, 1, 1, 1),
    bottleneck=False,
    width=4,
    num_classes=3,
    mask_channels=4,
    anchor_sizes=(16.0, 32.0),
    rpn_batch=16,
    roi_batch=8,
    pre_nms_train=50,
    post_nms_train=20,
    pre_nms_test=50,
    post_nms_test=10,
    pool_size=4,
    score_threshold=0.1,
)
TINY_FPN = dataclasses.replace(
    TINY, kind="fpn", pool_size=2, fpn_channels=4, fc_channels=6, anchor_sizes=(16.0, 32.0, 64.0, 128.0, 256.0)
)


def fill(model: torch.nn.Module) -> None:
    """Set weights of the usual sizes that depend only on names and shapes.

    They are uniform, because NumPy's stream of uniform numbers has never changed.
    """
    for n, (name, value) in enumerate(sorted(model.state_dict().items())):
        if value.dtype == torch.int64:
            continue
        uniform = generator(0, "weights", n).random(value.shape) - 0.5  # standard deviation 1 / sqrt(12)
        if name.endswith(("norm.weight", "running_var")):
            drawn = 1 + uniform
        elif value.ndim < 2:
            drawn = 0.3 * uniform
        else:
            drawn = uniform * math.sqrt(12 * 2 / (value[0].numel()))
            drawn *= {"bbox_pred": 0.5, "anchor_deltas": 0.3}.get(name.split(".")[-2], 1.0)
        value.copy_(torch.from_numpy(drawn))


def small_model(config: ModelConfig = SMALL) -> MaskRCNN:
    """Build a detector with the weights of `fill`."""
    model = build_model(config)
    fill(model)
    return model


def picture(seed: int, height: int, width: int) -> Tensor:
    """Draw patches and noise, (3, height, width) uint8."""
    draw = generator(seed, "picture")
    patches = np.kron(draw.integers(0, 200, (3, -(-height // 16), -(-width // 16))), np.ones((16, 16), np.int64))
    noise = draw.integers(0, 56, (3, height, width))
    return torch.from_numpy((patches[:, :height, :width] + noise).astype(np.uint8))


def outline(box: np.ndarray, draw: np.random.Generator, kind: str, height: int, width: int) -> Mask:
    """Draw an outline in a box: two polygons, one of them a star with eight corners, or the bitmap of an ellipse."""
    angles = np.arange(8) * math.pi / 4
    radius = 0.3 + 0.2 * draw.random(8)
    center, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    star = center + np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None] * size
    if kind == "bitmap":
        y, x = np.mgrid[:height, :width] + 0.5
        offset = (np.stack([x, y], -1) - center) / size
        return np.hypot(offset[..., 0], offset[..., 1]) < 0.45
    corner = np.array([box[:2], box[:2] + 0.2 * size, box[:2] + [0, 0.3] * size])
    return [star.ravel(), corner.ravel()]


def ground_truth(seed: int, height: int, width: int, *, objects: int, kind: str, classes: int) -> Target:
    """Draw a target; `kind` is that of `outline`."""
    draw = generator(seed, "ground truth")
    low = draw.random((objects, 2)) * [0.6 * width, 0.6 * height]
    high = low + (0.2 + 0.3 * draw.random((objects, 2))) * [0.8 * width, 0.8 * height]
    boxes = np.concatenate([low, high], 1).astype(np.float32)
    outlines = [outline(box.astype(np.float64), draw, kind, height, width) for box in boxes]
    labels = torch.from_numpy(draw.integers(0, classes, objects))
    return Target(torch.from_numpy(boxes), labels, outlines)


def batch(config: ModelConfig = SMALL, seed: int = 30, scale: int = 1) -> tuple[list[Tensor], list[Target]]:
    """Make three images: one with polygons, one with bitmaps and one without objects, `scale` times as large.

    The gradient of a network with ReLUs is not continuous where an activation is 0. With the default seed, no
    activation is so near to 0 that the rounding of float32 decides its sign. With about half of all seeds, some are.
    """
    sizes = [(96 * scale, 128 * scale), (112 * scale, 80 * scale), (64 * scale, 96 * scale)]
    images = [picture(seed + n, *size) for n, size in enumerate(sizes)]
    kinds = [("polygon", 4), ("bitmap", 3), ("polygon", 0)]
    targets = [
        ground_truth(seed + n, *size, objects=objects, kind=kind, classes=config.num_classes)
        for n, (size, (kind, objects)) in enumerate(zip(sizes, kinds, strict=True))
    ]
    return images, targets


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + n) for n in range(count)]


@contextmanager
def shared_permutations() -> Iterator[None]:
    """Make `torch.randperm(n)` a function of n. Then two implementations draw the same samples."""
    original = torch.randperm

    def permutation(n: int, **_: Any) -> Tensor:
        return torch.from_numpy(generator(0, "permutation", n).permutation(n))

    torch.randperm = permutation
    try:
        yield
    finally:
        torch.randperm = original


Values = dict[str, Tensor]


def training_values(model: MaskRCNN, images: list[Tensor], targets: list[Target]) -> Values:
    """Compute the intermediate results, the losses, and the gradient `grad/NAME` of every parameter."""
    model.train()
    model.zero_grad()
    values: Values = {}
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    draws = generators(len(images))
    rpn, heads = model.proposal_generator, model.roi_heads
    with shared_permutations():
        features = model.backbone(model.preprocess(images))
        predictions = rpn.predict(features)
        samples = rpn.sample(predictions.anchors, targets, draws)
        proposals = rpn.propose(predictions, sizes)
        regions = heads.sample(proposals, targets, draws)
        losses = rpn.losses(predictions, samples) | heads.losses(features, regions, targets)
    sum(losses.values()).backward()
    several = len(features) > 1
    values |= {f"features/{n}" if several else "features": level for n, level in enumerate(features)}
    values |= {"anchors": predictions.anchors}
    values |= {"rpn_logits": predictions.logits, "rpn_deltas": predictions.deltas}
    for n, (sample, boxes, region) in enumerate(zip(samples, proposals, regions, strict=True)):
        foreground = sample.foreground.sort()
        values[f"rpn_foreground/{n}"] = foreground.values
        values[f"rpn_background/{n}"] = sample.background.sort().values
        values[f"rpn_targets/{n}"] = sample.boxes[foreground.indices]
        values[f"proposals/{n}"] = boxes
        values[f"region_boxes/{n}"] = region.boxes
        values[f"region_classes/{n}"] = region.classes
        values[f"region_targets/{n}"] = region.targets
        if model.config.masks:
            side = model.config.pool_size * (4 if model.config.kind == "fpn" else 1)
            crops = masks.crop_targets(targets[n].masks, region.objects, region.boxes[: len(region.objects)], side)
            values[f"mask_targets/{n}"] = crops
    values |= losses
    values |= {f"grad/{name}": value.grad for name, value in model.named_parameters() if value.requires_grad}
    return {name: value.detach() for name, value in values.items()}


def calibrate(model: MaskRCNN, images: list[Tensor], targets: list[Target]) -> None:
    """Set the running statistics of the norms to those of a batch, because random ones give features of any size."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad(), shared_permutations():
        model.train()(images, targets, generators(len(images)))
    for norm in norms:
        norm.momentum = 0.1


def inference_values(model: MaskRCNN, images: list[Tensor], sizes: list[tuple[int, int]]) -> Values:
    """Compute the proposals in test, the detections in image files of `sizes`, and their pasted masks."""
    model.eval()
    seen = [(image.shape[1], image.shape[2]) for image in images]
    with torch.no_grad():
        predictions = model.proposal_generator.predict(model.backbone(model.preprocess(images)))
    values = {f"test_proposals/{n}": p for n, p in enumerate(model.proposal_generator.propose(predictions, seen))}
    for n, found in enumerate(model.detect(images, sizes)):
        values |= {f"boxes/{n}": found.boxes, f"scores/{n}": found.scores, f"classes/{n}": found.classes}
        if found.masks is not None:
            values[f"pasted/{n}"] = masks.paste(found.masks, found.boxes, *sizes[n])
    return values


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Compute the largest difference, divided by the largest value of `theirs`; 0 for empty tensors."""
    if not theirs.numel():
        return 0.0
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
