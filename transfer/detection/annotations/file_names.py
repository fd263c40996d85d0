"""Find the image files that annotations name, on a computer that spells their names differently; see `fold`."""

import os
import re
from pathlib import Path

from pretrain.images.names import fold

# Control characters, line separators, and surrogates, which no file has.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_DRIVE = re.compile(r"[A-Za-z]:\\")


def is_safe(name: str) -> bool:
    """Tell whether a name is a path inside a folder, without control characters, as Linux or as Windows reads it."""
    parts = name.replace("\\", "/").split("/")
    absolute = parts[0] == "" or _DRIVE.match(name)
    return not (absolute or ".." in parts or _UNSAFE.search(name) or not name.strip("./"))


class Spellings:
    """The files below a folder, in any spelling. A folder is listed when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> list[str]:
        """Return the names of the existing files that a name can mean, relative to the folder."""
        found = self._find(name)
        if "\\" in name:
            found += [other for other in self._find(name.replace("\\", "/")) if other not in found]
        return found

    def _find(self, name: str) -> list[str]:
        places = [""]
        for part in name.split("/"):
            if part in ("", "."):
                continue
            places = [
                f"{place}/{entry}" if place else entry
                for place in places
                for entry in self._list(place).get(fold(part), [])
            ]
        return places

    def _list(self, place: str) -> dict[str, list[str]]:
        if place not in self._listed:
            entries: dict[str, list[str]] = {}
            try:
                for entry in sorted(os.listdir(self._folder / place)):
                    entries.setdefault(fold(entry), []).append(entry)
            except OSError:  # not a folder: no file is there
                pass
            self._listed[place] = entries
        return self._listed[place]
