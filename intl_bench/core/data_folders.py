"""Which data set a folder holds, and where near a wrong folder the right one is."""

import difflib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from intl_bench.core import inputs
from intl_bench.core.errors import BenchError

# Kinds of data, and the files and folders that show them.
MARKS: dict[str, tuple[str, ...]] = {
    "imagefolder": ("train", "val", "train.pack", "val.pack"),
    "cifar10": ("cifar-10-batches-py/batches.meta",),
    "cifar100": ("cifar-100-python/meta",),
    "coco": ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
    "voc": ("VOC2007/ImageSets/Main", "VOC2012/ImageSets/Main"),
    # as torchvision's data sets have them
    "food101": ("food-101/meta/train.json",),
    "cars": ("stanford_cars/devkit/cars_train_annos.mat",),
    "aircraft": ("fgvc-aircraft-2013b/data/variants.txt",),
    "dtd": ("dtd/dtd/labels/train1.txt",),
    "pets": ("oxford-iiit-pet/annotations/trainval.txt",),
    "flowers102": ("flowers-102/setid.mat",),
    "sun397": ("SUN397/ClassName.txt",),
    "caltech101": ("caltech101/101_ObjectCategories",),
    "voc07": ("VOCdevkit/VOC2007/ImageSets/Main",),
}
# Folders that operating systems, archives, network disks and notebooks make beside classes or within them.
SYSTEM_FOLDER = re.compile(
    r"\.[^/]*|__MACOSX|__pycache__|@eaDir|#eadir|@SynoResource|@__thumb|@tmp|@Recycle|@Recently-Snapshot|#recycle"
    r"|#snapshot|\$RECYCLE\.BIN|System Volume Information|lost\+found|_gsdata_|CVS",
    re.IGNORECASE,
)
_OTHER_NAMES = {"train": ("training",), "val": ("valid", "validation", "test", "testing")}
SET_ROOT = "; set data.root=PATH"  # the end of a hint about a folder that does not exist
_SIDEWAYS = 300  # folders or files of a level that are looked at
_LARGEST = 2**35  # bytes of annotations
_COCO_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


def kind_of(root: Path) -> str | None:
    """Return the kind of data in a folder, one of `MARKS`, or "npz" for a file; None if it is unknown.

    Annotations are also found in other usual places than those of the published sets. Class folders in both train/ and
    val/ come before them, because annotations may lie beside classes.
    """
    if root.suffix == ".npz" and root.is_file():
        return "npz"
    if all((root / f"{name}.pack").exists() or any(_folders(root / name)) for name in ("train", "val")):
        return "imagefolder"
    marked = [kind for kind, marks in MARKS.items() if any((root / mark).exists() for mark in marks)]
    if published := [kind for kind in marked if kind != "imagefolder"]:
        return published[0]
    if (root / "ImageSets").is_dir():
        return "voc"
    if instances_files(root):
        return "coco"
    return "imagefolder" if marked else None


def holder_of(kind: str, root: Path) -> Path | None:
    """Return the folder that holds the marked folder of a kind: `root`, or its parent if `root` is the marked folder.

    Returns:
        None if neither holds it.
    """
    for mark in MARKS[kind]:
        if (root / mark).exists():
            return root
        if root.name == mark.split("/")[0] and (root.parent / mark).exists():
            return root.parent
    return None


def labeled_kinds(root: Path) -> list[str]:
    """Return the kinds of labeled images that a folder holds, or the kind of an .npz file."""
    if kind_of(root) in ("imagefolder", "npz"):
        return [str(kind_of(root))]
    return [kind for kind in MARKS if kind not in ("imagefolder", "coco", "voc") and holder_of(kind, root) is not None]


def instances_files(root: Path) -> list[Path]:
    """Return the files with objects in COCO's form in the first usual place that has any; instances_* come first."""
    for pattern in ("annotations/*.json", "*.json", "*/*.json"):
        paths = sorted(root.glob(pattern), key=lambda path: (not path.name.startswith("instances"), path))
        if found := [path for path in paths[:_SIDEWAYS] if _is_coco(path)]:
            return found
    return []


def _is_coco(path: Path) -> bool:
    """Tell whether a JSON file has the keys of COCO's objects. Parsing a large file would take long."""
    try:
        content = inputs.read_bytes(path, largest=_LARGEST).replace(b"\0", b"")  # as UTF-16 and UTF-32 have
    except BenchError:
        return False
    return all(key in content for key in _COCO_KEYS)


