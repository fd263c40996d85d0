"""Transfer to other data sets: logistic regression on frozen features, and few-shot episodes.

The protocol is that of SimCLR (Chen et al., 2020, appendix B.8) and Ericsson et al. (2021; linear.py and few_shot.py of
github.com/linusericsson/ssl-transfer): multinomial logistic regression by L-BFGS without augmentation, 45 values of the
weight decay, a validation part of the training images that chooses one, a fit on all training images, one test.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from intl_bench.core import distributed
from intl_bench.core.identity import runtime_only, shorthand
from intl_bench.core.progress import Progress
from intl_bench.core.ranges import Checked, Choice, Count, Device, Fraction, Natural, Pixels, Positive, Seed, Workers
from pretrain.checkpoint import Checkpoint
from pretrain.images import sample
from pretrain.images.data import DataConfig, ImageSource, normalization
from transfer import few_shot, sizes
from transfer import precision as precisions
from transfer.features import extract, from_checkpoint
from transfer.logistic import Fit, Problem
from transfer.scores import describe_normalization, mean_average_precision, mean_per_class
from transfer.task import Images, Outcome, Task, open_both

__all__ = ["TASK", "TransferConfig"]

_OWN_VALIDATION = ("aircraft", "dtd", "flowers102", "voc07")  # kinds of data that have validation images of their own


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferConfig(Checked):
    """Settings of the transfer to a data set.

    Attributes:
        data: the images.
        workers: processes that load images.
        device: "auto" takes a GPU if there is one.
        resize, crop: shorter side of an image and side of its central square, in pixels. None leaves the image.
        size: side of the images in pixels. Sets `crop`, and `resize` in the ratio of 256 to 224 if it is set.
        interpolation: of the resize, "bicubic" or "bilinear".
        metric: the score that chooses the weight decay and that the table shows: "top1", "mean_per_class" (the mean of
            the accuracies of the classes), or "mAP" (the mean of the 11-point average precisions, for images with
            several classes).
        decays: number of weight decays that are tried, in equal ratios from `least_decay` to `largest_decay`.
        least_decay, largest_decay: of the sum of the losses of all images: 1 / C of scikit-learn.
        val_share: share of the training images that chooses the weight decay, with the same share of every class.
            Aircraft, DTD, Flowers-102 and VOC07 have validation images of their own.
        val_seed: seed of the draw of these images.
        tolerance: bound of the gradient's largest value at the end of a fit; see `transfer.logistic`.
        iterations: the largest number of steps of a fit.
        episodes: number of few-shot episodes; 0 leaves them out.
        ways, shots, queries: classes of an episode, and images of each that are known and that are classified.
        episode_seed: seed of the episodes.
        precision: of the backbone's forward pass, "fp32" or "bf16". The classifier is fitted in float32.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    workers: Workers = runtime_only(8)
    device: Device = runtime_only("auto")
    resize: Pixels | None = 224
    crop: Pixels | None = 224
    size: Pixels | None = shorthand(None)
    interpolation: Annotated[str, Choice(("bicubic", "bilinear"))] = "bicubic"
    metric: Annotated[str, Choice(("top1", "mean_per_class", "mAP"))] = "top1"
    decays: Count = 45
    least_decay: Positive = 1e-6
    largest_decay: Positive = 1e5
    val_share: Fraction = 0.2
    val_seed: Seed = 0
    tolerance: Positive = 1e-7
    iterations: Count = 1000
    episodes: Natural = 600
    ways: Count = 5
    shots: Count = 5
    queries: Count = 15
    episode_seed: Seed = 0
    precision: precisions.Precision = precisions.DEFAULT

    def unused(self) -> set[str]:
        """See `intl_bench.core.identity.identity`."""
        names = {"val_share", "val_seed"} if self.data.kind in _OWN_VALIDATION else set()
        several = self.metric == "mAP"
        names |= {"episodes"} if several else set()
        names |= {"ways", "shots", "queries", "episode_seed"} if several or not self.episodes else set()
        return names | precisions.unused(self.precision)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes.resolve(self)
        if self.ways < 2:
            raise ValueError(f"ways={self.ways}: expected at least 2; an episode of one class has nothing to classify")
        if self.least_decay > self.largest_decay:
            raise ValueError(f"least_decay={self.least_decay}: more than largest_decay={self.largest_decay}")
        if (self.metric == "mAP") != (self.data.kind == "voc07"):
            expected = "mAP" if self.data.kind == "voc07" else "top1 or mean_per_class"
            raise ValueError(f"metric={self.metric}: data.kind={self.data.kind} is scored by {expected}")


