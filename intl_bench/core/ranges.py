"""The ranges of values in configurations, declared as types of their fields: `epochs: Count = 800`.

The bounds are wide. They refuse what cannot be meant, such as a NaN, a negative count, or a size that no memory holds.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

_LARGE = 1e30  # float32 holds it, and its square root


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`, both included. `above` excludes `least` itself, `below` excludes `most`."""

    least: float
    most: float
    above: bool = False
    below: bool = False

    def check(self, key: str, value: object) -> None:
        """Raise `ValueError` unless `value` is in the range. Values that are not numbers are checked elsewhere."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return
        shown = str(value) if not isinstance(value, int) or abs(value) < 10**20 else "an integer of more than 20 digits"
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}={shown}: expected a finite number")
        if value < self.least or (self.above and value == self.least):
            raise ValueError(f"{key}={shown}: expected {'more than' if self.above else 'at least'} {self.least:g}")
        if value > self.most or (self.below and value == self.most):
            raise ValueError(f"{key}={shown}: expected {'less than' if self.below else 'at most'} {self.most:g}")


@dataclasses.dataclass(frozen=True)
class Choice:
    """Some texts."""

    values: tuple[str, ...]

    def check(self, key: str, value: object) -> None:
        """Raise `ValueError` unless `value` is one of the texts. Values that are no text are checked elsewhere."""
        if isinstance(value, str) and value not in self.values:
            raise ValueError(f"{key}={value:.60}: expected {', '.join(self.values[:-1])} or {self.values[-1]}")


Device = Annotated[str, Choice(("auto", "cpu", "cuda"))]
Natural = Annotated[int, Range(0, 10**9)]
Count = Annotated[int, Range(1, 10**9)]
SEEDS = Range(0, 2**63 - 1)
Layers = Annotated[int, Range(1, 256)]
Iterations = Annotated[int, Range(1, 1000)]  # of an algorithm within a step
Seed = Annotated[int, SEEDS]
Workers = Annotated[int, Range(0, 512)]  # processes that load data
Width = Annotated[int, Range(1, 2**20)]  # of a layer, or a number of classes
Classes = Annotated[int, Range(2, 2**20)]
Pixels = Annotated[int, Range(1, 2**14)]
Share = Annotated[float, Range(0, 1)]  # a probability, a momentum, a part of a whole
Fraction = Annotated[float, Range(0, 1, below=True)]
Part = Annotated[float, Range(0, 1, above=True, below=True)]  # of a whole that is divided in two
NonNegative = Annotated[float, Range(0, _LARGE)]
Positive = Annotated[float, Range(0, _LARGE, above=True)]
Finite = Annotated[float, Range(-_LARGE, _LARGE)]

_UNDECLARED = Range(-_LARGE, _LARGE)  # of other people's configurations


def is_text(schema: type, key: str) -> bool | None:
    """Return whether the field of a dotted key may be None, if its type is text; None if it has another type."""
    hint = field_type(schema, key)
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return {str: False, str | None: True}.get(hint)


def field_type(schema: type, key: str) -> Any:
    """Return the declared type of the field of a dotted key such as "views.0.size"; None if there is no such field."""
    hint: Any = schema
    for part in key.split("."):
        section = section_of(hint)
        hint = field_types(section).get(part) if section else item_of(hint)
    return hint


@functools.cache
def field_types(schema: type) -> dict[str, Any]:
    """Return the declared types of the fields of a dataclass, with their ranges."""
    return typing.get_type_hints(schema, include_extras=True)


def section_of(hint: Any) -> type | None:
    """Return the declared type of a field if it is a dataclass, else None."""
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def main_field(section: type, value: str) -> str:
    """Return the field of a section that a text for the section itself means: the one that allows it, root, or name."""
    for name, hint in field_types(section).items():
        if any(isinstance(one, Choice) and value in one.values for one in typing.get_args(hint)[1:]):
            return name
    return next(name for name in ("root", "name", *field_types(section)) if name in field_types(section))


def item_of(hint: Any) -> Any:
    """Return the type of the items of a field that is declared as a list, else None."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) in (list, tuple) else None


def check(schema: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Check the values of a configuration against the ranges of their fields.

    Args:
        schema: the dataclass of the configuration.
        values: by name of the field; sections are mappings or dataclasses.
        prefix: of the names, for the message.

    Raises:
        ValueError: the message names the field, the value and the bound.
    """
    for name, hint in field_types(schema).items():
        if name in values:
            _check(hint, values[name], f"{prefix}{name}")


class Checked:
    """Base class of a configuration, whose numbers are checked when it is made.

    Raises:
        ValueError: see `check`.
    """

    def __post_init__(self) -> None:
        check(type(self), vars(self))


def _check(hint: Any, value: Any, key: str) -> None:
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        for declared in parts[1:]:
            if isinstance(declared, Range | Choice):
                declared.check(key, value)
    elif kind in (typing.Union, types.UnionType):
        for part in parts:
            _check(part, value, key)
    elif kind is tuple and isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if isinstance(item, list | dict) and not dataclasses.is_dataclass(parts[0]):
                raise ValueError(f"{key}[{index}]: found {item!s:.60}; expected one value")
            _check(parts[0], item, f"{key}[{index}]")
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if dataclasses.is_dataclass(value):
            check(hint, vars(value), f"{key}.")
        elif isinstance(value, Mapping):
            check(hint, value, f"{key}.")
    elif hint in (int, float):
        _UNDECLARED.check(key, value)
