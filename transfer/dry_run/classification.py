"""The work of the tasks that classify: k nearest neighbors, linear evaluation, fine-tuning on a share of the labels."""

import math
from typing import Any

import torch
from torch.nn import functional

from intl_bench.core.datasets import DATASETS
from intl_bench.core.errors import BenchError
from pretrain.checkpoint import Checkpoint
from pretrain.dry_run.machine import Machine, Preparation, time_batches, time_views
from pretrain.images.data import ImageSource, normalization
from pretrain.images.loader import evaluation_batches, steps_per_epoch
from pretrain.images.views import ViewConfig
from transfer import features, find_task
from transfer.dry_run.work import Phase, Work, added, bytes_of, count, empty_backbone, one_operation
from transfer.finetune import are_drawn
from transfer.selection import trainings
from transfer.sgd_classifier import Classifier

_BATCH = 256  # of a test
_BATCHES, _SAMPLE = 3, 8  # batches that are timed, and at most this many images of each
_USUAL_SIDE = 224
_STEPS = 12  # of a fit of `transfer.logistic`, on average of a path (benchmarks/logistic.py)
_EIGEN = 20  # times the cube of the side: operations of a float64 eigendecomposition, in float32 operations


def knn(checkpoint: Checkpoint, config: Any, here: Machine) -> Work:
    """Return the work of `intl-bench knn`.

    Raises:
        InputError: there are fewer training images than k, or an image cannot be read.
    """
    split = _Split("knn", config)
    n, m, width = split.train, split.test, empty_backbone(checkpoint).num_features
    vote = one_operation(flops=2 * n * m * width, bytes=12 * n * m)
    phases = (*_feature_phases(checkpoint, config, split, here), Phase(name="neighbors", steps=1, cost=vote))
    return split.work(config, here, phases=phases, results=4 * width * (n + m))


def linear(checkpoint: Checkpoint, config: Any, here: Machine) -> Work:
    """Return the work of `intl-bench linear`.

    Raises:
        InputError: the batch is larger than the data set, or an image cannot be read.
    """
    split = _Split("linear", config)
    if config.augment:
        return _classifier(checkpoint, config, split, here, frozen=True)
    n, m, width, classes = split.train, split.test, empty_backbone(checkpoint).num_features, split.classes
    batch = min(config.batch_size, max(1, n))
    steps = n // batch
    product = one_operation(flops=2 * batch * width * classes, bytes=4 * (batch + classes) * width, count=2)
    # The rows of a batch are gathered. Then follow ten small operations, of Adam and of the softmax.
    rest = one_operation(bytes=8 * batch * width), one_operation(bytes=16 * (batch + width) * classes, count=10)
    test = one_operation(flops=2 * m * width * classes, bytes=4 * m * (width + classes))
    phases = (
        *_feature_phases(checkpoint, config, split, here),
        Phase(name="classifier", steps=trainings(config) * config.epochs * steps, cost=added(product, *rest)),
        Phase(name="tests", steps=trainings(config) * config.epochs, cost=test),
    )
    words = _steps(batch, n, steps, config.epochs, drop_last=True) if n else ""
    return split.work(config, here, phases=phases, batch=words, results=4 * width * (n + m))


def transfer(checkpoint: Checkpoint, config: Any, here: Machine) -> Work:
    """Return the work of `intl-bench transfer`.

    Raises:
        InputError: an image cannot be read, or the classes are too few for the few-shot episodes.
    """
    split = _Split("transfer", config)
    n, m, width, classes = split.train, split.test, empty_backbone(checkpoint).num_features, split.classes
    side = min(n, width)
    axes = one_operation(flops=4 * n * width * side + _EIGEN * side**3, bytes=12 * n * width)
    step = one_operation(flops=2 * n * side * classes, bytes=4 * n * (side + 4 * classes), count=2)
    phases = (
        *_feature_phases(checkpoint, config, split, here),
        Phase(name="principal axes", steps=2, cost=axes),
        Phase(name="weight decays", steps=_STEPS * (config.decays + 1), cost=step),
    )
    return split.work(config, here, phases=phases, results=4 * width * (n + m))


def finetune(checkpoint: Checkpoint, config: Any, here: Machine) -> Work:
    """Return the work of `intl-bench finetune`.

    Raises:
        InputError: the batch is larger than the list, or an image cannot be read.
    """
    return _classifier(checkpoint, config, _Split("finetune", config), here, frozen=False)


