"""A classifier trained by SGD whose epoch and settings are chosen; see `transfer.selection`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.checkpoint import Checkpoint
from pretrain.images.data import ArraySource, FileSource
from transfer.selection import LAST, History, train_selected
from transfer.sgd_classifier import Settings, counts, fit, train_classifier
from transfer.task import Outcome


def score_by_sgd(
    checkpoint: Checkpoint,
    config: Any,
    sources: tuple[ArraySource | FileSource, ArraySource | FileSource],
    settings: Settings,
    names: Mapping[str, str],
    folder: Path,
) -> Outcome:
    """Train a classifier by SGD and score it as the `selection` of a configuration says.

    Args:
        config: the configuration, also with `device`, `workers` and `deterministic`.
        sources: the training and the test images.
        names: the field of `Settings` for each name of a setting that can be chosen.
        folder: for the states; the same call resumes from it.

    Raises:
        InputError, DivergedError, Preempted: see `sgd_classifier.fit`.
    """
    train, test = sources
    options = {"device": config.device, "workers": config.workers, "deterministic": config.deterministic}
    if config.selection == LAST:
        return train_classifier(checkpoint, train, test, settings, folder=folder, **options)
    bad_images = 0

    def train_one(values: Mapping[str, Any], part: np.ndarray | None, stop_epoch: int | None, name: str) -> History:
        nonlocal bad_images
        changed = dataclasses.replace(settings, stop_epoch=stop_epoch, **{names[key]: v for key, v in values.items()})
        fitted, scored = train, test
        if part is not None:
            fitted, scored = (train.choose(np.flatnonzero(which)) for which in (part, ~part))
        path = folder / f"state{name and '_'}{name}.pt"
        history, bad_images = fit(checkpoint, fitted, scored, changed, path=path, **options)
        return history

    metrics, details = train_selected(config, train.labels, train_one)
    return Outcome(metrics=metrics, details={**details, **counts(train, test, bad_images)})
