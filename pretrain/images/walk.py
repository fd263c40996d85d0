"""The files below a folder of images. Links are followed, as torchvision does, but not in a circle."""

import os
from collections.abc import Iterator
from pathlib import Path

from intl_bench.core.data_folders import SYSTEM_FOLDER
from intl_bench.core.errors import InputError, from_os_error


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each folder with its subfolders and files as `os.walk` does; nothing for a folder that does not exist.

    Faults in system folders are passed over.

    Raises:
        BenchError: a folder cannot be read, whose images would be missing without a word; or a link leads to a folder
            that holds it, below which every image would count again.
    """

    def fail(error: OSError) -> None:
        if not (isinstance(error, FileNotFoundError) or _is_system(error.filename, folder)):
            raise from_os_error(error, f"{error.filename}: cannot read this folder of images") from error

    _refuse_circle(str(folder), folder)
    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not _refuse_circle(os.path.join(place, name), folder)]
        yield place, folders, files


def _refuse_circle(path: str, folder: Path) -> bool:
    """Return whether a path in a system folder is a link to a folder that holds it; refuse such a link elsewhere."""
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    holders = map(os.path.realpath, Path(os.path.abspath(path)).parents)
    if not any(os.path.commonpath([holder, target]) == target for holder in holders):
        return False
    if not _is_system(path, folder):
        raise InputError(
            f"{path}: a link to {target}, which holds this link; its images would count again and again; remove it"
        )
    return True


def _is_system(path: str, folder: Path) -> bool:
    return any(SYSTEM_FOLDER.fullmatch(part) for part in os.path.relpath(path, folder).split(os.sep) if part != ".")
