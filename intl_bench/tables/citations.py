"""The works that tables cite: `published/references.bib`, looked up by method, by arXiv number and by repository."""

import dataclasses
import functools
import re
from collections.abc import Iterable
from importlib import resources

from intl_bench import published

_ENTRY = re.compile(r"^@\w+\{([^,]+),\n(.*?)^\}\n", flags=re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"^  (\w+) = \{(.*)\},$", flags=re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Work:
    """One entry of the bibliography: its key, its text in BibTeX, and its fields."""

    key: str
    text: str
    fields: dict[str, str]


@functools.cache
def works() -> tuple[Work, ...]:
    """Return all entries in the order of the file."""
    text = resources.files(published).joinpath("references.bib").read_text(encoding="utf-8")
    return tuple(Work(found[1], found[0], dict(_FIELD.findall(found[2]))) for found in _ENTRY.finditer(text))


def key_of_method(label: str) -> str | None:
    """Return the key of the method that a label begins with, such as "SimSiam (200 epochs)"; None for others."""
    keys = {name.lower(): work.key for work in works() for name in work.fields.get("keywords", "").split(", ") if name}
    for name in sorted(keys, key=len, reverse=True):
        if re.match(rf"{re.escape(name)}(?![\w-])", label.lower()):
            return keys[name]
    return None


def key_of_arxiv(number: str) -> str | None:
    """Return the key of a paper, such as "2305.16789"."""
    return next((work.key for work in works() if work.fields.get("eprint") == number), None)


def key_of_repository(name: str) -> str | None:
    """Return the key of a repository of GitHub, such as "facebookresearch/moco"."""
    return next((work.key for work in works() if work.fields.get("url") == f"https://github.com/{name}"), None)


def bibliography(keys: Iterable[str]) -> str:
    """Return these entries in BibTeX."""
    wanted = set(keys)
    return "\n".join(work.text for work in works() if work.key in wanted)
