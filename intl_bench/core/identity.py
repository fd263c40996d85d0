"""Whether two configurations are the same experiment.

Every field of a configuration decides the result, unless it is declared `runtime_only` where it is defined. So a new
setting tells experiments apart from its first day, and no other module keeps a list of settings.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any

SCALES = ("paper", "adapted", "reduced", "demo")

_RUNTIME_ONLY = "runtime_only"
_EVERY_VALUE_PUBLISHED = "every_value_published"


def runtime_only(default: Any = dataclasses.MISSING) -> Any:
    """Declares a field that changes no result: where data lie, how often a state is saved, on which device a run is."""
    return dataclasses.field(default=default, metadata={_RUNTIME_ONLY: True})


def every_value_published(default: Any) -> Any:
    """Declares a field that decides the result, but whose allowed values all belong to the published protocol.

    The share of labels of semi-supervised evaluation, 1% and 10%, is one.
    """
    return dataclasses.field(default=default, metadata={_EVERY_VALUE_PUBLISHED: True})


def identity(config: Any) -> dict[str, Any]:
    """What decides the result of a configuration dataclass, as plain JSON-able values, nested as the dataclass is.

    A dataclass may have a method `unused`: the names of the fields that nothing looks at beside its other values, such
    as the temperature of a vote without weights.
    """
    unused = config.unused() if hasattr(config, "unused") else ()
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if _RUNTIME_ONLY not in field.metadata and field.name not in unused
    }


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of an identity's canonical JSON, as 64 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def same_protocol(one: Any, other: Any) -> bool:
    """Whether two configurations of one dataclass differ at most in fields declared `every_value_published`."""
    free = {field.name for field in dataclasses.fields(one) if _EVERY_VALUE_PUBLISHED in field.metadata}
    first, second = ({k: v for k, v in identity(config).items() if k not in free} for config in (one, other))
    return first == second


def is_runtime_only(schema: type, key: str) -> bool:
    """Whether the field that a dotted key such as "data.root" names, of a dataclass, is declared `runtime_only`."""
    name, _, rest = key.partition(".")
    field = next((field for field in dataclasses.fields(schema) if field.name == name), None)
    if field is None or _RUNTIME_ONLY in field.metadata:
        return field is not None
    inner = typing.get_type_hints(schema)[name]
    return bool(rest) and isinstance(inner, type) and dataclasses.is_dataclass(inner) and is_runtime_only(inner, rest)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return identity(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    return json.loads(json.dumps(value))
