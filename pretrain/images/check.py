"""Everything that is wrong with a set of labeled images, and what its user should know: `intl-bench data check`."""

import collections
import contextlib
import dataclasses
import io
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from intl_bench.core import planned
from intl_bench.core.data_folders import SYSTEM_FOLDER
from intl_bench.core.errors import InputError, ResourceError
from intl_bench.core.inputs import shorten
from intl_bench.core.progress import Progress
from pretrain.images.check_files import BLANK, ORIENTED, Examined, examine
from pretrain.images.data import DataConfig, FileSource, FolderSource, ImageSource, open_source
from pretrain.images.findings import Finding, Report
from pretrain.images.folders import FOLDERS, ClassError, skip_setting
from pretrain.images.walk import walk

_TINY = 32  # pixels of the shorter side
_HUGE = 20_000_000  # pixels
_LONG = 8  # times the shorter side
_UNEQUAL = 10  # times as many images as another class
_ANY_NAME = "checked"  # a name of a data set that is not reserved for certain images


class Split(NamedTuple):
    """The examined images of a split.

    Attributes:
        name: its name in the report.
        files: where each image is, for the report.
        labels: (n,) int64.
        images: the result for each image.
        size: bytes of the image files, or of the pixels in memory.
    """

    name: str
    files: Sequence[str]
    labels: np.ndarray
    images: list[Examined]
    size: int


def check(config: DataConfig) -> Report:
    """Decode all images of both splits and compare them.

    Raises:
        InputError: data.root is not set.
        ResourceError: a process died.
    """
    if not config.root:
        raise InputError("data.root is not set: expected the location of the images; write data check ROOT")
    report = Report(title="")
    sources = {
        name: source for split, name in FOLDERS.items() if (source := _open(config, split, report.findings)) is not None
    }
    splits = examine_all(sources)
    names = next(iter(sources.values())).class_names if sources else []
    classes = f", {len(names)} classes" if names else ""
    report.title = f"{config.root}: {_KINDS.get(config.kind, config.kind)}{classes}"
    describe_images(report, splits, "replace or remove them, or leave them out with", _setting_without(sources, splits))
    report.add(f"{ORIENTED}, which is not applied", _with_trait(splits, ORIENTED))
    describe_copies(report, splits)
    _describe_classes(report, splits, names)
    for source in sources.values():
        if isinstance(source, FolderSource):
            _describe_other_files(report, source)
    return report


_KINDS = {
    "imagefolder": "image folder",
    "cifar10": "files of CIFAR-10",
    "cifar100": "files of CIFAR-100",
    "npz": "arrays",
}


def _open(config: DataConfig, split: str, findings: list[Finding]) -> ImageSource | None:
    """Open a split and add what would stop a run. Classes that stop it are left out here to find the other faults."""
    root = Path(os.path.expanduser(config.root))
    asked = bool(config.skip)
    folder_is_missing = config.kind == "imagefolder" and not (root / FOLDERS[split]).is_dir()
    if split == "test" and folder_is_missing and not (root / "val.pack").exists():
        what = f"no folder {root / FOLDERS[split]}: pre-training does not need it, the scores do"
        findings.append(Finding(what=what))
        return None
    with contextlib.redirect_stderr(io.StringIO()) as notes:
        while True:
            try:
                source = open_source(config, split)
                break
            except ClassError as error:
                findings.append(Finding(what=str(error), stops=True))
                config = _without(config, error.classes)
            except (InputError, ResourceError) as error:  # a folder that cannot be read is one of the faults
                if (finding := Finding(what=str(error), stops=True)) not in findings:
                    findings.append(finding)
                if config.name == _ANY_NAME:
                    return None
                config = dataclasses.replace(config, name=_ANY_NAME)
    lines = notes.getvalue().splitlines()
    findings += [Finding(what=line) for line in lines if asked or "data.skip leaves out" not in line]
    return source


def _without(config: DataConfig, classes: Sequence[str]) -> DataConfig:
    patterns = ["".join(f"[{c}]" if c in "*?[" else c for c in name) for name in classes]
    return dataclasses.replace(config, skip=(*config.skip, *patterns))


def examine_all(sources: dict[str, ImageSource]) -> list[Split]:
    """Examine the images of all splits, with one bar of progress."""
    progress = Progress(sum(map(len, sources.values())), label="checking images")
    splits = []
    for name, source in sources.items():
        images = [*examine(source, progress)]
        size = 3 * sum(image.width * image.height for image in images)
        if isinstance(source, FileSource):
            folder = source.place.name.removesuffix(".pack")
            files = [f"{folder}/{os.fsdecode(file)}" for file in source.files.tolist()]
            with contextlib.suppress(InputError):  # a file that is gone has a fault already
                size = int(source.sizes.sum())
        else:
            files = [f"{name} {index}" for index in range(len(source))]
        splits.append(Split(name, files, source.labels, images, size))
    progress.close()
    return splits


def _setting_without(sources: Mapping[str, ImageSource], splits: Sequence[Split]) -> str:
    """Write the setting that leaves out the images that cannot be decoded."""
    patterns = list[str]()
    for source, split in zip(sources.values(), splits, strict=True):
        bad = [index for index, image in enumerate(split.images) if image.fault]
        if isinstance(source, FileSource):
            patterns += map(source.name_to_skip, bad)
    return skip_setting(patterns)


