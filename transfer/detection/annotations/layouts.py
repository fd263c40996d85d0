"""Find the annotation files and image folders of a detection data set by their usual places."""

from pathlib import Path
from typing import Any

from intl_bench.core.data_folders import instances_files
from intl_bench.core.errors import InputError
from transfer.detection.annotations.documents import load_json

_WORDS = {"train": ("train",), "test": ("val", "valid", "test")}  # parts of the names of files and folders
_LISTS = (("trainval.txt", "test.txt"), ("train.txt", "val.txt"), ("train.txt", "test.txt"))
_YEARS = ("VOC2007", "VOC2012")


def find_files(root: Path, kind: str) -> dict[str, Any]:
    """Return the settings of `AnnotatedDataConfig` that name the files in `root`, except those that are default.

    The files of a split that cannot be found are left out.
    """
    return _find_lists(root) if kind == "voc" else _find_documents(root)


def _find_lists(root: Path) -> dict[str, Any]:
    if (root / _YEARS[0] / "ImageSets" / "Main" / "trainval.txt").is_file():  # VOC itself
        return {}
    for year in ("", *_YEARS):
        folder = root / year / "ImageSets" / "Main"
        for train, test in _LISTS:
            if (folder / train).is_file() and (folder / test).is_file():
                place = folder.relative_to(root)
                return {"name": root.resolve().name, "train": [str(place / train)], "test": [str(place / test)]}
    return {}


def _find_documents(root: Path) -> dict[str, Any]:
    files = [path.relative_to(root) for path in instances_files(root)]
    if any(path.name == "instances_train2017.json" for path in files):
        return {}
    found: dict[str, Any] = {"name": root.resolve().name}
    for split, words in _WORDS.items():
        others = [path for path in files if split == "train" or "train" not in path.name.lower()]  # not trainval.json
        named = [path for word in words for path in others if word in str(path).lower()]
        chosen = next(iter(named or (files if len(files) == 1 else [])), None)
        if chosen is not None:
            found[split] = [str(chosen)]
            if (folder := _find_images(root, chosen, words)) is not None:
                found[f"{split}_images"] = folder
    return found


def _find_images(root: Path, document: Path, words: tuple[str, ...]) -> str | None:
    """Return the folder that has the first image of a document."""
    try:
        name = load_json(root / document, "the annotations")[0]["images"][0]["file_name"]
    except (InputError, LookupError, TypeError):
        return None
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    near = [folder for word in words for folder in folders if word in folder.lower()]
    places = [document.parent, *map(Path, near), Path("images"), *(Path("images") / word for word in words), Path()]
    places += [Path(folder) for folder in folders]
    return next((str(place) for place in places if isinstance(name, str) and (root / place / name).is_file()), None)
