"""The files of an image folder, `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, without those of operating systems.

For a folder without system files, the result is that of torchvision's `ImageFolder`.
"""

import functools
import json
import os
import re
import shlex
import sys
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from intl_bench.core import inputs
from intl_bench.core.data_folders import SYSTEM_FOLDER, split_instead
from intl_bench.core.errors import InputError, from_os_error
from intl_bench.core.inputs import shorten
from pretrain.images.names import Names, did_you_mean, explain_line, read_lines, require_one
from pretrain.images.walk import walk

FOLDERS = {"train": "train", "test": "val"}  # split: folder of an imagefolder

_IN_SYSTEM_FOLDER = re.compile(f"/(?:{SYSTEM_FOLDER.pattern})/", re.IGNORECASE)
_APPLE_DOUBLE = re.compile(r"/\._[^/]*$")  # where macOS keeps the attributes of a file on other disks
_IMAGE = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM|RIFF|II[*+]\0|MM\0[*+]|P[1-7fFy]")  # first bytes


class Listing(NamedTuple):
    """The images of a split.

    Attributes:
        files: (n,) bytes, names relative to the folder of the split.
        labels: (n,) int64.
        class_names: the name of each label.
    """

    files: np.ndarray
    labels: np.ndarray
    class_names: list[str]


