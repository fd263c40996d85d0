"""Give the categories of the test images the order of those of the training images, by their names."""

import collections
import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np

from intl_bench.core.errors import InputError
from intl_bench.core.inputs import shorten
from transfer.detection.annotations.objects import Annotations

_SHOWN = 5  # names in a message


def normalize(name: str) -> str:
    """Return the form of a category's name by which names are compared: NFC, without spaces around it."""
    return unicodedata.normalize("NFC", name).strip()


def match_categories(train: Annotations, test: Annotations) -> Annotations:
    """Return `test` with class indices that mean the same names as in `train`. Its ids stay those of its file.

    If a file has a name twice, the names do not tell its categories apart. Then both files must have the same ids
    with the same names.

    Raises:
        InputError: the names differ.
    """
    names = [[normalize(name) for name in part.category_names] for part in (train, test)]
    own, other = names
    for part, its_names in zip((train, test), names, strict=True):
        name, count = collections.Counter(its_names).most_common(1)[0]
        if count > 1 and (train.category_ids, own) != (test.category_ids, other):
            ids = [one for one, its_name in zip(part.category_ids, its_names, strict=True) if its_name == name]
            raise InputError(
                f"{part.path}: the categories {_join(ids)} have the same name {shorten(name)}, and the categories of "
                f"{train.path} and {test.path} differ; expected different names, or the same ids and names in both "
                "files; rename the categories"
            )
    if set(own) != set(other):
        raise InputError(_describe_difference(train, test, own, other))
    if own == other:
        return test
    index = {name: position for position, name in enumerate(own)}
    classes = np.array([index[name] for name in other])
    return dataclasses.replace(
        test,
        category_ids=tuple(test.category_ids[position] for position in np.argsort(classes)),
        category_names=train.category_names,
        classes=classes[test.classes],
    )


def _describe_difference(train: Annotations, test: Annotations, own: list[str], other: list[str]) -> str:
    """Describe which names only one of the files has."""
    only = [[name for name in one if name not in two] for one, two in ((own, other), (other, own))]
    parts = [f"only {part.path} has {_join(names)}" for part, names in zip((train, test), only, strict=True) if names]
    similar = [[_simplify(name) for name in names] for names in only]
    alike = " (the names differ only in case, spaces or hyphens)" if sorted(similar[0]) == sorted(similar[1]) else ""
    return (
        f"{test.path}: its categories differ from those of {train.path}: {'; '.join(parts)}{alike}; expected the same "
        "names in both files; correct the names, data.train or data.test"
    )


def _simplify(name: str) -> str:
    """Remove what careless copies of a name differ in."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in folded if not letter.isspace() and letter not in "-_")


def _join(values: Sequence[object]) -> str:
    shown = [shorten(value, 40) for value in values[:_SHOWN]]
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return f"{', '.join(shown)}{more}"
