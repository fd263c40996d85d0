"""Identities as dotted keys and short words."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_FINGERPRINT = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")
# How the start of a dotted key is called
_PRETRAINING = {"settings.": "", "initial_weights": "initial weights"}
_EVALUATION = {"settings.": "", "data.train": "training data", "data.test": "test data", "dataset": "data set"}


def flatten(values: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> value as text: {"projector": {"out": 64}} -> {"projector.out": "64"}.

    Places in a list count as keys; but a list of plain values, such as a mean of three channels, is one value.
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


def at(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key of nested objects, None where there is none."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A copy of nested objects without the value at a dotted key."""
    first, _, rest = key.partition(".")
    return {
        name: without(value, rest) if name == first and rest and isinstance(value, Mapping) else value
        for name, value in values.items()
        if name != first or rest
    }


def has_fingerprint(text: str) -> bool:
    """Whether a value, or one of several between slashes, is a SHA-256: it tells two apart without saying how."""
    return _FINGERPRINT.search(text) is not None


def shown(text: str) -> str:
    """A value as a label has it: the first digits of a fingerprint."""
    return _FINGERPRINT.sub(r"\1", text)


def name(part: str, key: str) -> str:
    """What a dotted key of a part, "pretraining" or "evaluation", is called: "pre-training projector.out"."""
    if key.startswith("known."):  # of an earlier version's summary
        return key.removeprefix("known.").replace("pretrain_", "pre-training ", 1).replace("_", " ")
    names = _PRETRAINING if part == "pretraining" else _EVALUATION
    start = next((start for start in names if key.startswith(start)), "")
    short = names[start] + key.removeprefix(start) if start else key
    return f"pre-training {short}" if part == "pretraining" else short


def natural(text: str) -> list[tuple[float, str]]:
    """Sorts numbers in a text as numbers: a batch of 128 before one of 1024, a rate of 1e-05 before one of 0.001."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return [(float(part) if n % 2 else 0.0, part) for n, part in enumerate(parts)]
