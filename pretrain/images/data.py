"""Labeled images by index: the CIFAR files, an .npz archive, one folder per class (ImageNet), or generated shapes.

A packed image folder (`pretrain.images.pack`) can replace the folder.
"""

import abc
import contextlib
import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from intl_bench.core import datasets, inputs
from intl_bench.core.data_folders import where_instead
from intl_bench.core.errors import InputError, from_os_error
from pretrain.images import sample, shapes
from pretrain.images.data_config import IMAGENET_NORMALIZATION, KINDS, DataConfig, normalization
from pretrain.images.decode import LARGEST, TooManyPixelsError, decode
from pretrain.images.folders import (
    FOLDERS,
    is_skipped,
    list_images,
    listed_classes,
    note_skipped,
    note_unmatched,
    patterns_for,
    skip_setting,
    unmatched,
    without_classes,
    without_images,
)
from pretrain.images.npz import read_arrays
from pretrain.images.pack import Pack, index_of
from pretrain.images.torchvision_sets import MULTI_LABEL, list_set

__all__ = [
    "IMAGENET_NORMALIZATION",
    "ArraySource",
    "BadImageError",
    "DataConfig",
    "FileSource",
    "FolderSource",
    "ImageSource",
    "PackedSource",
    "normalization",
    "open_source",
]


class BadImageError(InputError):
    """Error for an image file that exists but cannot be decoded."""


class ImageSource(abc.ABC):
    """Labeled images by index.

    Attributes:
        labels: (n,) int64.
        class_names: the name of each label.
        skip_bad: whether another image may replace one that cannot be decoded.
        multi_label: whether an image has several classes; then bit c of its label is set if it has class c.
        validation: (n,) bool, which training images the data set itself gives for validation; None if it gives none.
    """

    skip_bad = False
    multi_label = False
    validation: np.ndarray | None = None

    def __init__(self, labels: np.ndarray, class_names: list[str]) -> None:
        self.labels = np.asarray(labels, np.int64)
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def file(self, index: int) -> str:
        """Return the location of image `index`, for messages."""

    @abc.abstractmethod
    def image(self, index: int) -> np.ndarray:
        """Return image `index`, (H, W, 3) uint8 RGB; the caller must not change it.

        Raises:
            BadImageError: the image cannot be decoded.
            InputError: the image file cannot be read.
        """


