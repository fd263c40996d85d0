"""What a scoring task is: the one object that the command line, `intl_bench.runs` and the ablations read."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pretrain.checkpoint import Checkpoint
from pretrain.images.data import ArraySource, FileSource, open_source
from transfer import selection

Images = tuple[ArraySource | FileSource, ArraySource | FileSource]  # of training, of test
C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a task returns for one seed.

    Attributes:
        metrics: scores from 0 to 100 by their names in tables, such as `top1` or `bbox/AP`.
        details: other facts for the record, such as counts and the best epoch. `train_images` and `test_images` are
            required: the scale of a result depends on them.
        image_list: content of a text file to keep beside the record: the training images that were drawn. None if none
            were drawn.
    """

    metrics: dict[str, float]
    details: dict[str, Any]
    image_list: bytes | None = None


class Run(Protocol[C_contra]):
    """A function that scores one checkpoint with one seed. It saves the state of an unfinished run in `folder`."""

    def __call__(self, checkpoint: Checkpoint, config: C_contra, seed: int, *, folder: Path) -> Outcome: ...


def open_both(config: Any, *, multi_label: bool = False) -> Images:
    """Open the training and the test images of `config.data`; see `pretrain.images.data.open_source`."""
    train, test = (open_source(config.data, split, multi_label=multi_label) for split in ("train", "test"))
    return train, test


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(Generic[C]):
    """A way to score a backbone. The module `transfer.NAME` holds the object `TASK`.

    Attributes:
        config: the dataclass of the settings; it has a field `data`.
        run: scores a checkpoint.
        protocol: describes a configuration in words for a table's footnote. A value of None is left out.
        from_checkpoint: returns the settings that a checkpoint determines, as sections of the configuration.
        seeded: whether a result depends on the seed.
        default: name of the configuration file that is used without `--config`. None chooses the file by data set, and
            takes the data set from the checkpoint's own pre-training.
        processes_matter: whether a result depends on the number of processes.
        finds_kind: whether `data.root` without `data.kind` decides the kind of the data by what is there.
        resolve: replaces settings whose value depends on what is installed.
        images: opens the training and the test images of a configuration. It raises `InputError` where a setting does
            not fit them, such as a part that leaves a class without images. It computes nothing.
        digests: (configuration, these images) -> their fingerprints by split.
        draw: (configuration, folder of a finished run, file) -> whether it could draw the worst images, from what the
            folder keeps, to the file. None if the task has no pictures.
        read_detector: reads a trained detector for `evaluate`; None if the task trains no detector.
        evaluate: (detector, configuration, folder) -> the outcome of the detector without a training.
    """

    config: type[C]
    run: Run[C]
    protocol: Callable[[C], Mapping[str, Any]]
    from_checkpoint: Callable[[Checkpoint], dict[str, Any]]
    seeded: bool = True
    default: str | None = None
    processes_matter: bool = False
    finds_kind: bool = False
    resolve: Callable[[C], C] = lambda config: config
    images: Callable[[C], tuple[Any, Any]] = open_both
    digests: Callable[[C, Any, Any], dict[str, str]] = selection.fingerprints
    draw: Callable[[C, Path, Path], bool] | None = None
    read_detector: Callable[[Path], Any] | None = None
    evaluate: Callable[[Any, C, Path], Outcome] | None = None

    def fingerprints(self, config: C) -> dict[str, str]:
        """Return the fingerprints of the images of a configuration, by split; raise the errors of `images`."""
        return self.digests(config, *self.images(config))
