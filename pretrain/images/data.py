"""Labeled images by number: CIFAR's own files, an .npz archive, a folder a class (ImageNet), or generated shapes.

A packed image folder (see pack.py) is read wherever the folder itself could be.
"""

import abc
import contextlib
import dataclasses
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from intl_bench.core import datasets
from intl_bench.core.errors import InputError, from_os_error
from intl_bench.core.identity import runtime_only
from pretrain.images import shapes
from pretrain.images.decode import decode
from pretrain.images.pack import Pack, index_of

FOLDERS = {"train": "train", "test": "val"}  # of an imagefolder's splits

IMAGENET_NORMALIZATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_NORMALIZATION = {
    "imagefolder": IMAGENET_NORMALIZATION,
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "shapes": ((0.5, 0.5, 0.5), (0.29, 0.29, 0.29)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and where.

    Attributes:
        kind: "imagefolder" (`train/CLASS/*.jpg`, `val/CLASS/*.jpg`, or these packed), "cifar10" or "cifar100" (the
            Python version's files, unpacked), "npz" (arrays train_x, train_y, test_x, test_y) or "shapes" (generated).
        root: the folder that holds them, or the .npz file.
        name: the data set's name in results; None means the name of an imagefolder's folder or of an .npz file
            without its ending, else the kind. The names of the paper's data sets are kept for their images.
        classes: a file with one class folder a line, to use those only (imagefolder).
        on_bad_image: "stop" at an image that cannot be decoded, or "skip" it while training: the next one stands in.
            A pack whose bytes have changed always stops.
        mean, std: per channel, for pixels in 0..1; None means the data set's own, or ImageNet's where it is not known.
        size: number of training images (shapes); a quarter as many are for testing.
    """

    kind: str = "imagefolder"
    root: str = runtime_only("")
    name: str | None = runtime_only(None)
    classes: str | None = runtime_only(None)  # a path; what it selects is in the data's fingerprint
    on_bad_image: str = runtime_only("stop")  # a run that met a bad image ends with "skip" alone
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int = 2048

    def __post_init__(self) -> None:
        if self.kind not in _SOURCES:
            raise ValueError(f"data.kind={self.kind}: expected {', '.join(_SOURCES)}")
        if self.kind == "shapes" and self.root:
            raise ValueError(f"data.root={self.root}: data.kind=shapes generates its images; set data.kind=imagefolder")
        if self.on_bad_image not in ("stop", "skip"):
            raise ValueError(f"data.on_bad_image={self.on_bad_image}: expected stop or skip")
        if self.classes is not None and self.kind != "imagefolder":
            raise ValueError(f"data.classes={self.classes}: only data.kind=imagefolder has folders to choose from")
        for field, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != 3 or not np.isfinite(values).all()):
                raise ValueError(f"data.{field}={values}: expected three numbers, for red, green and blue")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"data.std={self.std}: expected positive numbers")
        if self.size < 40:
            raise ValueError(f"data.size={self.size}: expected at least 40, so that the test images have ten classes")

    def unused(self) -> set[str]:
        """See `intl_bench.core.identity.identity`."""
        return set() if self.kind == "shapes" else {"size"}

    @property
    def dataset(self) -> str:
        """The data set's name in results."""
        name = self.name
        if name is None and self.root and self.kind in ("imagefolder", "npz"):
            place = Path(os.path.abspath(os.path.expanduser(self.root)))
            name = place.name if self.kind == "imagefolder" else place.stem
        return datasets.canonical(name or self.kind)


def normalization(config: DataConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of red, green and blue, for pixels in 0..1.

    What the configuration leaves out is that of its kind, else of the data set that it names, else ImageNet's.
    """
    own = _NORMALIZATION.get(config.kind) or _NORMALIZATION.get(config.dataset, IMAGENET_NORMALIZATION)
    return tuple(config.mean or own[0]), tuple(config.std or own[1])


class BadImageError(InputError):
    """An image file that is there but cannot be decoded."""


class ImageSource(abc.ABC):
    """Labeled images by number.

    Attributes:
        labels: (n,) int64.
        class_names: the name of each label.
        skip_bad: whether another image may stand in for one that cannot be decoded.
    """

    skip_bad = False

    def __init__(self, labels: np.ndarray, class_names: list[str]) -> None:
        self.labels = np.asarray(labels, np.int64)
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def file(self, index: int) -> str:
        """Where image `index` is, for messages."""

    @abc.abstractmethod
    def image(self, index: int) -> np.ndarray:
        """Image `index`, (H, W, 3) uint8 RGB, to be left unchanged.

        Raises:
            BadImageError: it cannot be decoded.
            InputError: its file cannot be read.
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
        """The images of these numbers alone, in this order."""
        return type(self)(self.images[indices], self.labels[indices], self.class_names, self.where)


class FileSource(ImageSource):
    """Image files, decoded when they are asked for; as torchvision's `ImageFolder`, EXIF orientation is not applied.

    Attributes:
        files: (n,) bytes, the name of each below the split's folder.
        place: that folder, or the pack that they are in.
    """

    files: np.ndarray
    place: Path

    @property
    @abc.abstractmethod
    def sizes(self) -> np.ndarray:
        """(n,) int64, the bytes of each image file.

        Raises:
            InputError: a file is not there any more.
        """

    @abc.abstractmethod
    def content(self, index: int) -> bytes:
        """The bytes of image file `index`.

        Raises:
            InputError: they cannot be read.
        """

    @abc.abstractmethod
    def choose(self, indices: np.ndarray) -> Self:
        """The images of these numbers alone, in this order."""

    def image(self, index: int) -> np.ndarray:
        content = self.content(index)
        try:
            return decode(content)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise many kinds on damaged bytes
            raise BadImageError(
                f"{self.file(index)}: not a readable image ({' '.join(str(error).split())}); replace it, "
                "or pre-train with data.on_bad_image=skip to let the next image stand in"
            ) from error


class FolderSource(FileSource):
    """The files of an image folder."""

    def __init__(
        self, folder: Path, files: np.ndarray, labels: np.ndarray, class_names: list[str], skip_bad: bool
    ) -> None:
        super().__init__(labels, class_names)
        # One array instead of a million strings, whose reference counts would copy their memory into every worker.
        self.place, self.files, self.skip_bad = folder, files, skip_bad

    @property
    def sizes(self) -> np.ndarray:
        try:
            return np.array([os.stat(self.file(index)).st_size for index in range(len(self))], np.int64)
        except OSError as error:
            raise from_os_error(error, f"cannot read {error.filename}") from error

    def file(self, index: int) -> str:
        return os.path.join(self.place, os.fsdecode(self.files[index]))

    def content(self, index: int) -> bytes:
        file = self.file(index)
        try:
            with open(file, "rb", buffering=0) as stream:  # a buffer would only copy
                return stream.read()
        except OSError as error:
            raise from_os_error(error, f"cannot read {file}") from error

    def choose(self, indices: np.ndarray) -> Self:
        return type(self)(self.place, self.files[indices], self.labels[indices], self.class_names, self.skip_bad)


class PackedSource(FileSource):
    """The images of a pack, or some of them: `rows` says which of its records each one is."""

    def __init__(
        self, pack: Pack, rows: np.ndarray, labels: np.ndarray, class_names: list[str], skip_bad: bool
    ) -> None:
        super().__init__(labels, class_names)
        self.pack, self.rows, self.place, self.skip_bad = pack, rows, pack.path, skip_bad

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
        return type(self)(self.pack, self.rows[indices], self.labels[indices], self.class_names, self.skip_bad)


def open_source(config: DataConfig, split: str) -> ArraySource | FileSource:
    """The images of a split, "train" or "test" (the folder `val/` of an imagefolder).

    Raises:
        InputError: they are not there, not complete, not in the expected form, or not those of the paper's data set
            that they are named after.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split}: expected train or test")
    if not config.root and config.kind != "shapes":
        raise InputError(f"data.root is not set: expected where the {config.kind} images are, such as data.root=PATH")
    source = _SOURCES[config.kind](config, split)
    if config.dataset in datasets.PAPER:
        size = None
        with contextlib.suppress(BadImageError):  # is said where the image is asked for
            size = source.image(0).shape[:2]
        datasets.check_images(
            config.dataset, config.kind, config.root, source.class_names, split, images=len(source), size=size
        )
    return source


def _open_shapes(config: DataConfig, split: str) -> ArraySource:
    images, labels = shapes.make(config.size if split == "train" else config.size // 4, split)
    return ArraySource(images, labels, shapes.CLASS_NAMES, f"generated {split} shapes")


def _open_cifar(config: DataConfig, split: str) -> ArraySource:
    dataset = CIFAR10 if config.kind == "cifar10" else CIFAR100
    folder = Path(config.root).expanduser() / dataset.base_folder
    try:
        data = dataset(folder.parent, train=split == "train")
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{folder}: {config.kind}'s Python files are missing or damaged; download {dataset.url} "
            f"and unpack it in {folder.parent}, or set data.root to the folder that holds {dataset.base_folder}"
        ) from error
    return ArraySource(data.data, np.array(data.targets), list(data.classes), f"{folder}, {split}")


def _open_npz(config: DataConfig, split: str) -> ArraySource:
    path = Path(config.root).expanduser()
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            known = archive["train_y"]
            images, labels = archive[f"{split}_x"], archive[f"{split}_y"]
    except OSError as error:
        raise from_os_error(error, f"cannot read data.root={path}") from error
    except KeyError as error:
        raise InputError(f"{path}: no array {error}; expected train_x, train_y, test_x, test_y") from error
    except (
        ValueError,
        EOFError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
    ) as error:
        raise InputError(f"{path}: not a complete .npz archive of plain arrays ({error})") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise InputError(f"{path}: {split}_x is {images.dtype} {images.shape}; expected uint8 (n, height, width, 3)")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise InputError(f"{path}: {split}_y is {labels.dtype} {labels.shape}; expected integers ({len(images)},)")
    classes = np.unique(known)
    if not np.array_equal(classes, np.arange(len(classes))) or not np.isin(labels, classes).all():
        raise InputError(f"{path}: {split}_y: expected labels 0 to K - 1, all K of them in train_y")
    return ArraySource(images, labels, [str(label) for label in classes], f"{path}, {split}")


def _open_folder(config: DataConfig, split: str) -> FileSource:
    root = Path(config.root).expanduser()
    packs = [path for name in FOLDERS.values() if (path := root / f"{name}.pack").exists() or index_of(path).exists()]
    if packs:
        return _open_pack(config, root, split, packs)
    folder = root / FOLDERS[split]
    present = _class_folders(folder)
    # Labels are numbered by the training folders, so that a class without validation images shifts none of them.
    expected = _class_folders(root / "train") if (root / "train").is_dir() else present
    class_names = expected if config.classes is None else _listed_classes(Path(config.classes), expected)
    if config.classes is None and (unknown := sorted({*present} - {*expected})):
        raise InputError(f"{folder / unknown[0]}: not one of the class folders in {root / 'train'}")
    numbers = {name: number for number, name in enumerate(class_names)}
    samples = make_dataset(folder, numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    labels = np.array([label for _, label in samples], np.int64)
    for number in np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0):
        raise InputError(
            f"{folder / class_names[number]}: no images of this class; expected files that end in "
            f"{', '.join(IMG_EXTENSIONS)}"
        )
    files = np.array([os.fsencode(file.removeprefix(f"{folder}{os.sep}")) for file, _ in samples])
    return FolderSource(folder, files, labels, class_names, skip_bad=config.on_bad_image == "skip")


def _open_pack(config: DataConfig, root: Path, split: str, packs: list[Path]) -> PackedSource:
    if folder := next((root / name for name in FOLDERS.values() if (root / name).is_dir()), None):
        raise InputError(f"{root}: holds {packs[0].name} and the folder {folder.name}; expected only one of the two")
    pack = Pack(root / f"{FOLDERS[split]}.pack")
    # As in folders, labels are numbered by the training images' classes.
    expected = (pack if pack.path == packs[0] else Pack(packs[0])).class_names
    if pack.class_names != expected:
        raise InputError(f"{pack.path}: its classes are not those of {packs[0].name}; expected packs of one data set")
    class_names = expected if config.classes is None else _listed_classes(Path(config.classes), expected)
    numbers = np.full(len(expected), -1)
    numbers[np.isin(expected, class_names)] = np.arange(len(class_names))  # both are in alphabetical order
    labels = numbers[pack.images["label"]]
    rows = np.flatnonzero(labels >= 0)
    return PackedSource(pack, rows, labels[rows], class_names, skip_bad=config.on_bad_image == "skip")


def _class_folders(folder: Path) -> list[str]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise from_os_error(error, f"cannot read the image folder {folder} of data.root") from error
    if not names:
        raise InputError(f"{folder}: no class folders in it; expected one folder of images for each class")
    return names


def _listed_classes(path: Path, expected: list[str]) -> list[str]:
    try:
        names = sorted({line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""})
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.classes={path}: cannot read it as text ({error})") from error
    if not names:
        raise InputError(f"data.classes={path}: empty; expected one class folder a line")
    if unknown := sorted({*names} - {*expected}):
        raise InputError(f"data.classes={path}: {unknown[0]} is not a class folder of the training images")
    return names


_SOURCES: dict[str, Callable[[DataConfig, str], ArraySource | FileSource]] = {
    "imagefolder": _open_folder,
    "cifar10": _open_cifar,
    "cifar100": _open_cifar,
    "npz": _open_npz,
    "shapes": _open_shapes,
}
