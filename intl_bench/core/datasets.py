"""The facts of the paper's data sets: the only table of them."""

import dataclasses
import re
from collections.abc import Sequence

from intl_bench.core.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """A data set as published.

    Attributes:
        classes: how many.
        train, test: images of the splits; of COCO's training images those with an object that is no crowd.
        class_names: of a detection data set's categories, in the order of their ids; else empty.
        wnids: whether the classes are named as WordNet's numbers, such as n01440764.
        side: height and width of all images in pixels; None where they differ.
    """

    classes: int
    train: int
    test: int
    class_names: tuple[str, ...] = ()
    wnids: bool = False
    side: int | None = None


_WNID = re.compile(r"n[0-9]{8}")
_COCO = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard"),
    *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors"),
    *("teddy bear", "hair drier", "toothbrush"),
)
_VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

PAPER: dict[str, Facts] = {
    "imagenet": Facts(classes=1000, train=1_281_167, test=50_000, wnids=True),
    "imagenet100": Facts(classes=100, train=126_689, test=5_000, wnids=True),
    "cifar10": Facts(classes=10, train=50_000, test=10_000, side=32),
    "cifar100": Facts(classes=100, train=50_000, test=10_000, side=32),
    "coco2017": Facts(classes=80, train=117_266, test=5_000, class_names=_COCO),
    "voc0712": Facts(classes=20, train=16_551, test=4_952, class_names=_VOC),
}
_ALIASES = {"coco": "coco2017", "voc": "voc0712", "imagenet1k": "imagenet", "ilsvrc2012": "imagenet"}
_REMEDY = "give these images a name of their own with data.name=NAME"


def canonical(name: str) -> str:
    """A name as `PAPER` has it, however it is spelled there, such as "CIFAR-10"; any other name as it is."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    key = _ALIASES.get(key, key)
    return key if key in PAPER else name


def check_images(
    name: str,
    kind: str,
    where: str,
    class_names: Sequence[str],
    split: str,
    *,
    images: int,
    size: tuple[int, ...] | None,
) -> None:
    """Refuses a published name for images that are no part of that data set; a part with all classes may have it.

    Args:
        name: of a data set, one of `PAPER`.
        kind: how the images are stored, as in `data.kind`.
        where: they are, for the message.
        split: "train" or "test".
        images: how many the split has.
        size: height and width of one of them in pixels; None where it is not known.

    Raises:
        InputError: the kind, the classes, the number of images or their size show it.
    """
    facts = PAPER[name]
    if facts.class_names:  # a detection data set, whose images may be cut up for classification
        return
    noun = "class folders" if kind == "imagefolder" else "classes"
    expected = f"expected {facts.classes:,}{' named as n01440764' if facts.wnids else ''}"
    others = [one for one in class_names if facts.wnids and not _WNID.fullmatch(one)]
    most = facts.train if split == "train" else facts.test
    if facts.side and kind not in (name, "npz", "imagefolder"):
        found = f"data.kind={kind} has other images, expected data.kind={name}, npz or imagefolder"
    elif len(class_names) != facts.classes:
        found = f"{where or kind} has {len(class_names):,} {noun}, {expected}"
    elif others:
        found = f"{where or kind} has {noun} such as {others[0]!r}, {expected}"
    elif images > most:
        found = f"{where or kind} has {images:,} {split} images, expected at most {most:,}"
    elif facts.side and size and size != (facts.side, facts.side):
        found = f"{where or kind} has an image of {size[1]} x {size[0]} pixels, expected {facts.side} x {facts.side}"
    else:
        return
    raise InputError(f"data.name={name}: {found}; {_REMEDY}")


def check_categories(name: str, *, where: str, category_names: Sequence[str]) -> None:
    """Refuses the name of a published detection data set for annotations with other categories than its own.

    Raises:
        InputError: a category is missing, or is none of them.
    """
    facts = PAPER.get(canonical(name))
    own, given = set(facts.class_names if facts else ()), set(category_names)
    if not own or own == given:
        return
    such = f", such as {min(given - own)!r}" if given - own else f" without {min(own - given)!r}"
    raise InputError(
        f"data.name={name}: {where} has {len(given)} categories{such}, expected the {len(own)} of {name}; {_REMEDY}"
    )
