"""Everything that is wrong with a detection data set, and what its user should know: `intl-bench data check`."""

import contextlib
import json
import os
import shlex
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from intl_bench.core.errors import InputError
from intl_bench.core.inputs import shorten
from pretrain.images.check import describe_copies, describe_images, describe_names, examine_all
from pretrain.images.data import FolderSource, ImageSource
from pretrain.images.findings import Finding, Report
from pretrain.images.names import read_lines
from transfer.detection.annotations.categories import match_categories
from transfer.detection.annotations.coco import load_document
from transfer.detection.annotations.faults import FaultsError
from transfer.detection.annotations.file_names import is_safe
from transfer.detection.annotations.objects import Annotations
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig

_NAMES = {"train": "train", "test": "val"}
_ALSO = 3  # entries of a fault that are named
_SMALL = 2.0  # pixels of a side of a box


def check(config: AnnotatedDataConfig) -> Report:
    """Read the annotations of both splits, decode all their images and compare the splits.

    Raises:
        ResourceError: a process died.
    """
    report = Report(title="")
    read = {split: found for split in _NAMES if (found := _read(config, split, report)) is not None}
    if len(read) == 2:
        try:
            read["test"] = match_categories(read["train"], read["test"])
        except InputError as error:
            report.findings.append(Finding(what=str(error), stops=True))
    sources: dict[str, ImageSource] = {
        _NAMES[split]: source for split in _NAMES if (source := _images(config, split, read.get(split)))
    }
    if settings := _settings(config):
        report.findings.append(Finding(what=f"settings of a run on these files: {settings}"))
    names = next(iter(read.values())).category_names if read else ()
    categories = f", {len(names)} categories" if names else ""
    report.title = f"{config.root}: annotations of {config.kind.upper()}'s form{categories}"
    splits = examine_all(sources)
    describe_images(report, splits, "replace them, or remove their annotations")
    describe_copies(report, splits)
    describe_names(report, names, "categories")
    for split, annotations in read.items():
        _describe_objects(report, _NAMES[split], annotations)
    counts = [np.bincount(found.classes, minlength=len(names)).tolist() for found in read.values()]
    if len({found.category_names for found in read.values()}) == 1:
        report.groups = [(name, row) for name, *row in zip(names, *counts, strict=True)]
        report.group = ("objects", *(_NAMES[split] for split in read))
    return report


def _settings(config: AnnotatedDataConfig) -> str:
    """Return the settings that name the files, as they are typed in a shell; "" if all are the default ones."""
    usual = AnnotatedDataConfig(kind=config.kind)
    values = {
        field: getattr(config, field) for field in ("root", "name", "train", "test", "train_images", "test_images")
    }
    words = [
        f"data.{field}={json.dumps(value) if isinstance(value, tuple) else value}"
        for field, value in values.items()
        if value != getattr(usual, field)
    ]
    return shlex.join(words) if len(words) > 1 else ""  # the root alone is known


def _read(config: AnnotatedDataConfig, split: str, report: Report) -> Annotations | None:
    """Read a split, and add its faults and notes. Masks are read if an annotation has one."""
    try:
        found = read_split(config, split, masks=None)
    except FaultsError as error:
        for fault in error.faults:
            also = fault.entries[1:_ALSO]
            more = f" (also {', '.join(also)}{', ...' if fault.count > _ALSO else ''})" if also else ""
            what, count = f"{_NAMES[split]}: {fault.text}{more}", fault.count if fault.count > 1 else 0
            report.findings.append(Finding(what=what, stops=True, count=count, remedy=fault.remedy))
        return None
    except InputError as error:
        report.findings.append(Finding(what=str(error), stops=True))
        return None
    if config.kind == "coco" and found.outlines is None:
        what = f"{_NAMES[split]}: no annotation has an outline: a run needs model.masks=false"
        report.findings.append(Finding(what=what))
    report.findings += [Finding(what=f"{_NAMES[split]}: {note}") for note in found.notes]
    return found


def _images(config: AnnotatedDataConfig, split: str, annotations: Annotations | None) -> FolderSource | None:
    """Return the image files of a split: those of checked annotations, else those of wrong ones that exist."""
    if annotations is not None:
        folder, files = annotations.folder, annotations.file_names
    else:
        folder = Path(os.path.expanduser(config.root))
        names = _named_in_lists(config, split) if config.kind == "voc" else _named_in_document(config, split)
        existing = [name for name in dict.fromkeys(names) if is_safe(name) and (folder / name).is_file()]
        files = np.array([os.fsencode(name) for name in existing])
    if not len(files):
        return None
    return FolderSource(folder, files, np.zeros(len(files), np.int64), ["images"], False, config.max_pixels)


def _named_in_document(config: AnnotatedDataConfig, split: str) -> list[str]:
    file = Path(os.path.expanduser(config.root)) / (config.train if split == "train" else config.test)[0]
    try:
        rows = load_document(file)[0].get("images")
    except InputError:
        return []
    names = [row.get("file_name") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    folder = config.train_images if split == "train" else config.test_images
    return [os.path.join(folder, name) for name in names if isinstance(name, str) and is_safe(name)]


def _named_in_lists(config: AnnotatedDataConfig, split: str) -> list[str]:
    names = []
    for listing in config.train if split == "train" else config.test:
        with contextlib.suppress(InputError, IndexError):
            lines = read_lines(Path(os.path.expanduser(config.root)) / listing, "the list of images")
            year = Path(listing).parents[2]
            stems = [str(year / "JPEGImages" / line.strip()) for line in lines]
            names += [f"{stem}{suffix}" for stem in stems for suffix in IMG_EXTENSIONS]
    return names


def _describe_objects(report: Report, name: str, found: Annotations) -> None:
    owners = np.repeat(np.arange(len(found)), found.last - found.first)
    chosen = np.concatenate([np.arange(a, b) for a, b in zip(found.first, found.last, strict=True)])
    boxes, classes = found.boxes[chosen], found.classes[chosen]

    def describe(indices: np.ndarray) -> list[str]:
        return [
            f"annotation {found.annotation_ids[chosen[i]]} in {os.fsdecode(found.file_names[owners[i]])}"
            for i in indices.tolist()
        ]

    small = ((boxes[:, 2:] - boxes[:, :2]) < _SMALL).any(1)
    report.add(f"{name}: boxes with a side of less than {_SMALL:g} pixels", describe(np.flatnonzero(small)))
    keys = np.column_stack([owners, classes, boxes])
    _, first = np.unique(keys, axis=0, return_index=True)
    again = np.setdiff1d(np.arange(len(keys)), first)
    report.add(f"{name}: objects with the box and the category of another one in their image", describe(again))
    report.add(
        f"{name}: categories without an object",
        [
            shorten(found.category_names[i])
            for i in np.flatnonzero(np.bincount(classes, minlength=len(found.category_names)) == 0)
        ],
    )
