"""Functions that flatten identities to dotted keys and describe the keys and values in words."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_FINGERPRINT = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")
# The start of a dotted key and the words that replace it in a label
_PRETRAINING = {"settings.": "", "initial_weights": "initial weights"}
_EVALUATION = {"settings.": "", "data.train": "training data", "data.test": "test data", "dataset": "data set"}


def flatten(values: Mapping[str, Any]) -> dict[str, str]:
    """Return {dotted key: value as text}: {"projector": {"out": 64}} becomes {"projector.out": "64"}.

    The position in a list is part of the key. A list of plain values, such as a mean of three channels, is one value.
    """
    return dict(_flat(values, ""))


def _flat(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _flat(part, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple) and any(isinstance(part, Mapping | list | tuple) for part in value):
        for place, part in enumerate(value):
            yield from _flat(part, f"{key}.{place}")
    else:
        yield key, _leaf(value)


def _leaf(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ({}, [], ()):
        return "none"
    return " ".join(map(_leaf, value)) if isinstance(value, list | tuple) else str(value)


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key of nested mappings; None if there is none."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a copy of nested mappings without the value at a dotted key."""
    first, _, rest = key.partition(".")
    return {
        name: without(value, rest) if name == first and rest and isinstance(value, Mapping) else value
        for name, value in values.items()
        if name != first or rest
    }


def has_fingerprint(text: str) -> bool:
    """Return whether a value, or one of several values between slashes, is a SHA-256.

    A fingerprint shows that two values differ, but not how.
    """
    return _FINGERPRINT.search(text) is not None


def shorten_fingerprints(text: str) -> str:
    """Shorten each fingerprint in a value to its first eight digits."""
    return _FINGERPRINT.sub(r"\1", text)


def readable_key(part: str, key: str) -> str:
    """Return a dotted key in words, such as "pre-training projector.out".

    Args:
        part: the identity that the key belongs to, "pretraining" or "evaluation".
    """
    if key.startswith("known."):  # from the summary in a record of schema 1
        return key.removeprefix("known.").replace("pretrain_", "pre-training ", 1).replace("_", " ")
    names = _PRETRAINING if part == "pretraining" else _EVALUATION
    start = next((start for start in names if key.startswith(start)), "")
    short = names[start] + key.removeprefix(start) if start else key
    return f"pre-training {short}" if part == "pretraining" else short


def natural_sort_key(text: str) -> list[tuple[float, str]]:
    """Return a sort key that compares numbers in a text by value: 128 before 1024, and 1e-05 before 0.001."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return [(float(part) if n % 2 else 0.0, part) for n, part in enumerate(parts)]
