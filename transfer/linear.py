"""Linear evaluation: a linear classifier on the features of a frozen backbone.

Two protocols. Without augmentation (CIFAR, and any small data set): features are computed once, Adam trains on them
(`transfer.probe`). With it (ImageNet): every epoch sees new crops, SGD trains on them (`transfer.sgd_classifier`).
"""

import dataclasses
from pathlib import Path
from typing import Any

from intl_bench.core import distributed
from intl_bench.core.identity import runtime_only
from pretrain.checkpoint import Checkpoint
from pretrain.images.data import DataConfig, normalization, open_source
from transfer import precision as precisions
from transfer.features import extract_both, fingerprints, from_checkpoint
from transfer.outcome import Outcome, describe_normalization, last_and_best
from transfer.probe import train_probe
from transfer.sgd_classifier import Settings, train_classifier

__all__ = ["SEEDED", "LinearConfig", "fingerprints", "from_checkpoint", "protocol", "run"]

SEEDED = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """One of the two protocols; the defaults are the one without augmentation.

    Attributes:
        augment: train on random crops and flips of the images, or on features of the images as they are.
        resize, crop: shorter side of an image and side of its central square, in pixels; None leaves the image. With
            `augment` also the size of the random crops.
        lr: of Adam at the start; with `augment` of SGD for a batch of 256, whatever batch_size is.
        final_lr: of Adam at the end (without `augment`).
        milestones: epochs after which SGD's learning rate falls to a tenth (with `augment`).
        precision: of the backbone's forward pass, "fp32" or "bf16"; the classifier is trained in float32.
        deterministic: on a GPU the same weights bit for bit, at some cost in time (with `augment`).
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    workers: int = runtime_only(8)
    device: str = runtime_only("auto")
    deterministic: bool = runtime_only(False)
    augment: bool = False
    resize: int | None = None
    crop: int | None = None
    epochs: int = 500
    batch_size: int = 1000
    lr: float = 1e-2
    final_lr: float = 1e-6
    milestones: tuple[int, ...] = ()
    weight_decay: float = 5e-6
    precision: str = precisions.DEFAULT

    def unused(self) -> set[str]:
        """See `intl_bench.core.identity.identity`."""
        return {"final_lr" if self.augment else "milestones", *precisions.unused(self.precision)}

    def __post_init__(self) -> None:
        if self.augment and self.crop is None:
            raise ValueError("crop: expected the size of the training images, such as crop=224, with augment=true")
        if min(self.epochs, self.batch_size) < 1:
            raise ValueError(f"epochs={self.epochs}, batch_size={self.batch_size}: expected at least 1 of each")
        precisions.check(self.precision)
        if min(self.lr, self.final_lr) <= 0:
            raise ValueError(f"lr={self.lr}, final_lr={self.final_lr}: expected more than 0")


def protocol(config: LinearConfig) -> dict[str, Any]:
    """How this evaluation measures, in words for a footnote; what it is, `core.identity.identity` says."""
    schedule = (
        {"milestones": ", ".join(map(str, config.milestones))} if config.augment else {"final_lr": config.final_lr}
    )
    return {
        "protocol": "linear, augmented images" if config.augment else "linear, fixed features",
        "selection": "last epoch",
        "optimizer": "SGD" if config.augment else "Adam",
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        **schedule,
        "resize": config.resize,
        "crop": config.crop,
        "normalization": describe_normalization(config.data),
        "precision": precisions.stated(config.precision),
    }


def run(checkpoint: Checkpoint, config: LinearConfig, seed: int, *, folder: Path) -> Outcome:
    """Scores a checkpoint: `top1`, `top5` (with more than five classes), and `best_...` of the best epoch beside them.

    Args:
        seed: of the classifier's initial weights, the order and the crops.
        folder: for the state of a run with augmentation, which resumes; the other one takes minutes and does not.

    Raises:
        InputError, DivergedError, Preempted: as `train_classifier`, `train_probe` and `extract_both` say.
    """
    if config.augment:
        assert config.crop is not None
        mean, std = normalization(config.data)
        settings = Settings(
            seed=seed,
            epochs=config.epochs,
            batch_size=config.batch_size,
            head_lr=config.lr,
            backbone_lr=0.0,
            weight_decay=config.weight_decay,
            milestones=tuple(config.milestones),
            resize=config.resize,
            crop=config.crop,
            mean=mean,
            std=std,
            precision=config.precision,
        )
        train, test = (open_source(config.data, split) for split in ("train", "test"))
        return train_classifier(
            checkpoint,
            train,
            test,
            settings,
            device=config.device,
            workers=config.workers,
            folder=folder,
            deterministic=config.deterministic,
        )
    with distributed.start(config.device) as process:
        train_features, test_features = extract_both(checkpoint, config, process)
        classes = int(train_features.labels.max()) + 1
        probe = train_probe(
            *train_features,
            *test_features,
            classes=classes,
            seed=seed,
            epochs=config.epochs,
            batch_size=config.batch_size,
            lr=config.lr,
            final_lr=config.final_lr,
            weight_decay=config.weight_decay,
            device=process.device,
        )
    metrics, best_epoch = last_and_best(probe.history)
    counts = {"train_images": len(train_features.labels), "test_images": len(test_features.labels), "classes": classes}
    return Outcome(metrics=metrics, details={"best_epoch": best_epoch, **counts})
