"""Whether two configurations are the same experiment.

Every field of a configuration determines the result, unless it is declared `runtime_only`, `by_content` or `shorthand`
where it is defined. A new setting therefore distinguishes experiments from its first day. No other module keeps a list
of settings.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any

SCALES = ("paper", "adapted", "reduced", "demo")

_RUNTIME_ONLY = "runtime_only"
_BY_CONTENT = "by_content"
_SHORTHAND = "shorthand"
_EVERY_VALUE_PUBLISHED = "every_value_published"


def runtime_only(default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that changes no result, such as the place of the data or the device of a run."""
    return dataclasses.field(default=default, metadata={_RUNTIME_ONLY: True})


def by_content(default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that names files, such as the place of the data, or chooses some of them.

    The value itself determines nothing. The content of the files does, and its digest is a part of the identity.
    """
    return dataclasses.field(default=default, metadata={_RUNTIME_ONLY: True, _BY_CONTENT: True})


def shorthand(default: Any) -> Any:
    """Declare a field that is resolved into other fields, which then hold its value."""
    return dataclasses.field(default=default, metadata={_RUNTIME_ONLY: True, _SHORTHAND: True})


def every_value_published(default: Any) -> Any:
    """Declare a field that determines the result and whose allowed values all belong to the published protocol.

    An example is the percentage of labels of semi-supervised evaluation, 1 or 10.
    """
    return dataclasses.field(default=default, metadata={_EVERY_VALUE_PUBLISHED: True})


def identity(config: Any) -> dict[str, Any]:
    """Return the values of a configuration dataclass that determine its result, as nested plain JSON values.

    A dataclass may have a method `unused`. It returns the names of fields that have no effect because of other values,
    such as the temperature of a vote without weights.
    """
    unused = config.unused() if hasattr(config, "unused") else ()
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if _RUNTIME_ONLY not in field.metadata and field.name not in unused
    }


def digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an identity's canonical JSON, as 64 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def same_protocol(one: Any, other: Any) -> bool:
    """Return whether two configurations of one dataclass differ at most in fields declared `every_value_published`."""
    free = {field.name for field in dataclasses.fields(one) if _EVERY_VALUE_PUBLISHED in field.metadata}
    first, second = ({k: v for k, v in identity(config).items() if k not in free} for config in (one, other))
    return first == second


def is_runtime_only(schema: type, key: str) -> bool:
    """Return whether a dataclass declares the field of a dotted key such as "data.root" as one that changes no result.

    A shorthand does, through the fields that it is resolved into.
    """
    name, _, rest = key.partition(".")
    field = next((field for field in dataclasses.fields(schema) if field.name == name), None)
    if field is None or _RUNTIME_ONLY in field.metadata:
        return field is not None and _SHORTHAND not in field.metadata
    inner = typing.get_type_hints(schema)[name]
    return bool(rest) and isinstance(inner, type) and dataclasses.is_dataclass(inner) and is_runtime_only(inner, rest)


def mark(field: "dataclasses.Field[Any]") -> str:
    """Return "*" if the value of a field can change a result, "+" if the content that it names can, else ""."""
    if _BY_CONTENT in field.metadata:
        return "+"
    return "" if _RUNTIME_ONLY in field.metadata and _SHORTHAND not in field.metadata else "*"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return identity(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    return json.loads(json.dumps(value))
