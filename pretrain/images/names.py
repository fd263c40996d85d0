"""Names of files and classes in lists, written on another computer than the one with the files.

macOS writes a letter and its accent as two characters (NFD), others as one (NFC). Windows separates folders by
backslashes. Editors replace spaces and add them at the ends of lines. A name is therefore looked up as it is written
first, and then in any spelling.
"""

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from intl_bench.core import inputs
from intl_bench.core.errors import InputError

_HEADERS = ("class", "classname", "file", "filename", "image", "imageid", "label", "name", "path", "wnid")
_LONGEST = 200  # characters of a name that is compared with all others
_LINE_ENDS = re.compile("\r\n|\n|\r")  # str.splitlines() splits names that contain rare separators, such as U+0085


def read_lines(path: Path, what: str) -> list[str]:
    """Read the lines of a text file that are not blank; `what` names it in messages.

    Raises:
        InputError: the file cannot be read, or is not text.
    """
    text = inputs.read_text(path, what)
    if "\0" in text:
        raise InputError(f"{what} {path}: not UTF-8 text (it has zero bytes, as UTF-16 has); save it as UTF-8")
    return [line for line in _LINE_ENDS.split(text) if line.strip()]


def fold(name: str) -> str:
    """Return a text that is the same for all spellings of a name or a path."""
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return "/".join(" ".join(part.split()) or part for part in parts if part)


class Names:
    """Known names, to look others up in."""

    def __init__(self, known: Iterable[str]) -> None:
        self._known = set(known)
        self._folded: dict[str, list[str]] | None = None  # made when it is needed

    def find(self, name: str) -> list[str]:
        """Return the known names that `name` can mean: only itself if it is known."""
        if name in self._known:
            return [name]
        if self._folded is None:
            self._folded = {}
            for known in sorted(self._known):
                self._folded.setdefault(fold(known), []).append(known)
        return self._folded.get(fold(name), [])


def explain_line(line: str, is_known: Callable[[str], bool]) -> str:
    """Say why a line of a list names nothing, and what to write, as the end of a message; "" if the reason is unknown.

    Args:
        is_known: tells whether a name is one that the list may hold.
    """
    plain = line.strip()
    bare = plain.rstrip(",;").strip("\"'`")
    first = re.split(r"[\s,;]+", bare)[0].strip("\"'`")
    if plain.startswith(("#", "//")):
        return ": a list has no comments; remove the line"
    if bare != plain and is_known(bare):
        return f": quotation marks and commas are parts of a name; write {bare}"
    if first != bare and is_known(first):
        return f": a line has one name and no second column; write {first}"
    title = re.sub(r"[\W_]", "", first.casefold())
    if title in _HEADERS or title.removesuffix("s") in _HEADERS:
        return ": a list has no header; remove the line"
    return ""


def find_similar(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that differs from `name` in case, in folders before it, or in few letters but no digit."""
    if len(name) > _LONGEST:
        return None
    by_form = {_similar_form(other): other for other in known}
    form = _similar_form(name)
    for candidate in (form, form.rpartition("/")[2]):
        if candidate in by_form:
            return by_form[candidate]
    digits = re.sub(r"\D", "", form)
    forms = [other for other in by_form if re.sub(r"\D", "", other) == digits]
    near = difflib.get_close_matches(form, forms, n=1, cutoff=0.75)
    return by_form[near[0]] if near else None


def _similar_form(name: str) -> str:
    return fold(name).casefold()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean NAME?" for the similar known name; "" if there is none."""
    similar = find_similar(name, known)
    return "" if similar is None else f"; did you mean {inputs.shorten(similar)}?"


def require_one(found: list[str], name: str, where: str) -> str:
    """Return the only name found.

    Raises:
        InputError: there are several.
    """
    if len(found) > 1:
        choices = " or ".join(map(inputs.shorten, found[:3]))
        raise InputError(
            f"{where}: {inputs.shorten(name)} can mean {choices}, which differ only in folders, spaces or accents; "
            "write the whole name as it is on the disk, or rename one"
        )
    return found[0]
