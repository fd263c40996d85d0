"""k nearest neighbors on frozen features.

The default is the protocol of the paper: raw features, Euclidean distance, k = 5, one vote per neighbor, and the lowest
label wins a tied vote (the authors' cifar/eval/evaluate.py). configs/knn/ also has solo-learn's and DINO's protocols.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from intl_bench.core import distributed
from intl_bench.core.errors import InputError
from intl_bench.core.identity import every_value_published, runtime_only, shorthand
from intl_bench.core.ranges import Checked, Choice, Count, Device, Part, Pixels, Positive, Seed, Workers
from pretrain.checkpoint import Checkpoint
from pretrain.images.data import DataConfig
from transfer import precision as precisions
from transfer import selection as selections
from transfer import sizes
from transfer.features import Features, extract_both, from_checkpoint
from transfer.neighbors import WEIGHTS, check, predict
from transfer.scores import describe_normalization
from transfer.task import Images, Outcome, Task, open_both

__all__ = ["TASK", "KnnConfig"]

_CANDIDATES = (1, 2, 5, 10, 20, 50, 100, 200)  # values of k; the largest four are those of DINO's eval_knn.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnnChoices(selections.Choices):
    """Values to choose from.

    Attributes:
        k: replaces the setting k. If it is empty, 1, 2, 5, 10, 20, 50, 100 and 200 are taken.
    """

    k: tuple[Count, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnnConfig(Checked):
    """Settings of the evaluation with k nearest neighbors.

    Attributes:
        data: the images.
        workers: processes that load images.
        device: "auto" takes a GPU if there is one.
        resize: length of the shorter side of an image in pixels; None does not resize.
        crop: side of the center crop in pixels; None does not crop.
        size: side of the test images in pixels. Sets `crop`, and `resize` in the ratio of 256 to 224 if it is set.
        k: number of neighbors.
        distance: "euclidean" or "cosine".
        weights: of the votes: "uniform", "inverse" (of the distance, if euclidean), or "softmax" (of the cosine).
        temperature: temperature of the weights "softmax".
        precision: precision of the backbone's forward pass, "fp32" or "bf16". Distances are always float32.
        selection: "last" takes k as it is. "val" chooses k on a part of the training images, then votes with all of
            them, and looks at the test images once. "best-on-test" chooses k on the test images.
        choose: with another `selection` than "last", the values to choose from, such as choose.k=[1,5,20]. The default
            is 1, 2, 5, 10, 20, 50, 100 and 200, without those that are larger than the number of images.
        val_share, val_seed: with "val", the share of the training images that choose, with the same share of every
            class, and the seed of their draw.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    workers: Workers = runtime_only(8)
    device: Device = runtime_only("auto")
    resize: Pixels | None = None
    crop: Pixels | None = None
    size: Pixels | None = shorthand(None)
    k: Count = 5
    distance: Annotated[str, Choice(tuple(WEIGHTS))] = "euclidean"
    weights: Annotated[str, Choice(("uniform", "inverse", "softmax"))] = "uniform"
    temperature: Positive = 0.07
    precision: precisions.Precision = precisions.DEFAULT
    selection: selections.Selection = every_value_published(selections.LAST)
    choose: KnnChoices = dataclasses.field(default_factory=KnnChoices)
    val_share: Part = 0.1
    val_seed: Seed = 0

    def unused(self) -> set[str]:
        """See `intl_bench.core.identity.identity`."""
        return (
            selections.unused(self)
            | precisions.unused(self.precision)
            | (set() if self.weights == "softmax" else {"temperature"})
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes.resolve(self)
        check(self.k, self.distance, self.weights, self.temperature)
        if self.selection != selections.LAST and not self.choose.k:
            object.__setattr__(self, "choose", KnnChoices(k=_CANDIDATES))
        selections.check(self)


def protocol(config: KnnConfig) -> dict[str, Any]:
    """Return the summary of the evaluation for a footnote. Its identity is that of `core.identity.identity`."""
    return {
        "protocol": "knn",
        "resize": config.resize,
        "crop": config.crop,
        "k": config.k if config.selection == selections.LAST else None,
        "distance": config.distance,
        "weights": config.weights,
        "temperature": config.temperature if config.weights == "softmax" else None,
        "normalization": describe_normalization(config.data),
        "precision": precisions.stated(config.precision),
        **selections.describe(config, epochs=False),
    }


def run(checkpoint: Checkpoint, config: KnnConfig, seed: int, *, folder: Path) -> Outcome:
    """Score a checkpoint. The metric `knn5` (for k = 5) is the percentage of test images that are classified correctly.

    If k is chosen, the metric is `knn`, and with "val" the best score of the part that chose is `val_knn`. The result
    has no randomness, so `seed` is not used. The features are cached, so `folder` is not used either.

    Raises:
        InputError: there are fewer training images than k, or see `features.extract`.
    """
    with distributed.start(config.device) as process:
        train, test = extract_both(checkpoint, config, process)
        vote = {name: getattr(config, name) for name in ("distance", "weights", "temperature")}

        def correct(train: Features, test: Features, ks: Sequence[int]) -> list[int]:
            predictions = predict(*train, test.features, ks, device=process.device, **vote)
            return [int((predicted == test.labels).sum()) for predicted in predictions]

        counts = {"train_images": len(train.labels), "test_images": len(test.labels)}
        tried = values_of_k(config, train.labels.numpy())
        if config.selection == selections.LAST:
            (right,) = correct(train, test, tried)
            return Outcome(metrics={f"knn{config.k}": _percent(right, test)}, details={**counts, "correct": right})
        fitted, scored = train, test
        if config.selection == selections.VAL:
            held = torch.from_numpy(selections.validation_part(train.labels.numpy(), config))
            fitted, scored = (Features(*(tensor[which] for tensor in train)) for which in (~held, held))
        found = correct(fitted, scored, tried)
        best = max(found)
        k = tried[found.index(best)]
        candidates = [{"k": k, "knn": _percent(n, scored)} for k, n in zip(tried, found, strict=True)]
        details: dict[str, Any] = {**counts, "chosen": {"k": k}, "candidates": candidates}
        if config.selection == selections.TEST:
            return Outcome(metrics={"knn": _percent(best, test)}, details={**details, "correct": best})
        (right,) = correct(train, test, [k])
    metrics = {"knn": _percent(right, test), "val_knn": _percent(best, scored)}
    return Outcome(metrics=metrics, details={**details, "correct": right, "val_images": len(scored.labels)})


def open_images(config: KnnConfig) -> Images:
    """Open the training and the test images; see `transfer.task.Task.images`."""
    train, test = open_both(config)
    values_of_k(config, train.labels)
    return train, test


def values_of_k(config: KnnConfig, labels: np.ndarray) -> list[int]:
    """Return the values of k that are tried. Of the default values those are left out that are too large.

    Args:
        labels: of all training images, (n,) int64.

    Raises:
        InputError: another value is larger than the number of images that vote.
    """
    chosen = config.selection != selections.LAST
    images, values = selections.fitted_images(config, labels), config.choose.k if chosen else (config.k,)
    if chosen and values == _CANDIDATES:
        values = tuple(k for k in values if k <= images)
    if max(values) > images:
        setting = f"choose.k={list(values)}" if chosen else f"k={config.k}"
        held = len(labels) - images
        rest = f", {held} held out (val_share={config.val_share:g})" if held else ""
        raise InputError(
            f"{setting}: there are only {images} training images{rest}; expected at most {images}; lower k"
        )
    return list(values)


def _percent(correct: int, images: Features) -> float:
    return 100 * correct / len(images.labels)


TASK = Task(
    config=KnnConfig,
    run=run,
    protocol=protocol,
    images=open_images,
    from_checkpoint=from_checkpoint,
    seeded=False,
)
