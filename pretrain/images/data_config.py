"""The settings of a data set."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

from intl_bench.core import datasets
from intl_bench.core.data_folders import holder_of
from intl_bench.core.identity import by_content, runtime_only
from intl_bench.core.names import require_title
from intl_bench.core.ranges import Checked, Choice, Count, Finite, Part, Positive, Seed
from pretrain.images.decode import LARGEST
from pretrain.images.sample import count_of

IMAGENET_NORMALIZATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SHAPES_NORMALIZATION = ((0.5, 0.5, 0.5), (0.29, 0.29, 0.29))
_SETS = ("food101", "cars", "aircraft", "dtd", "pets", "flowers102", "sun397", "caltech101", "voc07")
KINDS = ("imagefolder", "cifar10", "cifar100", "npz", "shapes", *_SETS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """Settings of a data set.

    Attributes:
        kind: "imagefolder" (`train/CLASS/*.jpg` and `val/CLASS/*.jpg`, or packs of these folders), "cifar10" or
            "cifar100" (unpacked files of the Python version), "npz" (arrays train_x, train_y, test_x, test_y),
            "shapes" (generated images), or a data set in the folders that torchvision's data sets have: "food101",
            "cars", "aircraft", "dtd", "pets", "flowers102", "sun397", "caltech101" or "voc07".
        root: the folder that holds the images, or the .npz file.
        name: name of the data set in results. None stands for the folder name of an imagefolder or the file name of
            an .npz file without its suffix; for the other kinds it stands for the kind. The names of the paper's data
            sets are reserved: other images are refused under such a name.
        classes: a text file with one class folder per line; only these classes are used (imagefolder).
        skip: patterns of the class folders and the image files to leave out, relative to the folder of a split, such as
            "*/broken_*.jpg" (image files). `*` also matches `/`. A pattern that begins with train/ or val/ is for that
            split alone, unless a class has this name.
        max_pixels: larger image files are refused, because a small file can fill the memory. Raise it for images that
            you trust.
        on_bad_image: what to do with an image that cannot be decoded. "stop" ends the run; "skip" replaces the image by
            the next one during training. Changed bytes in a pack always end the run.
        mean, std: three values each, red, green and blue, for pixels in 0..1. None selects those of the data set, or
            ImageNet's.
        download: whether torchvision downloads a data set of its own to `root` if it is missing.
        size: number of training images (shapes); the test split has a quarter of this number.
        limit: train on a part of the training images, drawn at random with the same share of every class: a share such
            as 0.1, or a number of images such as 1000. The test images stay whole. None takes all.
        limit_seed: seed of this draw. A smaller limit is a part of a larger one of the same seed.
        holdout: hold out this share of the training images, with the same share of every class, and use it in the place
            of the test images, which are not read. So settings are chosen without the test images. None holds out none.
        holdout_seed: seed of this draw.
    """

    kind: Annotated[str, Choice(KINDS)] = "imagefolder"
    root: str = by_content("")
    name: str | None = runtime_only(None)
    classes: str | None = by_content(None)
    skip: tuple[str, ...] = by_content(())
    max_pixels: Count = runtime_only(LARGEST)
    # With "stop", a run that finishes had no bad image.
    on_bad_image: Annotated[str, Choice(("stop", "skip"))] = runtime_only("stop")
    mean: tuple[Finite, ...] | None = None
    std: tuple[Positive, ...] | None = None
    download: bool = runtime_only(False)
    size: Count = 2048
    limit: Positive | None = None
    limit_seed: Seed = 0
    holdout: Part | None = None
    holdout_seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "shapes" and self.root:
            raise ValueError(f"data.root={self.root}: data.kind=shapes generates its images; set data.kind=imagefolder")
        if self.name is not None:
            require_title(self.name, "data.name")
        if self.classes is not None and self.kind != "imagefolder":
            raise ValueError(f"data.classes={self.classes}: data.kind={self.kind} has no class folders; remove it")
        if self.skip and self.kind not in ("imagefolder", *_SETS):
            raise ValueError(f"data.skip={list(self.skip)}: data.kind={self.kind} has no image files; remove it")
        if self.download and self.kind not in ("cifar10", "cifar100", *_SETS):
            raise ValueError(f"data.download=true: data.kind={self.kind} cannot be downloaded; remove it")
        for field, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != 3:
                raise ValueError(f"data.{field}={values}: expected three numbers (red, green, blue)")
        if not 40 <= self.size <= 10**7:
            raise ValueError(f"data.size={self.size}: expected 40, for one test image of each class, to 10000000")
        if self.limit is not None and self.limit >= 1:
            if self.limit != int(self.limit):
                raise ValueError(f"data.limit={self.limit}: expected a share below 1, or a whole number of images")
            object.__setattr__(self, "limit", int(self.limit))

    def unused(self) -> set[str]:
        """Return the fields that this kind does not use; see `intl_bench.core.identity.identity`."""
        names = set() if self.kind == "shapes" else {"size"}
        names |= {"limit", "limit_seed"} if self.limit is None else set()
        return names | ({"holdout", "holdout_seed"} if self.holdout is None else set())

    @property
    def dataset(self) -> str:
        """Name of the data set in results."""
        name = self.name
        if name is None and self.root and self.kind in ("imagefolder", "npz"):
            root = Path(os.path.abspath(os.path.expanduser(self.root)))
            name = root.name if self.kind == "imagefolder" else root.stem
        return datasets.canonical(name or self.kind)

    def published_numbers(self, facts: datasets.Facts) -> tuple[int, int]:
        """Return the numbers of training and test images of a data set that are used."""
        train, test = facts.train, facts.test
        if self.limit is not None:
            train = min(train, count_of(self.limit, train))
        if self.holdout is not None:
            test = round(self.holdout * train)
            train -= test
        return train, test

    @property
    def is_absent(self) -> bool:
        """Whether the images are not there yet, so that a dry run knows them from publications alone."""
        root = Path(os.path.expanduser(self.root))
        if self.kind == "shapes":
            return False
        there = root.exists() if self.kind == "npz" else holder_of(self.kind, root) is not None
        return self.download or not self.root or not there


def normalization(config: DataConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of red, green and blue, for pixels in 0..1.

    A value that `config` does not set comes from its kind, else from the data set that it names, else from ImageNet.
    """
    facts = datasets.DATASETS.get(config.kind) or datasets.DATASETS.get(config.dataset)
    own = (facts and facts.normalization) or IMAGENET_NORMALIZATION
    if config.kind == "shapes":
        own = _SHAPES_NORMALIZATION
    elif config.kind == "imagefolder" and facts and facts.side:
        own = IMAGENET_NORMALIZATION  # CIFAR as a folder, as in earlier versions
    return tuple(config.mean or own[0]), tuple(config.std or own[1])