def describe_images(report: Report, splits: Sequence[Split], remedy: str, setting: str = "") -> None:
    """Add the sizes of the images, those that cannot be decoded, and their traits but the orientation.

    Args:
        remedy: what to do with images that cannot be decoded.
        setting: see `Finding`.
    """
    report.splits = [("", "images", "bytes", "smallest", "median", "largest")]
    for split in splits:
        sides = sorted(((i.width, i.height) for i in split.images if i.width), key=lambda pair: pair[0] * pair[1])
        chosen = [sides[0], sides[len(sides) // 2], sides[-1]] if sides else []
        texts = [f"{width} x {height}" for width, height in chosen] or ["–"] * 3
        report.splits.append((split.name, f"{len(split.images):,}", planned.size(split.size), *texts))
    bad = [f"{file}: {image.fault}" for file, image in _pairs(splits) if image.fault]
    report.add("unreadable images", bad, stops=True, remedy=remedy, setting=setting)
    traits = collections.Counter(trait for _, image in _pairs(splits) for trait in image.traits)
    for trait, _ in traits.most_common():
        if trait != ORIENTED:
            report.add(trait, _with_trait(splits, trait))
    seen = [(file, image.width, image.height) for file, image in _pairs(splits) if image.width]
    tiny = [f"{file} ({w} x {h})" for file, w, h in seen if min(w, h) < _TINY]
    if len(tiny) < len(seen):  # images that are all small, such as CIFAR's, are meant so
        report.add(f"images with a side of less than {_TINY} pixels", tiny)
    huge = [f"{file} ({w} x {h})" for file, w, h in seen if w * h > _HUGE]
    slow = "resize them once: an image takes a second to decode"
    report.add(f"images of more than {_HUGE // 10**6} million pixels", huge, remedy=slow)
    long = [f"{file} ({w} x {h})" for file, w, h in seen if max(w, h) > _LONG * min(w, h)]
    report.add(f"images more than {_LONG} times as long as wide, of which a center crop shows a small part", long)


def describe_copies(report: Report, splits: Sequence[Split]) -> None:
    """Add the images with equal pixels: in two splits, in two classes, and twice in one class."""
    places: dict[bytes, list[tuple[str, str, int]]] = collections.defaultdict(list)
    for split in splits:
        for file, label, image in zip(split.files, split.labels.tolist(), split.images, strict=True):
            if image.digest and BLANK not in image.traits:
                places[image.digest].append((split.name, file, label))
    across, conflicts, twice = list[str](), list[str](), list[str]()
    for found in places.values():
        if len(found) == 1:
            continue
        text = " = ".join(file for _, file, _ in found[:3]) + (" = ..." if len(found) > 3 else "")
        if len({label for _, _, label in found}) > 1:
            conflicts.append(text)
        if len({split for split, _, _ in found}) > 1:
            across.append(text)
        elif len({label for _, _, label in found}) == 1:
            twice.append(text)
    names = " and ".join(split.name for split in splits)
    report.add(f"images that are in {names}, which makes scores too high", across)
    report.add("images with several labels, equal to the pixel", conflicts)
    report.add("images that are there more than once, equal to the pixel", twice)


def describe_names(report: Report, names: Sequence[str], what: str) -> None:
    """Add the names that differ only in case, spaces, hyphens, accents' composition or a plural's s."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        folded = unicodedata.normalize("NFKC", name).casefold()
        plain = "".join(letter for letter in folded if letter.isalnum())
        groups[plain.removesuffix("s") or name].append(name)
    alike = [" and ".join(map(shorten, group)) for group in groups.values() if len(group) > 1]
    report.add(f"{what} whose names are almost equal", alike, remedy="join them if they are one")


def _describe_classes(report: Report, splits: Sequence[Split], names: Sequence[str]) -> None:
    describe_names(report, names, "classes")
    counts = [np.bincount(split.labels, minlength=len(names)).tolist() for split in splits]
    report.groups = [(name, row) for name, *row in zip(names, *counts, strict=True)] if counts else []
    report.group = ("class", *(split.name for split in splits))
    for split, count in zip(splits, counts, strict=True):
        most, least = max(count, default=0), min(count, default=0)
        if most > _UNEQUAL * least:
            report.findings.append(
                Finding(
                    what=f"{split.name}: unequal classes: {shorten(names[count.index(most)])} has {most:,} images, "
                    f"{shorten(names[count.index(least)])} has {least:,}; top-1 counts each image, not each class"
                )
            )


def _describe_other_files(report: Report, source: FolderSource) -> None:
    """Add the files of a split that are not read: of another suffix, or beside the class folders."""
    suffixes, others = collections.Counter[str](), list[str]()
    for folder, folders, files in walk(source.place):
        folders[:] = sorted(name for name in folders if not SYSTEM_FOLDER.fullmatch(name))
        beside = Path(folder) == source.place
        for name in sorted(files):
            if name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini"):
                continue
            if beside or not name.lower().endswith(IMG_EXTENSIONS):
                others.append(
                    os.path.join(source.place.name, os.path.relpath(os.path.join(folder, name), source.place))
                )
                suffixes[os.path.splitext(name)[1].lower() or "no suffix"] += 1
    kinds = ", ".join(f"{suffix} {count}" for suffix, count in suffixes.most_common(4))
    what = (
        f"{source.place.name}: files that are not read, because they are no images or are in no class folder ({kinds})"
    )
    report.add(what, others)


def _pairs(splits: Sequence[Split]) -> list[tuple[str, Examined]]:
    return [pair for split in splits for pair in zip(split.files, split.images, strict=True)]


def _with_trait(splits: Sequence[Split], trait: str) -> list[str]:
    return [file for file, image in _pairs(splits) if trait in image.traits]