class _Split:
    """The images of a configuration, or their published numbers if they cannot be opened.

    Attributes:
        source: the training images; None if they cannot be opened.
        train, test, classes: their numbers; 0 if they are not known.
    """

    def __init__(self, task: str, config: Any) -> None:
        data, percent = config.data, config.train_percent if task == "finetune" else None
        where = f" in {data.root}" if data.root else ""
        self.source: ImageSource | None = None
        self.tested: ImageSource | None = None
        try:
            self.source, self.tested = train, tested = find_task(task).images(config)
            counted = "drawn (label_seed=)" if percent is not None and are_drawn(config) else "counted"
            self.train, self.test, self.classes = len(train), len(tested), len(train.class_names)
        except BenchError as error:
            if not data.is_absent:
                raise
            facts = DATASETS.get(data.dataset)
            counted = f"NOT OPENED: {' '.join(str(error).split())}"
            self.train, self.test, self.classes = 0, 0, 1
            if facts is not None:
                self.train, self.test = data.published_numbers(facts)
                self.classes = facts.classes
                if percent is not None:
                    self.train = facts.listed.get(percent, 0)
                counted = f"as published; {counted}"
        share = "" if percent is None else f" ({percent}% of the labels)"
        numbers = f"{self.train:,} training images{share} and {self.test:,} test images of {self.classes} classes, "
        self.words = f"{data.dataset} ({data.kind}{where}): {numbers if self.train else ''}{counted}"

    def side(self, config: Any) -> int:
        """Return the side of the square images that the network gets."""
        if config.crop or config.resize:
            return int(config.crop or config.resize)
        if self.tested is not None:
            return math.isqrt(math.prod(self.tested.image(0).shape[:2]))
        facts = DATASETS.get(config.data.dataset)
        return (facts.side if facts else None) or _USUAL_SIDE

    def work(self, config: Any, here: Machine, *, phases: tuple[Phase, ...], **more: Any) -> Work:
        """Return the work, with the time to prepare an image."""
        return Work(
            data=self.words,
            phases=phases if self.train else (),
            preparation=self.preparation(config, here),
            workers=config.workers,
            **more,
        )

    def preparation(self, config: Any, here: Machine) -> Preparation | None:
        """Measure the preparation of an image: of a random crop if the task trains on them, else of a test image."""
        if self.source is None or self.tested is None:
            return None
        if getattr(config, "augment", True) and hasattr(config, "epochs"):
            view = ViewConfig(size=config.crop, interpolation="bilinear", jitter_p=0.0, grayscale_p=0.0)
            return time_views(self.source, [view], on_gpu=here.on_gpu)
        mean, std = normalization(config.data)
        size = min(_SAMPLE, len(self.tested) // _BATCHES)
        if size == 0:
            return None
        batches = evaluation_batches(
            self.tested,
            resize=config.resize,
            crop=config.crop,
            mean=mean,
            std=std,
            batch_size=size,
            last=_BATCHES * size,
        )
        return time_batches(batches, size)


def _feature_phases(checkpoint: Checkpoint, config: Any, split: _Split, here: Machine) -> list[Phase]:
    """Return the computation of the features of both splits, without those that are in the cache."""
    device = "cuda" if here.on_gpu else "cpu"
    n = 0
    for source, images in ((split.source, split.train), (split.tested, split.test)):
        n += 0 if source is not None and features.is_cached(checkpoint, source, config, device) else images
    if n == 0:
        return []
    model, side = empty_backbone(checkpoint).eval(), split.side(config)
    batch = min(_BATCH, n)
    cost = count(model, lambda: model(torch.empty(batch, 3, side, side)), gradients=False)
    return [
        Phase(name="features", steps=math.ceil(n / batch), cost=cost, images=n, weights=bytes_of(model), shared=True)
    ]


def _classifier(checkpoint: Checkpoint, config: Any, split: _Split, here: Machine, *, frozen: bool) -> Work:
    """Return the work of a classifier that is trained on random crops and tested after every epoch."""
    n, m = split.train, split.test
    if n == 0:
        return split.work(config, here, phases=())
    steps = steps_per_epoch(n, config.batch_size, drop_last=config.drop_last)
    classifier = Classifier(empty_backbone(checkpoint), split.classes, frozen=frozen, seed=0)
    classifier.train()
    side, batch = config.crop, min(config.batch_size, n)
    weights, trained = bytes_of(classifier), bytes_of(classifier, trained=True)

    def train() -> torch.Tensor:
        images = torch.empty(batch, 3, side, side)
        return functional.cross_entropy(classifier(images), torch.empty(batch, dtype=torch.int64))

    step = count(classifier, train, gradients=True)
    classifier.eval()
    tested = min(_BATCH, m)
    test = count(classifier, lambda: classifier(torch.empty(tested, 3, side, side)), gradients=False)
    epochs = trainings(config) * config.epochs
    tests = epochs * math.ceil(m / tested)
    images = min(n, steps * batch)
    phases = (
        Phase(
            name="training",
            steps=epochs * steps,
            cost=step,
            images=epochs * images,
            weights=weights,
            trained=trained,
        ),
        Phase(name="tests", steps=tests, cost=test, images=epochs * m, weights=weights),
    )
    words = _steps(batch, n, steps, config.epochs, drop_last=config.drop_last)
    return split.work(config, here, phases=phases, batch=words, state=2 * trained * trainings(config))


def _steps(batch: int, images: int, steps: int, epochs: int, *, drop_last: bool) -> str:
    rest = images - steps * batch if drop_last else 0
    left = f"; each epoch leaves out {rest:,}" if rest > 0 else ""
    return f"{batch:,} of {images:,} images{left}; {epochs * steps:,} steps = {steps:,} x {epochs:,} epochs"