class Hint(NamedTuple):
    """Where the right data are.

    Attributes:
        text: the end of an error; it begins with "; ", or is "" if nothing near is known.
        root: the right folder, or None.
        command: a shell command that mends the folder or shows what is there, or "".
    """

    text: str = ""
    root: Path | None = None
    command: str = ""


def where_instead(root: Path, marks: Sequence[str], own: str | None = None) -> Hint:
    """Find out where the files are that are missing in a folder.

    Args:
        root: the value of data.root, in which none of `marks` is.
        marks: relative paths, one of which the right folder has.
        own: the kind of data that was asked for; the folder may hold it without these files.
    """
    if not root.exists():
        return _misspelled(root)
    for near in (*_above(root), *_below(root)):
        if any((near / mark).exists() for mark in marks):
            return Hint(f"; they are in {near}: did you mean data.root={near}?", root=near)
    kind = kind_of(root)
    if kind not in (None, own) and not set(MARKS.get(kind, ())) & set(marks):
        if kind in ("coco", "voc"):
            return Hint(f"; {root} holds data for intl-bench {kind}; intl-bench data check {root} names its settings")
        return Hint(f"; {root} holds other data: did you mean data.kind={kind}?")
    return Hint()


def split_instead(root: Path, name: str) -> Hint:
    """Find out where the folder `name`, train/ or val/, of an image folder is: at another level or of another name."""
    kind = kind_of(root)
    if kind != "imagefolder" and (elsewhere := where_instead(root, MARKS["imagefolder"])).text:
        return elsewhere
    for other in _OTHER_NAMES[name]:
        if (root / other).is_dir():
            command = shlex.join(["ln", "-s", other, str(root / name)])
            return Hint(f"; found {root / other}: rename it, or link it with {command}", command=command)
    classes = [one.name for one in _below(root) if one.parent == root and _has_images(one)]
    if classes and kind is None:
        shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
        return Hint(
            f"; its class folders ({shown}) are not split: move them into {root / 'train'}, and some images of each "
            f"class into {root / 'val'}",
            command=shlex.join(["mkdir", str(root / "train"), str(root / "val")]),
        )
    if name == "val" and (root / "train").is_dir():
        return Hint(
            f"; scores need images that were not trained on: move some images of each class of {root / 'train'} into "
            f"{root / 'val'}, in a folder of the same name"
        )
    if kind is None and _has_images(root):
        return Hint(
            f"; its images are in no class folders: move them into {root / 'train' / 'CLASS'} and some of each class "
            f"into {root / 'val' / 'CLASS'}, or all into {root / 'train' / 'all'} to pre-train without labels"
        )
    return Hint()


def _misspelled(root: Path) -> Hint:
    """Find the nearest name beside the first part of a path that does not exist."""
    missing = next(path for path in (*reversed(root.absolute().parents), root.absolute()) if not path.exists())
    names = [one.name for one in _folders(missing.parent)]
    near = difflib.get_close_matches(missing.name, names, n=1)
    found = missing.parent / near[0] if near else None
    if found is None:
        command = shlex.join(["ls", str(missing.parent)])
        return Hint(f"; {missing.parent} has no {missing.name}{SET_ROOT}", command=command)
    right = found / root.absolute().relative_to(missing)
    return Hint(f"; {missing} does not exist: did you mean data.root={right}?", root=right)


def _above(root: Path) -> list[Path]:
    """Return the two folders above a folder, as they would be typed."""
    parents = [Path(os.path.normpath(root / above)) for above in ("..", "../..")]
    return [parent for parent in parents if parent != Path(root.anchor)]


def _below(root: Path) -> Iterator[Path]:
    """Yield the folders within a folder, then those within them."""
    level = list(_folders(root))
    yield from level
    for folder in level:
        yield from _folders(folder)


def _folders(root: Path) -> list[Path]:
    """Return the first folders within a folder; none if it cannot be read."""
    try:
        names = sorted(
            entry.name for entry in os.scandir(root) if entry.is_dir() and not SYSTEM_FOLDER.fullmatch(entry.name)
        )
    except OSError:
        return []
    return [root / name for name in names[:_SIDEWAYS]]


def _has_images(folder: Path) -> bool:
    try:
        return any(entry.name.lower().endswith(_IMAGES) for entry in os.scandir(folder))
    except OSError:
        return False
