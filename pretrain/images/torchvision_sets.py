"""The files and labels of published data sets in the folders that torchvision's data sets have on disk.

Torchvision has no splits for SUN397 and Caltech-101, and no labels of images for VOC 2007. Their lists are read here.
"""

import contextlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torchvision import datasets as sets

from intl_bench.core import inputs
from intl_bench.core.data_folders import MARKS, holder_of, where_instead
from intl_bench.core.datasets import VOC_CLASSES
from intl_bench.core.errors import BenchError, InputError, ResourceError
from intl_bench.core.seeding import permutation
from pretrain.images.names import read_lines

_DRAWN = 30  # training images of a class of Caltech-101
_PARTITIONS = "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"


class SetListing(NamedTuple):
    """The images of a split.

    Attributes:
        place: the folder of the data set.
        files: (n,) bytes, names relative to `place`.
        labels: (n,) int64. Of a set whose images have several classes, bit c is set if class c is in the image.
        class_names: the name of each label.
        validation: (n,) bool, which training images are the validation images of the data set; None if it has none.
    """

    place: Path
    files: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    validation: np.ndarray | None = None


class _Set(NamedTuple):
    """A data set of torchvision.

    Attributes:
        parts: {split: keyword arguments of its parts}; a second part are validation images.
        files, labels: the attributes that hold them; without `labels`, `files` holds pairs.
    """

    make: Callable[..., Any]
    parts: Mapping[str, tuple[Mapping[str, Any], ...]]
    files: str = "_image_files"
    labels: str = "_labels"


_TRAIN_TEST = {"train": ({"split": "train"},), "test": ({"split": "test"},)}
_TRAIN_VAL_TEST = {"train": ({"split": "train"}, {"split": "val"}), "test": ({"split": "test"},)}
_SETS = {
    "food101": _Set(sets.Food101, _TRAIN_TEST),
    "cars": _Set(sets.StanfordCars, _TRAIN_TEST, "_samples", ""),
    "aircraft": _Set(sets.FGVCAircraft, _TRAIN_VAL_TEST),
    "dtd": _Set(sets.DTD, _TRAIN_VAL_TEST),
    "pets": _Set(sets.OxfordIIITPet, {"train": ({"split": "trainval"},), "test": ({"split": "test"},)}, "_images"),
    "flowers102": _Set(sets.Flowers102, _TRAIN_VAL_TEST),
}
_DOWNLOADS: dict[str, Callable[[Path], object]] = {
    "sun397": lambda root: sets.SUN397(root, download=True),
    "caltech101": lambda root: sets.Caltech101(root, download=True),
    "voc07": lambda root: [
        sets.VOCDetection(root, year="2007", image_set=part, download=True) for part in ("trainval", "test")
    ],
}
MULTI_LABEL = ("voc07",)


def list_set(kind: str, root: Path, split: str, download: bool) -> SetListing:
    """List the images of a split of a data set.

    Args:
        kind: one of `KINDS`.
        root: the folder that holds the data set's folder, or that folder.
        split: "train", which includes validation images, or "test".
        download: whether torchvision downloads what is missing.

    Raises:
        InputError: files are missing or damaged, or a package is.
        ResourceError: the download failed.
    """
    holder = holder_of(kind, root)
    if holder is None and download:
        _download(kind, root)
        holder = holder_of(kind, root)
    if holder is None:
        instead = where_instead(root, MARKS[kind], kind).text
        without = "" if kind == "cars" else "; data.download=true downloads it"
        raise InputError(f"{root}: no data set {kind}; expected {root / MARKS[kind][0]}{instead or without}")
    try:
        listing = _OWN[kind](holder, split) if kind in _OWN else _from_torchvision(kind, holder, split)
    except BenchError:
        raise
    except ImportError as error:
        raise InputError(f"data.kind={kind}: its lists need the package scipy; run pip install scipy") from error
    except Exception as error:  # torchvision raises many types of errors for files that are damaged or missing
        if "Scipy" in str(error):
            raise InputError(f"data.kind={kind}: its lists need the package scipy; run pip install scipy") from error
        reason = " ".join(str(error).split()).replace("You can use download=True to download it", "").strip(" .")
        raise InputError(
            f"{holder / MARKS[kind][0].split('/')[0]}: the {split} images of {kind} cannot be listed "
            f"({type(error).__name__}: {inputs.shorten(reason)}); expected the files as torchvision has them; unpack "
            "the data set again"
        ) from error
    if not len(listing.files):
        raise InputError(f"{listing.place}: the list of {split} images is empty; unpack the data set again")
    return listing


def _download(kind: str, root: Path) -> None:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if kind in _DOWNLOADS:
                _DOWNLOADS[kind](root)
            else:
                _SETS[kind].make(root, **_SETS[kind].parts["train"][0], download=True)
    except Exception as error:
        raise ResourceError(
            f"data.download=true: {kind} was not downloaded ({' '.join(str(error).split())}); download it by hand to "
            f"{root}"
        ) from error