class ArraySource(ImageSource):
    """Images in memory: (n, H, W, 3) uint8."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: list[str], where: str) -> None:
        super().__init__(labels, class_names)
        self.images, self.where = images, where

    def file(self, index: int) -> str:
        return f"{self.where}, image {index}"

    def image(self, index: int) -> np.ndarray:
        return self.images[index]

    def choose(self, indices: np.ndarray) -> Self:
        """Return a source of only the images `indices`, in this order."""
        return type(self)(self.images[indices], self.labels[indices], self.class_names, self.where)


class FileSource(ImageSource):
    """Image files that are decoded on access. As in torchvision's `ImageFolder`, EXIF orientation is not applied.

    Attributes:
        files: (n,) bytes, the name of each file relative to the folder of the split.
        place: the folder of the split, or the pack that holds the files.
        max_pixels: larger images are refused.
    """

    files: np.ndarray
    place: Path

    def __init__(self, labels: np.ndarray, class_names: list[str], skip_bad: bool, max_pixels: int) -> None:
        super().__init__(labels, class_names)
        self.skip_bad, self.max_pixels = skip_bad, max_pixels

    @property
    @abc.abstractmethod
    def sizes(self) -> np.ndarray:
        """Sizes of the image files in bytes, (n,) int64.

        Raises:
            InputError: a file no longer exists.
        """

    @abc.abstractmethod
    def content(self, index: int) -> bytes:
        """Return the bytes of image file `index`.

        Raises:
            InputError: the bytes cannot be read.
        """

    def name_to_skip(self, index: int) -> str:
        """Return the name of image `index` for `skip_setting`; it begins with the split, unless that is a class too."""
        folder, name = self.place.name.removesuffix(".pack"), os.fsdecode(self.files[index])
        return name if folder in self.class_names or folder not in FOLDERS.values() else f"{folder}/{name}"

    def choose(self, indices: np.ndarray) -> Self:
        """Return a source of only the images `indices`, in this order."""
        part = copy.copy(self)
        part.labels = self.labels[indices]
        return part

    def image(self, index: int) -> np.ndarray:
        content = self.content(index)
        try:
            return decode(content, self.max_pixels)
        except MemoryError:
            raise
        except TooManyPixelsError as error:
            raise BadImageError(
                f"{self.file(index)}: {error}; set data.max_pixels={error.pixels} if you trust the file, or leave it "
                f"out with {skip_setting([self.name_to_skip(index)])}"
            ) from error
        except Exception as error:  # the decoders of Pillow raise many types of errors for damaged bytes
            raise BadImageError(
                f"{self.file(index)}: not a readable image ({' '.join(str(error).split())}); replace it, or leave it "
                f"out with {skip_setting([self.name_to_skip(index)])}"
            ) from error


class FolderSource(FileSource):
    """Images of an image folder."""

    def __init__(
        self,
        folder: Path,
        files: np.ndarray,
        labels: np.ndarray,
        class_names: list[str],
        skip_bad: bool,
        max_pixels: int = LARGEST,
    ) -> None:
        super().__init__(labels, class_names, skip_bad, max_pixels)
        # A list of a million strings would be copied into every worker as soon as reference counts change.
        self.place, self.files = folder, files

    @property
    def sizes(self) -> np.ndarray:
        try:
            return np.array([os.stat(self.file(index)).st_size for index in range(len(self))], np.int64)
        except OSError as error:
            raise from_os_error(error, f"cannot read {error.filename}") from error

    def file(self, index: int) -> str:
        return os.path.join(self.place, os.fsdecode(self.files[index]))

    def content(self, index: int) -> bytes:
        return inputs.read_bytes(self.file(index))

    def choose(self, indices: np.ndarray) -> Self:
        part = super().choose(indices)
        part.files = self.files[indices]
        part.validation = None if self.validation is None else self.validation[indices]
        return part


class PackedSource(FileSource):
    """Images of a pack, all or some; `rows` (n,) holds the record number of each image in the pack."""

    def __init__(
        self, pack: Pack, rows: np.ndarray, labels: np.ndarray, class_names: list[str], skip_bad: bool, max_pixels: int
    ) -> None:
        super().__init__(labels, class_names, skip_bad, max_pixels)
        self.pack, self.rows, self.place = pack, rows, pack.path

    @property
    def files(self) -> np.ndarray:  # type: ignore[override]
        return self.pack.images["name"][self.rows]

    @property
    def sizes(self) -> np.ndarray:
        return self.pack.images["size"][self.rows].astype(np.int64)

    def file(self, index: int) -> str:
        return f"{self.place}, {os.fsdecode(self.pack.images['name'][self.rows[index]])}"

    def content(self, index: int) -> bytes:
        return self.pack.read(int(self.rows[index]))

    def choose(self, indices: np.ndarray) -> Self:
        part = super().choose(indices)
        part.rows = self.rows[indices]
        return part


def open_source(config: DataConfig, split: str, *, multi_label: bool = False) -> ArraySource | FileSource:
    """Open the images of a split.

    Args:
        split: "train" or "test"; "test" is the folder `val/` of an imagefolder. With `config.holdout` both are parts of
            the training images.
        multi_label: whether the caller can use images with several classes.

    Raises:
        InputError: the images are missing, incomplete or in another format, or the data set has the name of one of the
            paper's data sets but other images.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split}: expected train or test")
    if config.holdout is None:
        return _open_whole(config, split, multi_label=multi_label)
    source = _open_whole(config, "train", multi_label=False)
    setting = f"data.holdout={config.holdout}"
    held = sample.held_out(source.labels, config.holdout, seed=config.holdout_seed, setting=setting)
    return source.choose(np.flatnonzero(held if split == "test" else ~held))


def _open_whole(config: DataConfig, split: str, *, multi_label: bool) -> ArraySource | FileSource:
    """Open the images of a split, of which `config.holdout` takes no part."""
    if not config.root and config.kind != "shapes":
        raise InputError(f"data.root is not set: expected the location of the {config.kind} images; set data.root=PATH")
    source = _SOURCES.get(config.kind, _open_set)(config, split)
    if source.multi_label and not multi_label:
        raise InputError(f"data.kind={config.kind}: its images have several classes; score it with intl-bench transfer")
    if config.dataset in datasets.DATASETS:
        size = None
        with contextlib.suppress(BadImageError):  # reported when the image is used
            size = source.image(0).shape[:2]
        datasets.check_images(
            config.dataset, config.kind, config.root, source.class_names, split, images=len(source), size=size
        )
    if split == "train" and config.limit is not None:
        if source.multi_label:
            raise InputError(f"data.limit={config.limit}: data.kind={config.kind} has no part; remove it")
        count = sample.count_of(config.limit, len(source))
        setting = f"data.limit={config.limit}"
        chosen = sample.stratified(source.labels, count, seed=config.limit_seed, purpose="limit", setting=setting)
        return source.choose(chosen)
    return source


def _open_shapes(config: DataConfig, split: str) -> ArraySource:
    images, labels = shapes.make(config.size if split == "train" else config.size // 4, split)
    return ArraySource(images, labels, shapes.CLASS_NAMES, f"generated {split} shapes")


def _open_cifar(config: DataConfig, split: str) -> ArraySource:
    dataset = CIFAR10 if config.kind == "cifar10" else CIFAR100
    root = Path(os.path.expanduser(config.root))
    mark = f"{dataset.base_folder}/{dataset.meta['filename']}"
    if root.name == dataset.base_folder and not (root / mark).exists():
        root = root.parent  # data.root may be the folder of the files, or the one that holds it
    folder = root / dataset.base_folder
    try:
        data = dataset(folder.parent, train=split == "train", download=config.download)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{folder}: the Python files of {config.kind} are missing or damaged; download {dataset.url} "
            f"and unpack it in {folder.parent}, or set data.root to the folder that holds {dataset.base_folder}"
            f"{where_instead(root, [mark]).text}"
        ) from error
    return ArraySource(data.data, np.array(data.targets), list(data.classes), f"{folder}, {split}")