class ClassError(InputError):
    """Error for classes that only one split has, or that have no images.

    Attributes:
        classes: their folders in the split.
    """

    def __init__(self, message: str, classes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.classes = list(classes)


def list_images(root: Path, split: str, classes: str | None, skip: Sequence[str]) -> Listing:
    """List the images of the split "train" or "test" of the image folder `root`.

    The class folders of train/ define the labels: a class without test images must not shift other labels.

    Args:
        classes: a file with the class folders to use; None uses all.
        skip: patterns of the class folders and the files to leave out, see `patterns_for`.

    Raises:
        ClassError: a class has no images or is unknown.
        BenchError: a folder is missing or cannot be read, a name can mean two classes, or a link goes in a circle.
    """
    folder, train = root / FOLDERS[split], root / "train"
    odd_names = {name for name in FOLDERS.values() if any((root / part / name).is_dir() for part in FOLDERS.values())}
    patterns = patterns_for(skip, folder.name, odd_names)
    present, ignored, skipped_classes = _class_folders(folder, patterns)
    expected = present
    if train != folder and train.is_dir():
        expected = _class_folders(train, patterns_for(skip, train.name, odd_names))[0]
    class_names = expected if classes is None else listed_classes(Path(classes), expected)
    folder_of = _match_folders(folder, present, expected, None if classes else train)
    wanted = {folder_of[name]: number for number, name in enumerate(class_names) if name in folder_of}
    samples, skipped_files = [], list[str]()
    for path, label in _image_files(folder, wanted):
        name = path.removeprefix(f"{folder}{os.sep}")
        if _IN_SYSTEM_FOLDER.search(name) or (_APPLE_DOUBLE.search(name) and not _is_image(path)):
            ignored.append(name)
        elif is_skipped(name, patterns):
            skipped_files.append(name)
        else:
            samples.append((os.fsencode(name), label))
    if ignored:
        what = "file or folder" if len(ignored) == 1 else "files or folders"
        _note(f"{folder}: {len(ignored)} system {what} ignored, such as {shorten(ignored[0])}")
    note_skipped(folder, len(skipped_files), len(skipped_classes))
    left = unmatched(skip, odd_names, {folder.name: [*skipped_classes, *skipped_files]})
    note_unmatched(root, unmatched(left, odd_names, {part: _names_in(root / part) for part in FOLDERS.values()}))
    labels = np.array([label for _, label in samples], np.int64)
    if empty := without_images(labels, class_names):
        raise ClassError(_describe_empty(folder, empty, folder_of, len(class_names), patterns), empty)
    return Listing(np.array([name for name, _ in samples]), labels, class_names)


def _image_files(folder: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield the path and the label of each file with a suffix of images, in the order of torchvision."""
    for name, label in sorted(wanted.items()):
        for place, _, files in sorted(walk(folder / name)):
            for file in sorted(files):
                if file.lower().endswith(IMG_EXTENSIONS):
                    yield os.path.join(place, file), label


def listed_classes(path: Path, expected: Sequence[str]) -> list[str]:
    """Read a list of class folders, one per line, and return the names in `expected` that it means, sorted.

    Raises:
        InputError: the list cannot be read or is empty, or a name is unknown or can mean two classes.
    """
    known, where = Names(expected), f"data.classes={path}"
    names = set()
    for line in read_lines(path, "the class list"):
        if not (found := known.find(line)):
            hint = explain_line(line, lambda name: bool(known.find(name))) or did_you_mean(line, expected)
            raise InputError(f"{where}: {shorten(line)} is not a class folder of the training images{hint}")
        names.add(require_one(found, line, where))
    if not names:
        raise InputError(f"{where}: empty; expected one class folder per line")
    return sorted(names)


def patterns_for(skip: Sequence[str], folder: str, classes: Collection[str]) -> list[str]:
    """Return the patterns of `data.skip` that hold in a split, relative to its folder.

    A pattern that begins with train/ or val/ holds in that split alone.

    Args:
        folder: the folder of the split, "train" or "val".
        classes: names of class folders. A pattern that begins with one of them means the class, also if it is "train".
    """
    found = []
    for pattern in skip:
        first, _, rest = pattern.partition("/")
        if not rest or first in classes or first not in FOLDERS.values():
            found.append(pattern)
        elif first == folder:
            found.append(rest)
    return found


def is_skipped(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a pattern of `patterns_for` matches a class folder or a file, given relative to the split's folder.

    A pattern is one of Python's `fnmatch`: `*` also matches `/`. The spelling of accents does not matter.
    """
    plain = unicodedata.normalize("NFC", name) if patterns else name
    return any(fnmatchcase(plain, unicodedata.normalize("NFC", pattern)) for pattern in patterns)


def unmatched(skip: Sequence[str], classes: Collection[str], names: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the patterns of `data.skip` that match no name.

    Args:
        classes: see `patterns_for`.
        names: for the folder of each split the names of class folders and files. They are read only as far as needed.
    """
    left = list(skip)
    for folder, of_folder in names.items():
        for name in of_folder if left else ():
            left = [pattern for pattern in left if not is_skipped(name, patterns_for([pattern], folder, classes))]
            if not left:
                break
    return left


def without_images(labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Return the classes that no label stands for."""
    counts = np.bincount(labels, minlength=len(class_names)).tolist()
    return [name for name, count in zip(class_names, counts, strict=True) if not count]


def note_skipped(place: Path, files: int, classes: int) -> None:
    """Print how many files and class folders `data.skip` leaves out, if there are any."""
    parts = [f"{classes} class folder{'' if classes == 1 else 's'}"] if classes else []
    if files:
        parts.append(f"{files} file{'' if files == 1 else 's'}{' of other classes' if classes else ''}")
    if parts:
        _note(f"{place}: data.skip leaves out {' and '.join(parts)}")


def note_unmatched(root: Path, patterns: Sequence[str]) -> None:
    """Print the patterns of `data.skip` that match nothing in any split."""
    for pattern in patterns:
        bracket = "; a [ of a name is written [[]" if "[" in pattern else ""
        _note(
            f"{root}: data.skip: {shorten(pattern)} matches no class folder and no image file; expected a pattern such "
            f"as CLASS, CLASS/FILE or train/CLASS/FILE{bracket}"
        )


def _names_in(folder: Path) -> Iterator[str]:
    """Yield the class folders of a split and the files that have a suffix of images, relative to its folder."""
    for place, folders, files in walk(folder):
        if Path(place) == folder:
            yield from folders
        for name in files:
            if name.lower().endswith(IMG_EXTENSIONS):
                yield os.path.relpath(os.path.join(place, name), folder)


def _class_folders(folder: Path, patterns: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the class folders in `folder`, the system folders and the class folders that are left out, all sorted."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        known = from_os_error(error, f"cannot read the image folder {folder} of data.root")
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise InputError(f"{known}{split_instead(folder.parent, folder.name).text}") from error
        raise known from error
    for entry in entries:  # a class whose disk is not mounted would be missing without a word
        passed_over = SYSTEM_FOLDER.fullmatch(entry.name) or is_skipped(entry.name, patterns)
        if entry.is_symlink() and not os.path.exists(entry.path) and not passed_over:
            raise InputError(
                f"{entry.path}: a link to {os.readlink(entry.path)}, which is not there; mend or remove the link, or "
                f"leave it out with {skip_setting([entry.name])}"
            )
    found = [entry.name for entry in entries if os.path.isdir(entry.path)]
    system = [name for name in found if SYSTEM_FOLDER.fullmatch(name)]
    candidates = [name for name in found if name not in system]
    skipped = [name for name in candidates if is_skipped(name, patterns)]
    names = [name for name in candidates if name not in skipped]
    if not names:
        raise InputError(f"{folder}: contains no class folders; expected one folder of images per class")
    return names, system, skipped


def _match_folders(folder: Path, present: Sequence[str], expected: Sequence[str], train: Path | None) -> dict[str, str]:
    """Return the folder of each class that has one. It may be spelled differently than the class.

    Args:
        train: the folder of the training images, to name in the error for an unknown class; None ignores such classes.
    """
    known, folder_of = Names(expected), {name: name for name in present if name in set(expected)}
    for name in present:
        if name in folder_of:
            continue
        found = known.find(name)
        if not found and train is not None:
            raise ClassError(
                f"{folder / name}: unknown class; expected the class folders of {train}; add training images of it, or "
                f"leave it out with {skip_setting([name])}{did_you_mean(name, expected)}",
                [name],
            )
        if found and (other := folder_of.setdefault(require_one(found, name, str(folder)), name)) != name:
            raise InputError(
                f"{folder}: both {shorten(other)} and {shorten(name)} can be the folder of the class "
                f"{shorten(found[0])}; rename or remove one"
            )
    return folder_of


def _describe_empty(
    folder: Path, empty: Sequence[str], folder_of: dict[str, str], classes: int, patterns: Sequence[str]
) -> str:
    """Say which classes have no images in `folder`, why, and what to do."""
    place = folder / folder_of.get(empty[0], empty[0])
    files = [name for _, _, names in walk(place) for name in names]
    if not place.is_dir():
        reason = f"the class is in {folder.parent / 'train'}, but this folder does not exist"
    elif any(name.lower().endswith(IMG_EXTENSIONS) for name in files):
        reason = "data.skip leaves out its files" if patterns else "its images are those of the operating system"
    else:
        reason = f"none of its {len(files)} files has a suffix of images" if files else "the folder is empty"
    return (
        f"{place}: no images of this class: {reason}; {len(empty)} of {classes} classes have none here; expected files "
        f"with the suffix {', '.join(IMG_EXTENSIONS)}; add them, or leave classes out with {without_classes(empty)}"
    )


def without_classes(classes: Sequence[str]) -> str:
    """Write a setting that leaves out classes, as it is typed in a shell."""
    return skip_setting(classes) if len(classes) <= 3 else "data.classes=FILE, a list of the other classes"


def skip_setting(names: Sequence[str]) -> str:
    """Write a setting that leaves out class folders or files, as it is typed in a shell."""
    patterns = ["".join(f"[{c}]" if c in "*?[" else c for c in name) for name in names]
    return shlex.quote(f"data.skip={json.dumps(patterns, ensure_ascii=False)}")


def _is_image(path: str) -> bool:
    return _IMAGE.match(inputs.read_bytes(path)) is not None


@functools.cache
def _note(line: str) -> None:
    """Print a line once, however often the folder is opened."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)
