"""How the epoch and the settings of a classifier are chosen: `selection` of linear evaluation, k-NN and fine-tuning.

"last" chooses nothing. "val" chooses on a fixed part of the training images, trains again on all of them with what was
chosen, and looks at the test images once. "best-on-test" chooses on the test images that are then reported, as the
authors do.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

import numpy as np

from intl_bench.core.errors import DivergedError
from intl_bench.core.ranges import Checked, Choice
from pretrain.images import sample
from pretrain.images.data import ArraySource, FileSource
from pretrain.images.fingerprint import fingerprint

LAST, VAL, TEST = "last", "val", "best-on-test"
Selection = Annotated[str, Choice((LAST, VAL, TEST))]
History = Sequence[dict[str, float]]  # the scores after each epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices(Checked):
    """Base class of a section `choose`: lists of values by the names of settings."""

    def unused(self) -> set[str]:
        """Return the settings without a list; see `intl_bench.core.identity.identity`."""
        return {name for name, values in vars(self).items() if not values}


class Train(Protocol):
    """A function that trains a classifier and returns its scores after each epoch.

    Args:
        values: the chosen settings by name; the configuration has the others.
        part: which training images are trained on, (n,) bool; the others are scored. None trains on all of them and
            scores the test images.
        stop_epoch: end after this epoch of the schedule and score once. None trains to the end and scores every epoch.
        name: of this training, for its state; empty for the one whose scores are reported.
    """

    def __call__(
        self, values: Mapping[str, Any], part: np.ndarray | None, stop_epoch: int | None, name: str
    ) -> History: ...


def unused(config: Any) -> set[str]:
    """Return the settings that have no effect, see `intl_bench.core.identity.identity`.

    Args:
        config: a configuration with `selection`, `choose`, `val_share` and `val_seed`.
    """
    if config.selection == LAST:
        return {"selection", "choose", "val_share", "val_seed"}
    chosen = {name for name, values in vars(config.choose).items() if values}
    return (
        chosen | (set() if chosen else {"choose"}) | (set() if config.selection == VAL else {"val_share", "val_seed"})
    )


def check(config: Any) -> None:
    """Refuse lists of values of which none would be chosen.

    Raises:
        ValueError: there is such a list, or one with a value twice.
    """
    for name, values in vars(config.choose).items():
        if values and config.selection == LAST:
            raise ValueError(f"choose.{name}={list(values)}: selection=last chooses nothing; add selection=val")
        if len(set(values)) < len(values):
            raise ValueError(f"choose.{name}={list(values)}: has a value twice; expected different values")


def describe(config: Any, *, epochs: bool = True) -> dict[str, Any]:
    """Return the protocol of a selection: nothing for "last"."""
    if config.selection == LAST:
        return {}
    lists = {name: values for name, values in vars(config.choose).items() if values}
    return {
        **dict.fromkeys(lists),
        "selection": ", ".join([*(["epoch"] if epochs else []), *lists]),
        "chosen_on": where(config),
        "chosen_from": "; ".join(f"{k} {' '.join(f'{x:g}' for x in v)}" for k, v in lists.items()) or None,
    }


def where(config: Any) -> str:
    """Return the images on which a configuration chooses, in words."""
    if config.selection == TEST:
        return "the test images"
    return f"{config.val_share:.4g} of the training images, seed {config.val_seed}"


def candidates(choose: Any) -> list[dict[str, Any]]:
    """Return all combinations of the values in a section `choose`; one without values if there are none."""
    lists = {name: values for name, values in vars(choose).items() if values}
    return [dict(zip(lists, combination, strict=True)) for combination in itertools.product(*lists.values())]


def trainings(config: Any) -> int:
    """Return the largest number of trainings that a selection needs."""
    return 1 if config.selection == LAST else len(candidates(config.choose)) + (config.selection == VAL)


def validation_part(labels: np.ndarray, config: Any) -> np.ndarray:
    """Return which training images choose, (n,) bool; see `sample.held_out`.

    It is that of `data.holdout` with the same share and seed.
    """
    return sample.held_out(labels, config.val_share, seed=config.val_seed, setting=f"val_share={config.val_share}")


def fitted_images(config: Any, labels: np.ndarray) -> int:
    """Return the number of training images with which a configuration chooses, without those on which it does.

    Args:
        labels: of all training images, (n,) int64.

    Raises:
        InputError: a class would have no images in one of the two parts.
    """
    return len(labels) - (int(validation_part(labels, config).sum()) if config.selection == VAL else 0)


def fingerprints(config: Any, train: ArraySource | FileSource, test: ArraySource | FileSource) -> dict[str, str]:
    """Return the fingerprints of the training and the test images, and of the part that chooses, if there is one."""
    found = {"train": fingerprint(train), "test": fingerprint(test)}
    if getattr(config, "selection", LAST) == VAL:  # not every task chooses
        found["val"] = fingerprint(train.choose(np.flatnonzero(validation_part(train.labels, config))))
    return found


def best(histories: Sequence[History | None], metric: str = "top1") -> tuple[int, int]:
    """Return the number of the history with the highest score and the position of that score; the first of equal ones.

    Args:
        histories: None for a training that diverged. At least one did not.
    """
    scores = [(h[e][metric], -n, -e) for n, h in enumerate(histories) if h is not None for e in range(len(h))]
    _, number, epoch = max(scores)
    return -number, -epoch


def train_selected(config: Any, labels: np.ndarray, train: Train) -> tuple[dict[str, float], dict[str, Any]]:
    """Choose the epoch and the settings of a classifier and score it.

    A combination that diverges is not chosen.

    Args:
        config: a configuration whose `selection` is not "last".
        labels: (n,) int64, of all training images.
        train: trains one classifier.

    Returns:
        the scores, with those of the validation part as `val_...`; and the details for the record.

    Raises:
        DivergedError: every combination diverged.
    """
    options = candidates(config.choose)
    held = validation_part(labels, config) if config.selection == VAL else None
    histories: list[History | None] = []
    for number, values in enumerate(options):
        try:
            histories.append(train(values, None if held is None else ~held, None, f"choice{number}"))
        except DivergedError as error:
            histories.append(None)
            if not any(h is not None for h in histories) and number == len(options) - 1:
                raise DivergedError(f"every combination of settings diverged, the last one: {error}") from error
    number, position = best(histories)
    found = histories[number]
    assert found is not None
    details = {"best_epoch": position + 1, "chosen": {"epoch": position + 1, **options[number]}}
    if len(options) > 1:
        tops = [None if h is None else max(row["top1"] for row in h) for h in histories]
        details["candidates"] = [{**values, "top1": top} for values, top in zip(options, tops, strict=True)]
    if held is None:
        return dict(found[position]), details
    scores = dict(train(options[number], None, position + 1, "")[-1])
    chosen = {f"val_{name}": value for name, value in found[position].items()}
    return scores | chosen, details | {"val_images": int(held.sum())}
