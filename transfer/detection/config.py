"""Settings of a detection run; the defaults are the paper's: Mask R-CNN R50-C4 on COCO, 2x schedule."""

import dataclasses
import importlib.util
import math

from intl_bench.core.datasets import canonical
from intl_bench.core.identity import every_value_published, runtime_only

_STRIDES = {"imagenet": 16, "cifar": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Mask R-CNN (Faster R-CNN with `masks: false`) on a ResNet's conv4 features.

    Attributes:
        blocks: residual blocks of each stage; the last stage is the head of the regions.
        bottleneck: bottleneck blocks (ResNet-50), else basic ones (ResNet-18).
        width: channels of the stem, 64 in a standard ResNet.
        stem: "imagenet" (7x7, stride 2, max-pool) or "cifar" (3x3, stride 1, padding 2, no max-pool), as pre-trained.
        rpn_batch, roi_batch: anchors and regions an image that the losses are computed on.
        pre_nms_*, post_nms_*: proposals an image before and after non-maximum suppression, in training and in test.
        pixel_mean, pixel_std: of RGB in 0..255.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    width: int = 64
    stem: str = "imagenet"
    num_classes: int = 80
    masks: bool = True
    mask_channels: int = 256
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_batch: int = 256
    roi_batch: int = 512
    pre_nms_train: int = 12000
    post_nms_train: int = 2000
    pre_nms_test: int = 6000
    post_nms_test: int = 1000
    pool_size: int = 14
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections_per_image: int = 100
    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        if self.stem not in _STRIDES:
            raise ValueError(f"model.stem={self.stem}: expected {' or '.join(_STRIDES)}")
        if len(self.blocks) != 4 or min(self.blocks) < 1:
            raise ValueError(f"model.blocks={self.blocks}: expected four positive numbers")
        counts = ["width", "num_classes", "mask_channels", "rpn_batch", "roi_batch", "pool_size"]
        counts += ["pre_nms_train", "post_nms_train", "pre_nms_test", "post_nms_test", "detections_per_image"]
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: expected a positive number")
        for name in ("anchor_sizes", "aspect_ratios"):
            values = getattr(self, name)
            if not values or not all(math.isfinite(value) and value > 0 for value in values):
                raise ValueError(f"model.{name}={values}: expected positive numbers")
        if len(self.pixel_mean) != 3 or len(self.pixel_std) != 3 or min(self.pixel_std) <= 0:
            raise ValueError("model.pixel_mean, model.pixel_std: expected three numbers each, the latter positive")

    @property
    def stride(self) -> int:
        """Pixels of the image to one position of the conv4 feature map."""
        return _STRIDES[self.stem]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotatedDataConfig:
    """Which annotated images, and where.

    Attributes:
        kind: "coco" (annotation JSON and image folders) or "voc" (VOCdevkit: XML annotations, lists of image names).
        root: the folder that all other paths start from.
        name: the data set's name in results; coco2017 (or coco) and voc0712 (or voc) are kept for their categories.
        train, test: annotation files; one JSON each for coco, one or more lists (ImageSets/Main/*.txt) for voc.
        train_images, test_images: image folders of coco; voc has its own beside each list.
    """

    kind: str = "coco"
    root: str = runtime_only("")
    name: str = runtime_only("coco2017")
    train: tuple[str, ...] = runtime_only(("annotations/instances_train2017.json",))
    test: tuple[str, ...] = runtime_only(("annotations/instances_val2017.json",))
    train_images: str = runtime_only("train2017")
    test_images: str = runtime_only("val2017")

    def __post_init__(self) -> None:
        if self.kind not in ("coco", "voc"):
            raise ValueError(f"data.kind={self.kind}: expected coco or voc")
        for field in ("train", "test"):
            files = getattr(self, field)
            if not files or (self.kind == "coco" and len(files) > 1):
                raise ValueError(
                    f"data.{field}={files}: expected {'one JSON' if self.kind == 'coco' else 'image lists'}"
                )

    @property
    def dataset(self) -> str:
        """The data set's name in results."""
        return canonical(self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """A detection protocol: data, detector, schedule and engine.

    Attributes:
        engine: "builtin" (torchvision's operators), "detectron2", or "auto": Detectron2 where it can be imported.
        iterations, milestones: steps in all, and those at which the learning rate falls to a tenth.
        warmup_iterations, warmup_factor: linear warm-up from `warmup_factor` times the learning rate.
        batch_size: images of a step, over all processes.
        lr: for this batch size; nothing is scaled.
        weight_decay, norm_weight_decay: of weights and biases, and of the norms' parameters.
        min_sizes, max_size: shorter sides (pixels) of training images, one drawn at random, and the longest side.
        test_min_size, test_max_size: the same for test images.
        precise_bn: iterations that estimate the batch norms' statistics at the end; 0 keeps the running ones.
        precision: "fp32", or "bf16" for autocast.
        checkpoint_every, eval_every: iterations; 0 evaluates at the end only. In between the running statistics of the
            batch norms are used, at the end those of `precise_bn`.
        evaluator: "pycocotools" or "faster-coco-eval", for evaluations during training; the reported one is
            pycocotools'.
        visualize: how many of the worst test images to draw.
    """

    data: AnnotatedDataConfig = dataclasses.field(default_factory=AnnotatedDataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    engine: str = every_value_published("auto")
    iterations: int = 180_000
    milestones: tuple[int, ...] = (120_000, 160_000)
    warmup_iterations: int = 1000
    warmup_factor: float = 0.001
    batch_size: int = 16
    lr: float = 0.02
    weight_decay: float = 1e-4
    norm_weight_decay: float = 0.0
    min_sizes: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    max_size: int = 1333
    test_min_size: int = 800
    test_max_size: int = 1333
    precise_bn: int = 200
    precision: str = "fp32"
    channels_last: bool = False
    checkpoint_every: int = runtime_only(5000)
    eval_every: int = runtime_only(0)
    evaluator: str = runtime_only("pycocotools")
    visualize: int = runtime_only(0)
    workers: int = runtime_only(4)
    device: str = runtime_only("auto")

    def __post_init__(self) -> None:
        choices = {
            "engine": ("auto", "builtin", "detectron2"),
            "precision": ("fp32", "bf16"),
            "evaluator": ("pycocotools", "faster-coco-eval"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)}: expected {', '.join(known)}")
        for name in ("iterations", "batch_size", "max_size", "test_min_size", "test_max_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a positive number")
        for name in ("warmup_iterations", "precise_bn", "eval_every", "visualize", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 0")
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) < 1:
            raise ValueError(f"milestones={list(self.milestones)}: expected growing positive iterations")
        if not self.min_sizes or min(self.min_sizes) < 1:
            raise ValueError(f"min_sizes={list(self.min_sizes)}: expected positive numbers")
        for name in ("lr", "weight_decay", "norm_weight_decay", "warmup_factor"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected a finite number of at least 0")
        if self.engine == "auto":
            object.__setattr__(self, "engine", "detectron2" if importlib.util.find_spec("detectron2") else "builtin")

    @property
    def schedule(self) -> str:
        """The schedule's usual name where it is that of the papers, else its length."""
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