def protocol(config: TransferConfig) -> dict[str, Any]:
    """Describe the evaluation in words, for a table's footnote."""
    own = config.data.kind in _OWN_VALIDATION
    few = config.episodes and config.metric != "mAP"
    return {
        "protocol": "logistic regression, fixed features",
        "metric": config.metric,
        "selection": "the data set's validation images" if own else f"{config.val_share:g} of the training images",
        "selection_seed": None if own else config.val_seed,
        "weight_decays": f"{config.decays} from {config.least_decay:g} to {config.largest_decay:g}",
        "tolerance": config.tolerance,
        "iterations": config.iterations,
        "resize": config.resize,
        "crop": config.crop,
        "interpolation": config.interpolation,
        "few_shot": f"{config.ways}-way {config.shots}-shot, {config.queries} queries, {config.episodes} episodes, "
        f"seed {config.episode_seed}"
        if few
        else None,
        "normalization": describe_normalization(config.data),
        "precision": precisions.stated(config.precision),
    }


def run(checkpoint: Checkpoint, config: TransferConfig, seed: int, *, folder: Path) -> Outcome:
    """Score a checkpoint: `top1` and `mean_per_class`, or `mAP`; `few_shot` and the half width of its 95% interval.

    One episode has no interval.

    The result has no randomness besides that of its settings, so `seed` is not used. The features are cached, so
    `folder` is not used either.

    Raises:
        InputError: the images cannot be read or are too few; see also `features.extract`.
    """
    train, test = open_images(config)
    validation = _validation(train, config)
    with distributed.start(config.device) as process:
        features = [
            extract(
                checkpoint,
                source,
                normalization=normalization(config.data),
                resize=config.resize,
                crop=config.crop,
                interpolation=config.interpolation,
                process=process,
                workers=config.workers,
                precision=config.precision,
            ).features
            for source in (train, test)
        ]
        given, asked = (part.to(process.device) for part in features)
        labels, truth = (_targets(source).to(process.device) for source in (train, test))
        details, logits = _fit(config, given, labels, validation, asked, len(train.class_names), process)
    metrics = _scores(logits, truth)
    if config.episodes and not train.multi_label:
        metrics |= _few_shot(config, torch.cat(features), np.concatenate([train.labels, test.labels]))
    details |= {
        "train_images": len(train),
        "test_images": len(test),
        "classes": len(train.class_names),
        "validation_images": int(validation.sum()),
    }
    return Outcome(metrics=metrics, details=details)


def open_images(config: TransferConfig) -> Images:
    """Open the training images, which include the validation images, and the test images; see `Task.images`."""
    train, test = open_both(config, multi_label=True)
    _validation(train, config)
    if config.episodes and not train.multi_label:
        few_shot.members(np.concatenate([train.labels, test.labels]), **_episode(config))
    return train, test


def _episode(config: TransferConfig) -> dict[str, int]:
    return {"ways": config.ways, "shots": config.shots, "queries": config.queries}


