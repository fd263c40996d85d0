"""Settings as they are typed: `key=value`, with a dotted key for a setting of a section."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of all sections as {dotted key: value}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def as_typed(value: Any) -> str:
    """Return a value as it is typed: as YAML; a text or a path stays as it is.

    Raises:
        TypeError, ValueError: it is not a number, a text, a list, a section or None.
    """
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    return json.dumps(list(value) if isinstance(value, Sequence) else value, ensure_ascii=False)