def _open_npz(config: DataConfig, split: str) -> ArraySource:
    path = Path(os.path.expanduser(config.root))
    if path.is_dir():
        inside = sorted(path.glob("*.npz"))
        hint = f"did you mean data.root={inside[0]}?" if inside else "write data.root=FILE.npz"
        raise InputError(f"{path}: a folder; expected an .npz file; {hint}")
    arrays = read_arrays(path, ("train_y", f"{split}_x", f"{split}_y"))
    train_labels, images, labels = arrays["train_y"], arrays[f"{split}_x"], arrays[f"{split}_y"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise InputError(f"{path}: {split}_x is {images.dtype} {images.shape}; expected uint8 (n, height, width, 3)")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise InputError(f"{path}: {split}_y is {labels.dtype} {labels.shape}; expected integers ({len(images)},)")
    classes = np.unique(train_labels)
    if not np.array_equal(classes, np.arange(len(classes))) or not np.isin(labels, classes).all():
        raise InputError(f"{path}: {split}_y has unexpected labels; expected 0 to K - 1, and each of them in train_y")
    return ArraySource(images, labels, [str(label) for label in classes], f"{path}, {split}")


def _open_folder(config: DataConfig, split: str) -> FileSource:
    root = Path(os.path.expanduser(config.root))
    packs = [path for name in FOLDERS.values() if (path := root / f"{name}.pack").exists() or index_of(path).exists()]
    if packs:
        return _open_pack(config, root, split, packs)
    listing = list_images(root, split, config.classes, config.skip)
    return FolderSource(root / FOLDERS[split], *listing, config.on_bad_image == "skip", config.max_pixels)


def _open_pack(config: DataConfig, root: Path, split: str, packs: list[Path]) -> PackedSource:
    if folder := next((root / name for name in FOLDERS.values() if (root / name).is_dir()), None):
        raise InputError(f"{root}: contains {packs[0].name} and the folder {folder.name}; expected only one of them")
    pack = Pack(root / f"{FOLDERS[split]}.pack")
    # The classes of the training images define the labels, as for folders.
    expected = (pack if pack.path == packs[0] else Pack(packs[0])).class_names
    if pack.class_names != expected:
        raise InputError(f"{pack.path}: its classes are not those of {packs[0].name}; expected packs of one data set")
    patterns = patterns_for(config.skip, FOLDERS[split], expected)
    of_classes = patterns_for(config.skip, packs[0].stem, expected)
    kept = [name for name in expected if not is_skipped(name, of_classes)]
    class_names = kept if config.classes is None else listed_classes(Path(config.classes), kept)
    numbers = np.full(len(expected), -1)
    numbers[np.isin(expected, class_names)] = np.arange(len(class_names))  # both lists are sorted
    labels = numbers[pack.images["label"]]
    if config.skip:
        names = _names_in(pack)
        left_out = np.array([is_skipped(name, patterns) for name in names])
        left_out |= np.array([is_skipped(name, patterns) for name in expected])[pack.images["label"]]
        note_skipped(pack.path, int(np.sum(labels[left_out] >= 0)), len(expected) - len(kept))
        labels[left_out] = -1
        left = unmatched(config.skip, expected, {FOLDERS[split]: [*expected, *names]})
        others = {path.stem: [*expected, *_names_in(Pack(path))] for path in packs if left and path != pack.path}
        note_unmatched(root, unmatched(left, expected, others))
    rows = np.flatnonzero(labels >= 0)
    if missing := without_images(labels[rows], class_names):
        raise InputError(
            f"{pack.path}: no images of {len(missing)} of {len(class_names)} classes: data.skip leaves them out; leave "
            f"out the classes with {without_classes(missing)}"
        )
    return PackedSource(pack, rows, labels[rows], class_names, config.on_bad_image == "skip", config.max_pixels)


def _open_set(config: DataConfig, split: str) -> FileSource:
    root = Path(os.path.expanduser(config.root))
    listing = list_set(config.kind, root, split, config.download)
    skip_bad = config.on_bad_image == "skip"
    source = FolderSource(
        listing.place, listing.files, listing.labels, listing.class_names, skip_bad, config.max_pixels
    )
    source.multi_label, source.validation = config.kind in MULTI_LABEL, listing.validation
    if not config.skip:
        return source
    names = [os.fsdecode(file) for file in listing.files.tolist()]
    kept = np.array([not is_skipped(name, config.skip) for name in names])
    note_skipped(listing.place, int(np.sum(~kept)), 0)
    return source.choose(np.flatnonzero(kept))


def _names_in(pack: Pack) -> list[str]:
    return [os.fsdecode(name) for name in pack.images["name"].tolist()]


_SOURCES: dict[str, Callable[[DataConfig, str], ArraySource | FileSource]] = dict(
    zip(KINDS, (_open_folder, _open_cifar, _open_cifar, _open_npz, _open_shapes), strict=False)  # others: _open_set
)
