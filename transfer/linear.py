"""Linear evaluation: a linear classifier on the features of a frozen backbone.

There are two protocols. Without augmentation (CIFAR and other small data sets), features are computed once and Adam
trains on them (`transfer.probe`). With augmentation (ImageNet), every epoch has new crops and SGD trains on them
(`transfer.sgd_classifier`).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intl_bench.core import distributed
from intl_bench.core.identity import every_value_published, runtime_only, shorthand
from intl_bench.core.ranges import Checked, Count, Device, Natural, NonNegative, Part, Pixels, Positive, Seed, Workers
from pretrain.checkpoint import Checkpoint
from pretrain.images.data import DataConfig, normalization
from pretrain.images.loader import steps_per_epoch
from transfer import precision as precisions
from transfer import selection as selections
from transfer import sizes
from transfer.features import Features, extract_both, from_checkpoint
from transfer.probe import train_probe
from transfer.scores import describe_normalization, last_and_best
from transfer.sgd_classifier import Settings, without_last_batch
from transfer.sgd_selection import score_by_sgd
from transfer.task import Images, Outcome, Task, open_both

__all__ = ["TASK", "LinearConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearChoices(selections.Choices):
    """Values to choose from.

    Attributes:
        lr, weight_decay: each replaces the setting of its name.
    """

    lr: tuple[Positive, ...] = ()
    weight_decay: tuple[NonNegative, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearConfig(Checked):
    """Settings of both protocols. The defaults are those without augmentation.

    Attributes:
        data: the images.
        workers: processes that load images.
        device: "auto" takes a GPU if there is one.
        augment: train on random crops and flips of the images instead of on features of the whole images.
        resize, crop: shorter side of an image and side of its central square, in pixels. None leaves the image as it
            is. With `augment`, `crop` is also the size of the random crops.
        size: side of the test images in pixels. Sets `crop`, and `resize` in the ratio of 256 to 224 if it is set.
        epochs: of the classifier's training.
        batch_size: images of a step.
        lr: of Adam at the start. With `augment`, of SGD for a batch of 256 images.
        final_lr: of Adam at the end (without `augment`).
        milestones: epochs after which SGD's learning rate falls to a tenth (with `augment`).
        weight_decay: of the classifier.
        precision: of the backbone's forward pass, "fp32" or "bf16". The classifier is trained in float32.
        drop_last: with `augment`, whether an epoch leaves out the images that do not fill its last batch. The authors'
            code for ImageNet (`evaluate.py`) keeps them.
        selection: "last" scores the last epoch. "val" chooses the epoch on a part of the training images, trains again
            on all of them up to that epoch, and looks at the test images once. "best-on-test" chooses the epoch on the
            test images, as the paper did.
        choose: with another `selection` than "last", lists of values to choose from too, such as
            choose.lr=[0.1,0.3,1].
        val_share, val_seed: with "val", the share of the training images that choose, with the same share of every
            class, and the seed of their draw.
        deterministic: with `augment`, a GPU computes the same weights bit for bit, at some cost in time.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    workers: Workers = runtime_only(8)
    device: Device = runtime_only("auto")
    deterministic: bool = runtime_only(False)
    augment: bool = False
    resize: Pixels | None = None
    crop: Pixels | None = None
    size: Pixels | None = shorthand(None)
    epochs: Count = 500
    batch_size: Count = 1000
    lr: Positive = 1e-2
    final_lr: Positive = 1e-6
    milestones: tuple[Natural, ...] = ()
    weight_decay: NonNegative = 5e-6
    precision: precisions.Precision = precisions.DEFAULT
    drop_last: bool = True
    selection: selections.Selection = every_value_published(selections.LAST)
    choose: LinearChoices = dataclasses.field(default_factory=LinearChoices)
    val_share: Part = 0.1
    val_seed: Seed = 0

    def unused(self) -> set[str]:
        """See `intl_bench.core.identity.identity`."""
        names = {"final_lr" if self.augment else "milestones", *precisions.unused(self.precision)}
        names |= selections.unused(self)
        return names | without_last_batch(self.drop_last or not self.augment)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes.resolve(self)
        selections.check(self)
        if self.augment and self.crop is None:
            raise ValueError("crop: not set; augment=true needs the size of the training images, such as crop=224")


def protocol(config: LinearConfig) -> dict[str, Any]:
    """Describe the evaluation in words, for a table's footnote."""
    schedule = (
        {"milestones": ", ".join(map(str, config.milestones))} if config.augment else {"final_lr": config.final_lr}
    )
    return {
        "protocol": "linear, augmented images" if config.augment else "linear, fixed features",
        "selection": "last epoch",
        "optimizer": "SGD" if config.augment else "Adam",
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "last_batch": None if config.drop_last else "kept",
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        **schedule,
        "resize": config.resize,
        "crop": config.crop,
        "normalization": describe_normalization(config.data),
        "precision": precisions.stated(config.precision),
        **selections.describe(config),
    }


def run(checkpoint: Checkpoint, config: LinearConfig, seed: int, *, folder: Path) -> Outcome:
    """Score a checkpoint: `top1` and `top5` (with more than five classes) of the epoch that `selection` says.

    With "last" also `best_...` of the best epoch on the test images, with "val" also `val_...` of the part that chose.

    Args:
        seed: of the classifier's initial weights, the order and the crops.
        folder: for the state of a run with augmentation. The protocol without augmentation takes minutes and does not
            resume.

    Raises:
        InputError, DivergedError, Preempted: see `train_classifier`, `train_probe` and `extract_both`.
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
            drop_last=config.drop_last,
        )
        names = {"lr": "head_lr", "weight_decay": "weight_decay"}
        return score_by_sgd(checkpoint, config, open_images(config), settings, names, folder)
    with distributed.start(config.device) as process:
        train_features, test_features = extract_both(checkpoint, config, process)
        classes = int(train_features.labels.max()) + 1

        def train(
            values: Mapping[str, Any], part: np.ndarray | None, stop_epoch: int | None, name: str
        ) -> selections.History:
            fitted, scored = train_features, test_features
            if part is not None:
                rows = torch.from_numpy(part)
                fitted, scored = (Features(*(tensor[which] for tensor in train_features)) for which in (rows, ~rows))
            return train_probe(
                *fitted,
                *scored,
                classes=classes,
                seed=seed,
                epochs=config.epochs,
                batch_size=config.batch_size,
                final_lr=config.final_lr,
                **{"lr": config.lr, "weight_decay": config.weight_decay, **values},
                stop_epoch=stop_epoch,
                device=process.device,
            ).history

        if config.selection == selections.LAST:
            metrics, best_epoch = last_and_best(train({}, None, None, ""))
            details: dict[str, Any] = {"best_epoch": best_epoch}
        else:
            metrics, details = selections.train_selected(config, train_features.labels.numpy(), train)
    counts = {"train_images": len(train_features.labels), "test_images": len(test_features.labels), "classes": classes}
    return Outcome(metrics=metrics, details={**details, **counts})


def open_images(config: LinearConfig) -> Images:
    """Open the training and the test images; see `transfer.task.Task.images`."""
    train, test = open_both(config)
    fitted = selections.fitted_images(config, train.labels)
    if config.augment:  # without it, a batch has at most all images
        steps_per_epoch(fitted, config.batch_size, drop_last=config.drop_last)
    return train, test


TASK = Task(
    config=LinearConfig,
    run=run,
    protocol=protocol,
    images=open_images,
    from_checkpoint=from_checkpoint,
)