def _validation(train: ImageSource, config: TransferConfig) -> torch.Tensor:
    """Return which training images choose the weight decay, (n,) bool."""
    if train.validation is not None:
        return torch.from_numpy(train.validation)
    chosen = np.zeros(len(train), bool)
    count = sample.count_of(config.val_share, len(train))
    setting = f"val_share={config.val_share:g}"
    chosen[sample.stratified(train.labels, count, seed=config.val_seed, purpose="validation", setting=setting)] = True
    sample.check_both_parts(train.labels, chosen, setting=setting)
    return torch.from_numpy(chosen)


def _targets(source: ImageSource) -> torch.Tensor:
    """Return the labels (n,) int64, or which classes each image has, (n, K) bool."""
    if not source.multi_label:
        return torch.from_numpy(source.labels)
    return torch.from_numpy(source.labels[:, None] >> np.arange(len(source.class_names)) & 1 > 0)


def _fit(
    config: TransferConfig,
    features: torch.Tensor,
    labels: torch.Tensor,
    validation: torch.Tensor,
    asked: torch.Tensor,
    classes: int,
    process: distributed.Process,
) -> tuple[dict[str, Any], torch.Tensor]:
    """Choose the weight decay, fit all training images with it, and return details and the logits of the test images.

    The path goes from strong to weak, where each fit starts at the one before. Of equal scores the strongest wins.
    """
    chosen = validation.to(features.device)
    part = Problem(features[~chosen], labels[~chosen], classes)
    held, truth = part.project(features[chosen]), labels[chosen]
    path = np.geomspace(config.largest_decay, config.least_decay, config.decays).tolist()
    progress = Progress(len(path) + 1, label="weight decays", enabled=process.is_main)
    limits: dict[str, Any] = {"tolerance": config.tolerance, "iterations": config.iterations}
    best: Fit | None = None
    start, scores, fits, decay = None, list[float](), list[Fit](), path[0]
    for value in path:
        fit = part.fit(value, start, **limits)
        start = fit.weights
        scores.append(_scores(held @ fit.weights.T, truth)[config.metric])
        fits.append(dataclasses.replace(fit, weights=fit.weights[:0]))
        if best is None or scores[-1] > max(scores[:-1]):
            best, decay = fit, value
        progress.step()
    assert best is not None
    weights, axes = best.weights, part.axes
    del part, held
    whole = Problem(features, labels, classes)
    last = whole.fit(decay, whole.carry_over(axes, weights), **limits)
    progress.step()
    progress.close()
    unfinished = sum(not fit.converged for fit in (*fits, last))
    if unfinished and process.is_main:
        print(
            f"transfer: {unfinished} of {len(path) + 1} fits ended with a gradient above tolerance="
            f"{config.tolerance:g}; iterations={config.iterations} is the largest number of their steps",
            file=sys.stderr,
        )
    details = {
        "weight_decay": decay,
        "validation_score": max(scores),
        "validation_scores": [round(score, 4) for score in scores],
        "steps": sum(fit.iterations for fit in (*fits, last)),
        "fits_above_tolerance": unfinished,
    }
    return details, (whole.project(asked) @ last.weights.T).cpu()


def _scores(logits: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    if truth.ndim == 2:
        return {"mAP": mean_average_precision(logits, truth)}
    predicted, truth = logits.argmax(dim=1).cpu(), truth.cpu()
    return {
        "top1": 100 * float((predicted == truth).double().mean()),
        "mean_per_class": mean_per_class(predicted, truth),
    }


def _few_shot(config: TransferConfig, features: torch.Tensor, labels: np.ndarray) -> dict[str, float]:
    """Score episodes of the images of both splits, as Ericsson et al. do."""
    mean, half = few_shot.accuracy(
        features, labels, episodes=config.episodes, seed=config.episode_seed, **_episode(config)
    )
    return {"few_shot": mean} | ({} if config.episodes == 1 else {"few_shot_ci95": half})


TASK = Task(
    config=TransferConfig,
    run=run,
    protocol=protocol,
    images=open_images,
    from_checkpoint=from_checkpoint,
    seeded=False,
    finds_kind=True,
)
