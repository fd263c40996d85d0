"""Semi-supervised evaluation: backbone and classifier are fine-tuned with 1% or 10% of the labels.

For ImageNet they are those of SimCLR's lists. For other data sets they are drawn, if there is no list.
"""

import collections
import dataclasses
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from intl_bench.core import distributed, inputs
from intl_bench.core.datasets import DATASETS
from intl_bench.core.errors import InputError
from intl_bench.core.identity import by_content, every_value_published, runtime_only, shorthand
from intl_bench.core.ranges import Checked, Count, Device, NonNegative, Part, Pixels, Positive, Seed, Workers
from pretrain.checkpoint import Checkpoint
from pretrain.images.data import ArraySource, DataConfig, FileSource, normalization
from pretrain.images.loader import steps_per_epoch
from pretrain.images.names import explain_line, fold, read_lines, require_one
from transfer import labels, sizes
from transfer import precision as precisions
from transfer import selection as selections
from transfer.features import from_checkpoint
from transfer.scores import describe_normalization
from transfer.sgd_classifier import Settings, without_last_batch
from transfer.sgd_selection import score_by_sgd
from transfer.task import Images, Outcome, Task, open_both

__all__ = ["TASK", "FinetuneConfig", "find_list", "listed_images"]

_OTHER_SPLITS = ("val", "valid", "validation", "test")
_ORIGIN = (
    "SimCLR's lists are imagenet_subsets/1percent.txt and 10percent.txt of github.com/google-research/simclr, "
    "one file name such as n04235860_14959.JPEG a line"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneChoices(selections.Choices):
    """Values to choose from.

    Attributes:
        head_lr, backbone_lr, weight_decay: each replaces the setting of its name.
    """

    head_lr: tuple[Positive, ...] = ()
    backbone_lr: tuple[Positive, ...] = ()
    weight_decay: tuple[NonNegative, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Checked):
    """Settings of the authors' evaluate.py with `--weights finetune`. Learning rates stay constant.

    Attributes:
        data: the images, an image folder.
        workers: processes that load images.
        device: "auto" takes a GPU if there is one.
        train_percent: 1 or 10, the percentage of the training images whose labels are used.
        file_list: path of a list of these images: one FILE or CLASS/FILE a line, or the number of an image where the
            images are no files. None looks for `1percent.txt` or `10percent.txt` in data.root and the folder above (of
            an imagefolder), and draws the images if there is none. ImageNet needs SimCLR's lists.
        label_seed: draw the images with this seed, with the same share of every class. None stands for 0 where no list
            is found. The images of 1% are a part of those of 10%.
        resize, crop: of the test images, in pixels. `crop` is also the size of the random training crops.
        size: side of the test images in pixels. Sets `crop`, and `resize` in the ratio of 256 to 224 if it is set.
        epochs: of the training.
        batch_size: images of a step.
        head_lr, backbone_lr: learning rates of the classifier and of the backbone, for a batch of 256 images.
        weight_decay: of all weights.
        precision: of the backbone, "fp32" or "bf16". The classifier and the loss are float32.
        drop_last: whether an epoch leaves out the images that do not fill its last batch. The authors' code keeps them:
            51 steps for the 12,811 images of 1%.
        selection: "last" scores the last epoch. "val" chooses the epoch on a part of the labeled images, trains again
            on all of them up to that epoch, and looks at the test images once. "best-on-test" chooses the epoch on the
            test images, as the paper did.
        choose: with another `selection` than "last", lists of values to choose from too, such as
            choose.head_lr=[0.1,0.3,1].
        val_share, val_seed: with "val", the share of the labeled images that choose, with the same share of every
            class, and the seed of their draw.
        deterministic: a GPU computes the same weights bit for bit, at some cost in time.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    workers: Workers = runtime_only(8)
    device: Device = runtime_only("auto")
    deterministic: bool = runtime_only(False)
    train_percent: Count = every_value_published(1)
    file_list: str | None = by_content(None)
    label_seed: Seed | None = by_content(None)
    resize: Pixels | None = 256
    crop: Pixels = 224
    size: Pixels | None = shorthand(None)
    epochs: Count = 20
    batch_size: Count = 256
    head_lr: Positive = 0.2
    backbone_lr: Positive = 0.004
    weight_decay: NonNegative = 0.0
    precision: precisions.Precision = precisions.DEFAULT
    drop_last: bool = True
    selection: selections.Selection = every_value_published(selections.LAST)
    choose: FinetuneChoices = dataclasses.field(default_factory=FinetuneChoices)
    val_share: Part = 0.2
    val_seed: Seed = 0

    def unused(self) -> set[str]:
        """See `intl_bench.core.identity.identity`."""
        return selections.unused(self) | precisions.unused(self.precision) | without_last_batch(self.drop_last)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes.resolve(self)
        selections.check(self)
        if self.train_percent not in (1, 10):
            raise ValueError(f"train_percent={self.train_percent}: expected 1 or 10")
        if self.file_list is not None and self.label_seed is not None:
            raise ValueError(
                f"label_seed={self.label_seed}: file_list={self.file_list} names the images; expected one of the two"
            )


def protocol(config: FinetuneConfig) -> dict[str, Any]:
    """Describe the evaluation in words, for a table's footnote."""
    return {
        "protocol": "fine-tuned on a share of the labels",
        "train_percent": config.train_percent,
        "labels": f"drawn with seed {config.label_seed or 0}" if are_drawn(config) else None,
        "selection": "last epoch",
        "optimizer": "SGD",
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "last_batch": None if config.drop_last else "kept",
        "head_lr": config.head_lr,
        "backbone_lr": config.backbone_lr,
        "weight_decay": config.weight_decay,
        "resize": config.resize,
        "crop": config.crop,
        "normalization": describe_normalization(config.data),
        "precision": precisions.stated(config.precision),
        **selections.describe(config),
    }


def run(checkpoint: Checkpoint, config: FinetuneConfig, seed: int, *, folder: Path) -> Outcome:
    """Score a checkpoint: `top1` and `top5` (with more than five classes) of the epoch that `selection` says.

    With "last" also `best_...` of the best epoch on the test images, with "val" also `val_...` of the part that chose.

    Args:
        seed: of the classifier's initial weights, the order and the crops.
        folder: for the state. The same call resumes from it.

    Raises:
        InputError: the list or a listed file is missing; also the errors of `sgd_classifier.fit`.
    """
    train, test, drawn = sources(config)
    if drawn and distributed.is_main_process():
        print(
            f"labels: {len(train)} training images, drawn with seed {config.label_seed or 0} (label_seed=)",
            file=sys.stderr,
        )
    mean, std = normalization(config.data)
    settings = Settings(
        seed=seed,
        epochs=config.epochs,
        batch_size=config.batch_size,
        head_lr=config.head_lr,
        backbone_lr=config.backbone_lr,
        weight_decay=config.weight_decay,
        milestones=(),
        resize=config.resize,
        crop=config.crop,
        mean=mean,
        std=std,
        precision=config.precision,
        drop_last=config.drop_last,
    )
    names = {name: name for name in ("head_lr", "backbone_lr", "weight_decay")}
    outcome = score_by_sgd(checkpoint, config, (train, test), settings, names, folder)
    return outcome if drawn is None else dataclasses.replace(outcome, image_list=drawn)


def open_images(config: FinetuneConfig) -> Images:
    """Open the chosen training images and the test images; see `transfer.task.Task.images`."""
    train, test, _ = sources(config)
    fitted = selections.fitted_images(config, train.labels)
    steps_per_epoch(fitted, config.batch_size, drop_last=config.drop_last)
    return train, test


def sources(config: FinetuneConfig) -> tuple[*Images, bytes | None]:
    """Return the chosen training images, the test images, and the list of the training images if they were drawn."""
    train, test = open_both(config)
    if are_drawn(config):
        chosen = labels.draw(train, config.train_percent, config.label_seed or 0)
        return train.choose(chosen), test, labels.write_list(train, chosen)
    path = find_list(config)
    if isinstance(train, ArraySource):
        return labels.numbered_images(train, path, config.train_percent), test, None
    return listed_images(train, path, config.train_percent), test, None


def are_drawn(config: FinetuneConfig) -> bool:
    """Return whether the training images are drawn, because it is asked for or because nothing else is there."""
    if config.label_seed is not None:
        return True
    published = config.data.dataset in DATASETS and DATASETS[config.data.dataset].listed
    return not (config.file_list or published or any(place.is_file() for place in _places(config)))


def _places(config: FinetuneConfig) -> list[Path]:
    """Return where the file list of a configuration can be."""
    if config.file_list:
        return [Path(os.path.expanduser(config.file_list))]
    root = Path(os.path.expanduser(config.data.root)).resolve()
    name = f"{config.train_percent}percent.txt"
    return [root / name, root.parent / name] if config.data.kind == "imagefolder" else []


def find_list(config: FinetuneConfig) -> Path:
    """Find the file list of a configuration.

    Raises:
        InputError: there is no list; the message states the places searched and the source of such lists.
    """
    places = _places(config)
    for place in places:
        if place.is_file():
            return place
    raise InputError(
        f"file list: not found at {' or '.join(map(str, places))}; set file_list=PATH, or label_seed=0 to draw the "
        f"images; {_ORIGIN}"
    )


def listed_images(source: FileSource, path: Path, percent: int) -> FileSource:
    """Return the images that the file list at `path` names, in its order.

    A line is CLASS/FILE or FILE. FILE is in the class folder that its part before "_" names, or in the only class
    folder that has it. Spaces, accents, backslashes and leading folders may differ from the disk.

    Raises:
        InputError: the list cannot be read, names a file twice, names a missing file or one that several class folders
            have, or is not `percent` of all.
    """
    lines, where = read_lines(path, "the file list"), f"file list {path}"
    found = _find(source, lines)
    if parts := [part for line in lines if line not in found for part in line.split()]:  # several names in a line
        found |= _find(source, parts)
    several = {
        line: line.split() for line in lines if line not in found and any(part in found for part in line.split())
    }
    names = [name for line in lines for name in several.get(line, [line])]
    if not 0.5 <= len(names) / (percent / 100 * len(source)) <= 2:
        raise InputError(f"{where}: {len(names)} names for {len(source)} images are not {percent}%; {_ORIGIN}")
    if missing := [name for name in names if name not in found]:
        line = next(line for line in lines if missing[0] in several.get(line, [line]))
        hint = explain_line(line, lambda name: bool(_find(source, [name])))
        remedy = "; use the data set that the list was made for, or write CLASS/FILE"
        raise InputError(
            f"{where}: {len(missing)} of its {len(names)} files are not in {source.place}, such as "
            f"{inputs.shorten(line if hint else missing[0])}{hint or remedy}"
        )
    for name in names:
        require_one([os.fsdecode(source.files[index]) for index in found[name]], name, where)
    indices = [found[name][0] for name in names]
    first: dict[int, str] = {}
    for name, index in zip(names, indices, strict=True):
        if index in first:
            other = "" if first[index] == name else f", the second time as {inputs.shorten(name)}"
            raise InputError(f"{where}: names {inputs.shorten(first[index])} more than once{other}; {_ORIGIN}")
        first[index] = name
    return source.choose(np.array(indices))


def _find(source: FileSource, names: Collection[str]) -> dict[str, list[int]]:
    """Return the indices of the images that each name can mean, for the names that have any."""
    files, found = source.files.tolist(), dict[str, list[int]]()
    wanted: dict[bytes, list[str]] = collections.defaultdict(list)
    for name in {*names}:
        for file in (name,) if "/" in name else (f"{name.split('_')[0]}/{name}",):
            wanted[os.fsencode(file)].append(name)
    for index, file in enumerate(files):
        for name in wanted.get(file, ()):
            found[name] = [index]
    by_last: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for name in {*names} - {*found}:
        folded = fold(name)
        by_last[folded.rpartition("/")[2]].append((name, folded))
    for index, file in enumerate(files if by_last else ()):
        path = fold(os.fsdecode(file))
        for name, folded in by_last.get(path.rpartition("/")[2], ()):
            if _can_mean(folded, path):
                found.setdefault(name, []).append(index)
    return found


def _can_mean(name: str, file: str) -> bool:
    """Tell whether a line of a list can mean a file of train/: without its first folders, or with other ones before."""
    if name.endswith(f"/{file}"):
        return name.removesuffix(f"/{file}").rpartition("/")[2] not in _OTHER_SPLITS
    return f"/{file}".endswith(f"/{name}")


TASK = Task(
    config=FinetuneConfig,
    run=run,
    protocol=protocol,
    images=open_images,
    from_checkpoint=from_checkpoint,
    processes_matter=True,  # each process has its own batch norm statistics, as in the authors' code
)
