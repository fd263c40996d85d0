"""The facts of the published data sets: the only table of them (docs/add_a_dataset.md)."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from intl_bench.core.errors import InputError

Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """A data set as published.

    Attributes:
        title: its name in tables.
        classes: number of classes.
        train, test: number of images of the splits. COCO's training images count with an object that is not a crowd.
        images: number of images of both splits, where users choose the splits; else None.
        normalization: mean and standard deviation of red, green and blue, for pixels from 0 to 1; None: ImageNet's.
        aliases: other spellings of the name, in lower case, without punctuation.
        class_names: the categories of a detection data set in the order of their ids; else empty.
        wnids: whether the classes are named by WordNet's numbers, such as n01440764.
        side: height and width of all images in pixels; None where images differ in size.
        listed: number of images in SimCLR's lists for semi-supervised training, by percent.
        detectron2: the training and test sets under the names by which Detectron2 registers them.
    """

    title: str
    classes: int
    train: int
    test: int
    images: int | None = None
    normalization: Normalization | None = None
    aliases: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    wnids: bool = False
    side: int | None = None
    listed: Mapping[int, int] = dataclasses.field(default_factory=dict)
    detectron2: tuple[tuple[str, ...], tuple[str, ...]] | None = None


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
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

# By name. A name is kept for these images: `check_images` and `check_categories` refuse it for others.
DATASETS: dict[str, Facts] = {
    "imagenet": Facts(
        title="ImageNet",
        classes=1000,
        train=1_281_167,
        test=50_000,
        wnids=True,
        aliases=("imagenet1k", "ilsvrc2012"),
        listed={1: 12_811, 10: 128_116},
    ),
    "imagenet100": Facts(title="ImageNet-100", classes=100, train=126_689, test=5_000, wnids=True),
    "cifar10": Facts(
        title="CIFAR-10",
        classes=10,
        train=50_000,
        test=10_000,
        side=32,
        normalization=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ),
    "cifar100": Facts(
        title="CIFAR-100",
        classes=100,
        train=50_000,
        test=10_000,
        side=32,
        normalization=((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ),
    "coco2017": Facts(
        title="COCO",
        classes=80,
        train=117_266,
        test=5_000,
        aliases=("coco",),
        class_names=_COCO,
        detectron2=(("coco_2017_train",), ("coco_2017_val",)),
    ),
    "voc0712": Facts(
        title="PASCAL VOC",
        classes=20,
        train=16_551,
        test=4_952,
        aliases=("voc",),
        class_names=VOC_CLASSES,
        detectron2=(("voc_2007_trainval", "voc_2012_trainval"), ("voc_2007_test",)),
    ),
    # of `intl-bench transfer`; training images include those of the data set's own validation part
    "food101": Facts(title="Food-101", classes=101, train=75_750, test=25_250),
    "sun397": Facts(title="SUN397", classes=397, train=19_850, test=19_850),
    "cars": Facts(title="Cars", classes=196, train=8_144, test=8_041, aliases=("stanfordcars",)),
    "aircraft": Facts(title="Aircraft", classes=100, train=6_667, test=3_333, aliases=("fgvcaircraft",)),
    "voc07": Facts(title="VOC07", classes=20, train=5_011, test=4_952),
    "dtd": Facts(title="DTD", classes=47, train=3_760, test=1_880),
    "pets": Facts(title="Pets", classes=37, train=3_680, test=3_669, aliases=("oxfordpets", "oxfordiiitpet")),
    "caltech101": Facts(title="Caltech-101", classes=102, train=3_060, test=6_084, images=9_144),
    "flowers102": Facts(title="Flowers-102", classes=102, train=2_040, test=6_149, aliases=("oxfordflowers102",)),
}
_REMEDY = "give these images a name of their own with data.name=NAME"


def canonical(name: str) -> str:
    """Return the name in `DATASETS` of a data set in any spelling, such as "CIFAR-10", or an unknown name unchanged."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((own for own, facts in DATASETS.items() if key in (own, *facts.aliases)), name)


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
    """Refuse a published name for images of another data set. A part of the data set with all classes may use it.

    Args:
        name: of a data set, one of `DATASETS`.
        kind: how the images are stored, as in `data.kind`.
        where: location of the images, for the message.
        split: "train" or "test".
        images: number of images of the split.
        size: height and width of one image in pixels; None if unknown.

    Raises:
        InputError: the kind, the classes, the number or the size of the images differ.
    """
    facts = DATASETS[name]
    if facts.class_names:  # a detection data set, whose images may be cut up for classification
        return
    noun = "class folders" if kind == "imagefolder" else "classes"
    expected = f"expected {facts.classes:,}{' named as n01440764' if facts.wnids else ''}"
    others = [one for one in class_names if facts.wnids and not _WNID.fullmatch(one)]
    most = facts.images or (facts.train if split == "train" else facts.test)
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
    """Refuse the name of a published detection data set for annotations with other categories.

    Raises:
        InputError: a category is missing or unknown.
    """
    facts = DATASETS.get(canonical(name))
    own, given = set(facts.class_names if facts else ()), set(category_names)
    if not own or own == given:
        return
    such = f", such as {min(given - own)!r}" if given - own else f" without {min(own - given)!r}"
    raise InputError(
        f"data.name={name}: {where} has {len(given)} categories{such}, expected the {len(own)} of {name}; {_REMEDY}"
    )
