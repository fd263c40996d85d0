"""Settings of a detection run. The defaults are those of the paper: Mask R-CNN R50-C4 on COCO, 2x schedule."""

import dataclasses
from typing import Annotated

from intl_bench.core import config as configs
from intl_bench.core.datasets import canonical
from intl_bench.core.identity import by_content, every_value_published, runtime_only
from intl_bench.core.names import require_title
from intl_bench.core.ranges import (
    Checked,
    Choice,
    Count,
    Device,
    Finite,
    Layers,
    Natural,
    NonNegative,
    Pixels,
    Positive,
    Range,
    Share,
    Width,
    Workers,
)
from pretrain.images.decode import LARGEST

_STRIDES = {"imagenet": 16, "cifar": 4}  # of conv4
_LEVELS = 5  # of a pyramid


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """Settings of Mask R-CNN on a ResNet. With `masks: false` the detector is Faster R-CNN.

    Attributes:
        kind: "c4" (regions of the conv4 features, the last stage is their head) or "fpn" (feature pyramid of all
            stages). The other defaults are those of "c4"; `configs/coco/r50_fpn_1x.yaml` has those of "fpn".
        blocks: number of residual blocks of each stage.
        bottleneck: whether the blocks are bottleneck blocks (ResNet-50) or basic blocks (ResNet-18).
        width: channels of the stem; 64 in a standard ResNet.
        stem: "imagenet" (7x7, stride 2, max-pool) or "cifar" (3x3, stride 1, padding 2, no max-pool); the same as in
            pre-training.
        num_classes: number of categories.
        masks: whether the detector predicts masks too.
        mask_channels: width of the mask head.
        anchor_sizes: sides of the square anchors, in pixels of the image; of a pyramid one for each of its five levels.
        aspect_ratios: of the anchors, height / width.
        rpn_batch, roi_batch: number of anchors and of regions per image that the losses are computed on.
        pre_nms_train, post_nms_train: number of proposals per image before and after non-maximum suppression, in
            training; of a pyramid the former is a number per level.
        pre_nms_test, post_nms_test: the same in test.
        pool_size: height and width of the features of a region; the mask head of a pyramid has twice as many.
        score_threshold: lowest score of a detection.
        nms_threshold: overlap (IoU) above which the lower of two detections of a category is left out.
        detections_per_image: largest number of detections.
        pixel_mean, pixel_std: mean and standard deviation of the RGB channels, for pixels from 0 to 255.
        fpn_channels: channels of all levels of the pyramid.
        box_head: the head for class and box of a pyramid: "2fc" (two linear layers, no norms in the heads, as in
            Detectron2) or "4conv1fc" (four convolutions and a linear layer, norms in the heads for boxes and masks).
        fc_channels: width of these linear layers.
    """

    kind: Annotated[str, Choice(("c4", "fpn"))] = "c4"
    blocks: tuple[Layers, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    width: Width = 64
    stem: Annotated[str, Choice(tuple(_STRIDES))] = "imagenet"
    num_classes: Width = 80
    masks: bool = True
    mask_channels: Width = 256
    anchor_sizes: tuple[Positive, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    aspect_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    rpn_batch: Count = 256
    roi_batch: Count = 512
    pre_nms_train: Count = 12000
    post_nms_train: Count = 2000
    pre_nms_test: Count = 6000
    post_nms_test: Count = 1000
    pool_size: Pixels = 14
    score_threshold: Share = 0.05
    nms_threshold: Share = 0.5
    detections_per_image: Count = 100
    pixel_mean: tuple[Finite, ...] = (123.675, 116.28, 103.53)
    pixel_std: tuple[Positive, ...] = (58.395, 57.12, 57.375)
    fpn_channels: Width = 256
    box_head: Annotated[str, Choice(("2fc", "4conv1fc"))] = "2fc"
    fc_channels: Width = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.blocks) != 4:
            raise ValueError(f"model.blocks={self.blocks}: expected four numbers")
        for name in ("anchor_sizes", "aspect_ratios"):
            if not getattr(self, name):
                raise ValueError(f"model.{name}={getattr(self, name)}: expected at least one number")
        if self.kind == "fpn" and len(self.anchor_sizes) != _LEVELS:
            raise ValueError(
                f"model.anchor_sizes={list(self.anchor_sizes)}: expected {_LEVELS} numbers, one for each level of the "
                "pyramid"
            )
        if len(self.pixel_mean) != 3 or len(self.pixel_std) != 3:
            raise ValueError(
                f"model.pixel_mean={self.pixel_mean}, model.pixel_std={self.pixel_std}: expected three numbers in each"
            )

    def unused(self) -> set[str]:
        """Return the settings of a pyramid for "c4", whose identities in older records do not have them."""
        return {"kind", "fpn_channels", "box_head", "fc_channels"} if self.kind == "c4" else set()

    @property
    def strides(self) -> tuple[int, ...]:
        """The distances in image pixels between two neighboring positions of each feature map, conv4 or p2 to p6."""
        conv4 = _STRIDES[self.stem]
        return (conv4,) if self.kind == "c4" else tuple(conv4 * 2**level // 4 for level in range(_LEVELS))


def usual_model(kind: str) -> ModelConfig:
    """Return the published settings of a kind of detector, "c4" or "fpn"."""
    path = configs.CONFIGS / "coco" / ("r50_fpn_1x.yaml" if kind == "fpn" else "r50_c4_1x.yaml")
    return configs.build(ModelConfig, configs.read(path).get("model", {}), str(path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotatedDataConfig(Checked):
    """Settings of the annotated images of a detection run.

    Attributes:
        kind: "coco" (annotation JSON and image folders) or "voc" (VOCdevkit: XML annotations, lists of image names).
        root: the folder that all other paths are relative to.
        name: name of the data set in results. The names coco2017 (or coco) and voc0712 (or voc) are accepted only with
            the categories of these data sets.
        train, test: annotation files: one JSON file for coco, one or more lists (ImageSets/Main/*.txt) for voc.
        train_images, test_images: image folders of coco. They are not used for voc, where the images are in the folder
            of the year that a list belongs to.
        boxes: "refuse" boxes beyond their image by more than a pixel, or "clip" them in training, as Detectron2 does.
            The evaluation uses the boxes of the file.
        percent: train on a part of the images of coco, drawn as for semi-supervised detection: the lists
            instances_train2017.FOLD@PERCENT.json of STAC and MMDetection. None trains on all images. The schedule does
            not follow; the protocol r50_c4_9k has a short one.
        fold: seed of this draw; the literature uses 1 to 5.
        max_pixels: larger image files are refused, because a small file can fill the memory. Raise it for images that
            you trust.
    """

    kind: Annotated[str, Choice(("coco", "voc"))] = "coco"
    root: str = by_content("")
    name: str = runtime_only("coco2017")
    train: tuple[str, ...] = by_content(("annotations/instances_train2017.json",))
    test: tuple[str, ...] = by_content(("annotations/instances_val2017.json",))
    train_images: str = by_content("train2017")
    test_images: str = by_content("val2017")
    boxes: Annotated[str, Choice(("refuse", "clip"))] = "refuse"
    percent: Annotated[float, Range(0, 100, above=True)] | None = None
    fold: Annotated[int, Range(0, 2**32 - 1)] = 1
    max_pixels: Count = runtime_only(LARGEST)

    def unused(self) -> set[str]:
        """Return the later settings that have their default, which identities of older records do not have."""
        return ({"boxes"} if self.boxes == "refuse" else set()) | (
            {"percent", "fold"} if self.percent is None else set()
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_title(self.name, "data.name")
        for field in ("train", "test"):
            files = getattr(self, field)
            if not files or (self.kind == "coco" and len(files) > 1):
                expected = "exactly one JSON file" if self.kind == "coco" else "at least one list of images"
                raise ValueError(f"data.{field}={list(files)}: expected {expected}")
        if self.percent is not None and self.kind != "coco":
            raise ValueError(
                f"data.percent={self.percent:g}: expected data.kind=coco; shorten the lists of VOC instead"
            )

    @property
    def dataset(self) -> str:
        """The name of the data set in results."""
        return canonical(self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionConfig(Checked):
    """Settings of a detection protocol: data, detector, schedule and engine.

    Attributes:
        data: the annotated images.
        model: the detector.
        engine: "builtin" (torchvision's operators), "detectron2", or "auto": Detectron2 if it is there and can do it.
        iterations, milestones: number of steps, and the steps at which the learning rate is divided by 10.
        warmup_iterations, warmup_factor: steps of the linear warm-up, and the factor of the learning rate at its start.
        batch_size: images per step, over all processes.
        accumulate: number of parts in which a step computes its batch, one after the other. The gradient is that of the
            whole batch, except that batch norms use the statistics of a part. The built-in engine only.
        lr: learning rate for this batch size; it is not scaled.
        weight_decay, norm_weight_decay: weight decay of weights and biases, and of the parameters of norms.
        freeze_at: number of stages of the backbone that are not trained, and whose batch norms use their running
            statistics: 1 is the stem, 2 also res2, ... 4 also res4, as Detectron2's MODEL.BACKBONE.FREEZE_AT.
        min_sizes, max_size: shorter sides in pixels, one of which is drawn at random for each training image, and the
            largest longer side.
        test_min_size, test_max_size: the shorter side of test images, and the largest longer side.
        precise_bn: iterations that estimate the statistics of the batch norms after training; 0 keeps the running
            statistics.
        precision: "fp32", or "bf16" for autocast.
        channels_last: whether the channels of a pixel are stored together, which is faster on most devices.
        checkpoint_every: iterations between two saved states.
        eval_every: iterations between two evaluations; 0 evaluates only after training. Evaluations during training
            use the running statistics of the batch norms, the evaluation after training those of `precise_bn`.
        evaluator: "pycocotools" or "faster-coco-eval", for evaluations during training. The reported evaluation is
            always done by pycocotools.
        visualize: number of test images with the lowest box AP to draw.
        visualize_threshold: lowest score of the detections that are drawn.
        workers: processes that load images, of each training process.
        device: "auto" takes a GPU if there is one.
    """

    data: AnnotatedDataConfig = dataclasses.field(default_factory=AnnotatedDataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    engine: Annotated[str, Choice(("auto", "builtin", "detectron2"))] = every_value_published("auto")
    iterations: Count = 180_000
    milestones: tuple[Natural, ...] = (120_000, 160_000)
    warmup_iterations: Natural = 1000
    warmup_factor: Share = 0.001
    batch_size: Count = 16
    accumulate: Count = 1
    lr: NonNegative = 0.02
    weight_decay: NonNegative = 1e-4
    norm_weight_decay: NonNegative = 0.0
    freeze_at: Annotated[int, Range(0, 4)] = 0
    min_sizes: tuple[Pixels, ...] = (640, 672, 704, 736, 768, 800)
    max_size: Pixels = 1333
    test_min_size: Pixels = 800
    test_max_size: Pixels = 1333
    precise_bn: Natural = 200
    precision: Annotated[str, Choice(("fp32", "bf16"))] = "fp32"
    channels_last: bool = False
    checkpoint_every: Count = runtime_only(5000)
    eval_every: Natural = runtime_only(0)
    evaluator: Annotated[str, Choice(("pycocotools", "faster-coco-eval"))] = runtime_only("pycocotools")
    visualize: Natural = runtime_only(0)
    visualize_threshold: Share = runtime_only(0.5)
    workers: Workers = runtime_only(4)
    device: Device = runtime_only("auto")

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) < 1:
            raise ValueError(f"milestones={list(self.milestones)}: expected positive numbers in increasing order")
        if not self.min_sizes:
            raise ValueError("min_sizes=[]: expected at least one number")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate={self.accumulate}: does not divide batch_size={self.batch_size}; expected a divisor of it"
            )

    def unused(self) -> set[str]:
        """Return the later settings that have their default, which identities of older records do not have."""
        return {name for name, default in (("accumulate", 1), ("freeze_at", 0)) if getattr(self, name) == default}

    @property
    def schedule(self) -> str:
        """The usual name of the schedule ("1x", "2x" or "24k"), or a description if it is none of these."""
        usual: dict[tuple[int, ...], str] = {
            (90_000, 60_000, 80_000): "1x",
            (180_000, 120_000, 160_000): "2x",
            (24_000, 18_000, 22_000): "24k",
        }
        name = usual.get((self.iterations, *self.milestones))
        if name and self.batch_size == 16:
            return name
        drops = ", ".join(map(str, self.milestones))
        return f"{self.iterations} iterations of {self.batch_size}{f', drops at {drops}' if drops else ''}"