def _from_torchvision(kind: str, holder: Path, split: str) -> SetListing:
    """List a split of a data set of torchvision, with its validation images behind the training images."""
    one, place = _SETS[kind], holder / MARKS[kind][0].split("/")[0]
    parts = [one.make(holder, **part) for part in one.parts[split]]
    found = [
        [*zip(getattr(part, one.files), getattr(part, one.labels), strict=True)]
        if one.labels
        else getattr(part, one.files)
        for part in parts
    ]
    samples = [sample for part in found for sample in part]
    labels = np.array([label for _, label in samples], np.int64)
    names = [str(name) for name in parts[0].classes]
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise ValueError(f"labels {labels.min()} to {labels.max()} of {len(names)} classes")
    validation = np.repeat([False, True], [len(part) for part in found]) if len(parts) > 1 else None
    files = np.array([os.fsencode(os.path.relpath(file, place)) for file, _ in samples])
    return SetListing(place, files, labels, names, validation)


def _sun397(holder: Path, split: str) -> SetListing:
    """List the first of the ten partitions of SUN397, as Kornblith et al. (2019) and Ericsson et al. (2021) do."""
    place, name = holder / "SUN397", f"{'Training' if split == 'train' else 'Testing'}_01.txt"
    path = next((folder / name for folder in (place, holder) if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{place / name}: not there; the lists of the splits are in {_PARTITIONS}; unpack it there")
    folders = [line.strip().strip("/") for line in read_lines(place / "ClassName.txt", "the list of classes")]
    label_of = {folder: label for label, folder in enumerate(folders)}
    files = [line.strip().strip("/") for line in read_lines(path, "the list of images")]
    unknown = next((file for file in files if file.rpartition("/")[0] not in label_of), None)
    if unknown is not None:
        raise InputError(f"{path}: {inputs.shorten(unknown)} is in no class folder of {place / 'ClassName.txt'}")
    labels = [label_of[file.rpartition("/")[0]] for file in files]
    names = [folder.partition("/")[2] for folder in folders]
    return SetListing(place, np.array([os.fsencode(file) for file in files]), np.array(labels, np.int64), names)


def _caltech101(holder: Path, split: str) -> SetListing:
    """List 30 training images of each class, drawn with seed 0, or the others.

    With both lists in the folder, these are the images of `SPLIT.txt`. The class of the background images counts, as in
    Kornblith et al. (2019).
    """
    place = holder / "caltech101" / "101_ObjectCategories"
    names = sorted(entry.name for entry in os.scandir(place) if entry.is_dir())
    lists = {one: [(one / f"{part}.txt").is_file() for part in ("train", "test")] for one in (place.parent, holder)}
    folder = next((one for one, found in lists.items() if any(found)), None)
    if folder is not None:  # "CLASS/FILE label" a line, as those of Ericsson et al. (2021)
        if not all(lists[folder]):  # the draw would have images of the list in the other part
            raise InputError(f"{folder}: found one of train.txt and test.txt; expected both lists, or none")
        path = folder / f"{split}.txt"
        files = [line.split()[0] for line in read_lines(path, "the list of images") if line.split()]
        unknown = next((file for file in files if file.partition("/")[0] not in names), None)
        if unknown is not None:
            raise InputError(f"{path}: {inputs.shorten(unknown)} is in no class folder of {place}")
    else:
        files = []
        for number, name in enumerate(names):
            images = sorted(entry.name for entry in os.scandir(place / name) if entry.name.endswith(".jpg"))
            if len(images) <= _DRAWN:
                raise InputError(f"{place / name}: {len(images)} images; expected more than {_DRAWN}")
            order = permutation(0, "caltech101", number, len(images))
            chosen = np.sort(order[:_DRAWN] if split == "train" else order[_DRAWN:])
            files += [f"{name}/{images[index]}" for index in chosen]
    labels = [names.index(file.partition("/")[0]) for file in files]
    return SetListing(place, np.array([os.fsencode(file) for file in files]), np.array(labels, np.int64), names)


def _voc07(holder: Path, split: str) -> SetListing:
    """List VOC 2007 with the classes of each image. A class whose objects are all difficult counts as absent.

    Source: the lists CLASS_SPLIT.txt; 1 means present, as in datasets/voc2007.py of Ericsson et al. (2021).
    """
    place = holder / "VOCdevkit" / "VOC2007"
    files, labels, counts = list[str](), list[int](), list[int]()
    for part in ("train", "val") if split == "train" else ("test",):
        present: dict[str, int] = {}
        for number, name in enumerate(VOC_CLASSES):
            path = place / "ImageSets" / "Main" / f"{name}_{part}.txt"
            rows = [line.split() for line in read_lines(path, "the list of a class") if line.split()]
            wrong = next((row for row in rows if len(row) != 2 or row[1] not in ("1", "0", "-1")), None)
            if wrong is not None:
                raise InputError(f"{path}: found {inputs.shorten(' '.join(wrong))}; expected IMAGE and 1, 0 or -1")
            if number == 0:
                present = dict.fromkeys((image for image, _ in rows), 0)
            if present.keys() != {image for image, _ in rows}:
                raise InputError(f"{path}: lists other images than {VOC_CLASSES[0]}_{part}.txt; unpack VOC 2007 again")
            for image, value in rows:
                present[image] |= (value == "1") << number
        files += [f"JPEGImages/{image}.jpg" for image in present]
        labels += present.values()
        counts.append(len(present))
    validation = np.repeat([False, True], counts) if split == "train" else None
    names = np.array([os.fsencode(file) for file in files])
    return SetListing(place, names, np.array(labels, np.int64), list(VOC_CLASSES), validation)


_OWN: dict[str, Callable[[Path, str], SetListing]] = {"sun397": _sun397, "caltech101": _caltech101, "voc07": _voc07}
KINDS = (*_SETS, *_OWN)
