"""Scores of the backbone while it trains: k-NN and a linear probe on a fixed labeled subset, and effective ranks.

The scores are functions of the weights alone, in eval mode and without gradients, so they need no state and change no
weight. They are lower than those of `intl-bench knn` and `intl-bench linear`, which use all images. The first process
computes them while the others wait.
"""

import contextlib
import dataclasses
import functools
import math
import typing
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from intl_bench.core.errors import InputError
from intl_bench.core.ranges import Checked, Natural
from intl_bench.core.seeding import permutation
from intl_bench.core.transcript import note
from pretrain import spectrum
from pretrain.images.data import ArraySource, BadImageError, FileSource, open_source
from pretrain.images.loader import evaluation_batches
from pretrain.images.views import normalize
from pretrain.precision import at_least_float32

if typing.TYPE_CHECKING:
    from pretrain.train import Training

# Share of the forward and backward passes of a run that scoring may repeat; the fits and the decoding come on top.
SHARE = 0.01
MOST_TIMES = 20
FEWEST_IMAGES, MOST_IMAGES = 768, 3072  # of a scoring; a third of them is for the test
SPECTRUM_IMAGES = 256
NEIGHBORS = 5
RIDGE = 0.03  # penalty of the linear probe, relative to the number of images
_BATCH = 128
_CLASS_IMAGES = 16  # with fewer training images of each class, fewer classes are used
_PASSES = 3  # a training step in forward passes: one forward, and a backward that costs two


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonitorConfig(Checked):
    """Settings of the scores during pre-training.

    Attributes:
        every: epochs between two scorings; 0 scores never. None chooses: at most 20 times in a run, and so seldom that
            scoring takes about 1% of the time. The end of a run is scored too.
    """

    every: Natural | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How often a run is scored.

    Attributes:
        every: epochs between two scorings; 0 for never.
        images: largest number of images of a scoring.
    """

    every: int
    images: int


def plan(every: int | None, *, epochs: int, images: float) -> Plan:
    """Plan the scorings of a run.

    Args:
        every: see `MonitorConfig`.
        epochs: of the run.
        images: number of forward passes of one process in an epoch, counted in images of the size that is scored.
    """
    budget = SHARE * _PASSES * images * epochs
    times = min(MOST_TIMES, epochs, int(budget / FEWEST_IMAGES)) if every is None else epochs / every if every else 0
    if times == 0:
        return Plan(every=0, images=0)
    number = min(MOST_IMAGES, max(FEWEST_IMAGES, int(budget / times)))
    return Plan(every=math.ceil(epochs / times) if every is None else every, images=number)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Subset:
    """Images for the fit, then images for the test."""

    pixels: torch.Tensor  # (n, 3, S, S) uint8
    labels: torch.Tensor  # (n,) int64, from 0 to classes - 1
    train: int
    classes: int
    held_out: bool  # whether the test images are training images of the run


class Monitor:
    """The scores of a run. A failure ends them with one warning, and the run goes on.

    Args:
        source: the training images.
    """

    def __init__(self, training: "Training", source: ArraySource | FileSource) -> None:
        recipe = training.recipe
        self.training, self.source = training, source
        self.size = max(view.size for view in recipe.views)
        passes = sum((view.size / self.size) ** 2 for view in recipe.views)
        images = training.steps_per_epoch * recipe.batch_size * passes / training.process.world_size
        self.plan = plan(recipe.monitor.every, epochs=training.epochs, images=images)
        self._too_short = recipe.monitor.every is None and not self.plan.every
        self._subset: _Subset | None = None
        self.latest: dict[str, float] = {}
        self.largest_rank = 0  # that the spectrum of the embedding could have

    def due(self, step: int) -> bool:
        """Return whether the weights after `step` are scored."""
        every = self.plan.every * self.training.steps_per_epoch
        return bool(every) and (step % every == 0 or step == self.training.total_steps)

    def score(self) -> dict[str, float]:
        """Return the scores of the present weights.

        Returns:
            `monitor/knn` and `monitor/linear` in percent; `monitor/rank`, the RankMe of the features; and
            `monitor/embedding/...`, the spectrum of the embedding in eval mode. Nothing after a failure.
        """
        try:
            if self._subset is None:
                self._subset = _open(self.training, self.source, self.size, self.plan.images)
                note(f"monitor: {self.about()}")
            self.latest = self._score(self._subset)
        except Exception as error:  # a by-product
            reason = " ".join(str(error).split()) or type(error).__name__
            note(f"warning: no more scores during this run: {reason}")
            self.plan, self.latest, self._subset = Plan(every=0, images=0), {}, None
        return self.latest

    def about(self) -> str:
        """Return the images and the times of the scores or why there are none, as a text; empty before the first."""
        if self._too_short:
            return "no scores, because the run is too short for them; monitor.every=1 scores each epoch"
        if self._subset is None:
            return ""
        one = self._subset
        of = "held-out" if one.held_out else "test"
        every = "epoch" if self.plan.every == 1 else f"{self.plan.every} epochs"
        images = f"{one.train} training and {len(one.labels) - one.train} {of} images"
        return f"{images} of {one.classes} classes, every {every}"

    @torch.inference_mode()
    def _score(self, subset: _Subset) -> dict[str, float]:
        method, first = self.training.method, subset.train
        with evaluating(method), self._plain_networks():
            features = torch.cat([self._features(part) for part in subset.pixels.split(_BATCH)])
            some = features[first : first + SPECTRUM_IMAGES]
            embedding = method.projector(some).float().cpu()
        features = features.cpu()
        train, test = features[:first].double(), features[first:].double()
        known, right = subset.labels[:first], subset.labels[first:]
        guesses = {"knn": nearest(train, known, test), "linear": linear_probe(train, known, test, subset.classes)}
        found = {f"monitor/{name}": 100 * float((guess == right).double().mean()) for name, guess in guesses.items()}
        found["monitor/rank"] = spectrum.compute_spectrum(some.cpu()).numbers()["rank"]
        numbers, self.largest_rank = spectrum.compute_spectrum(embedding).numbers(), min(embedding.shape)
        return found | {f"monitor/embedding/{name}": numbers[name] for name in ("rank", "largest", "std")}

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features of images (m, 3, S, S) uint8 as (m, F) float32."""
        training = self.training
        device = training.process.device
        images = normalize(pixels.to(device).float().div_(255), *training.normalization)
        if training.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=training.autocast, enabled=training.autocast is not None):
            return at_least_float32(training.method.backbone(images))

    def _plain_networks(self) -> contextlib.AbstractContextManager[object]:
        """Return a block without compiled networks, which would be compiled again for eval mode."""
        if not self.training.recipe.compile:
            return contextlib.nullcontext()
        return torch.compiler.set_stance("force_eager")


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode within the block, and each of its parts back into its own mode at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def nearest(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """Predict labels by a vote of the nearest neighbors, as in the paper: Euclidean, and the lowest label wins a tie.

    Args:
        train: (n, F).
        labels: (n,) int64.
        test: (m, F).

    Returns:
        (m,) int64.
    """
    # |x - y|^2 without |x|^2, which is the same for all y.
    scores = torch.addmm(train.square().sum(1), test, train.T, alpha=-2)
    voters = labels[scores.topk(min(NEIGHBORS, len(train)), largest=False).indices]
    votes = torch.zeros((len(test), int(labels.max()) + 1), dtype=torch.int64)
    return votes.scatter_add_(1, voters, torch.ones_like(voters)).argmax(1)


def linear_probe(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, classes: int) -> torch.Tensor:
    """Predict labels by a linear classifier of standardized features, fitted by penalized least squares.

    The fit has one solution and no learning rate, so the score depends on the features only.

    Args:
        train: (n, F) float64.
        labels: (n,) int64.
        test: (m, F) float64.

    Returns:
        (m,) int64.
    """
    mean, std = train.mean(0), train.std(0)
    std = std.clamp_min(1e-6 * float(std.max()) + 1e-30)
    x, y = (train - mean) / std, nn.functional.one_hot(labels, classes).double()
    offset = y.mean(0)
    n, width = x.shape
    penalty = RIDGE * n * torch.eye(min(n, width), dtype=x.dtype)
    # Both forms have the same solution; the smaller system is solved.
    weights = (
        torch.linalg.solve(x.T @ x + penalty, x.T @ (y - offset))
        if width <= n
        else x.T @ torch.linalg.solve(x @ x.T + penalty, y - offset)
    )
    return ((test - mean) / std @ weights + offset).argmax(1)


def _open(training: "Training", source: ArraySource | FileSource, size: int, images: int) -> _Subset:
    """Choose and decode the images of the scores: two thirds for the fit, one third for the test.

    Without test images, training images are held out from the fit.

    Raises:
        InputError: there are fewer than two classes, or an image cannot be read.
    """
    try:
        test: ArraySource | FileSource | None = open_source(training.recipe.data, "test")
    except InputError:
        test = None
    fit = 2 * images // 3
    classes = _classes(source.labels, fit)
    if len(classes) < 2:
        raise InputError(f"the training images have {len(classes)} class; expected two or more")
    readable = functools.partial(_readable, classes=classes, size=size, workers=training.recipe.workers)
    if test is None:
        pixels, labels = readable(source, images)
        fit = min(fit, 2 * len(labels) // 3)
    else:
        parts = readable(source, fit), readable(test, images - fit)
        fit = len(parts[0][1])
        pixels, labels = (torch.cat(both) for both in zip(*parts, strict=True))
    return _Subset(
        pixels=pixels,
        labels=labels,
        train=fit,
        classes=len(classes),
        held_out=test is None,
    )


def _classes(labels: np.ndarray, images: int) -> np.ndarray:
    """Return the labels that are scored, sorted: all, or some if each would have few images."""
    found = np.unique(labels)
    most = max(2, images // _CLASS_IMAGES)
    return found if len(found) <= most else np.sort(found[permutation(0, "monitor classes", 0, len(found))[:most]])


def stratified(
    labels: np.ndarray, classes: Sequence[int] | np.ndarray, without: Sequence[int] | np.ndarray = ()
) -> np.ndarray:
    """Return the indices of the images of some classes in an order in which the classes take turns.

    The order is the same for all seeds of a run, so that their scores can be compared.

    Args:
        without: indices of images that are left out; the next image of the class takes the place of each.
    """
    order = permutation(0, "monitor", 0, len(labels))
    order = order[np.isin(labels[order], classes) & ~np.isin(order, without)]
    by_class = np.argsort(labels[order], kind="stable")
    _, starts, counts = np.unique(labels[order][by_class], return_index=True, return_counts=True)
    turns = np.empty(len(order), np.int64)
    turns[by_class] = np.arange(len(order)) - np.repeat(starts, counts)
    return order[np.argsort(turns, kind="stable")]


def _readable(
    source: ArraySource | FileSource, count: int, *, classes: np.ndarray, size: int, workers: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode the first `count` images of `stratified`; with data.on_bad_image=skip, without those that are damaged.

    Returns:
        The images as (n, 3, size, size) uint8, and their places in `classes`, (n,) int64.
    """
    bad = list[int]()
    while True:
        indices = stratified(source.labels, classes, bad)[:count]
        if not len(indices):
            raise InputError(f"{source.file(0)}: no image of the scored classes can be decoded")
        try:
            pixels = _pixels(source.choose(indices), size, workers)
        except BadImageError:
            if not source.skip_bad:
                raise
            bad += [index for index in indices.tolist() if _is_bad(source, index)]
        else:
            return pixels, torch.from_numpy(np.searchsorted(classes, source.labels[indices]))


def _is_bad(source: ArraySource | FileSource, index: int) -> bool:
    try:
        source.image(index)
    except BadImageError:
        return True
    return False


def _pixels(source: ArraySource | FileSource, size: int, workers: int) -> torch.Tensor:
    """Return all images of a source as (n, 3, size, size) uint8; 7/8 of the shorter side is kept."""
    is_array = isinstance(source, ArraySource)
    whole = isinstance(source, ArraySource) and source.images.shape[1:3] == (size, size)
    batches = evaluation_batches(
        source,
        resize=None if whole else round(size * 8 / 7),
        crop=None if whole else size,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        batch_size=_BATCH,
        workers=0 if is_array else workers,
    )
    return torch.cat([images.mul_(255).round_().to(torch.uint8) for images, _ in batches])
