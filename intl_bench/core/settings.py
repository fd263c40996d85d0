"""The settings of a configuration as its dataclass declares them: key, meaning, type, default and allowed values.

The meaning is the entry of a field in the section `Attributes:` of the docstring. An entry may describe several fields:
`min_scale, max_scale: range of the area of the crop`.
"""

import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from typing import Annotated, Any

from intl_bench.core.identity import mark
from intl_bench.core.ranges import Choice, Range, field_types, item_of, section_of

_WIDE = 10**9  # a bound of this size only refuses what no memory holds
_KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a configuration.

    Attributes:
        key: as it is typed, such as "data.root"; "views.N.size" for item N of a list of sections.
        kind: its type and its allowed values, for people.
        default: `dataclasses.MISSING` if it must be given. A tuple of the values where the items of a list differ.
        meaning: "" if the docstring has none.
        decides: "*" if its value can change a result, "+" if the content of the files that it names can, else "".
    """

    key: str
    kind: str
    default: Any
    meaning: str
    decides: str


def settings(schema: type, values: Any = None, prefix: str = "") -> list[Setting]:
    """Return the settings of a configuration in the order of its fields. Those of a section stay together.

    Args:
        schema: the dataclass.
        values: an instance, whose values replace the defaults.
        prefix: of the keys.
    """
    found: list[Setting] = []
    for field in dataclasses.fields(schema):
        hint = field_types(schema)[field.name]
        default = _default(field) if values is None else getattr(values, field.name)
        if section := section_of(hint):
            inner = settings(section, None if default is dataclasses.MISSING else default, f"{prefix}{field.name}.")
            found += inner if mark(field) else [dataclasses.replace(one, decides="") for one in inner]
        elif item := section_of(item_of(hint)):
            found += _of_list(item, default, f"{prefix}{field.name}.N.")
        else:
            found.append(
                Setting(
                    key=prefix + field.name,
                    kind=_kind(hint),
                    default=default,
                    meaning=_meanings(schema).get(field.name, ""),
                    decides=mark(field),
                )
            )
    return found


def near_keys(schema: type, key: str) -> list[str]:
    """Return the keys that an unknown key can mean; [] if none is near.

    The name may be misspelled, or belong to another section (`root` for `data.root`), or lack a word (`lr` for
    `base_lr`).
    """
    known = [one.key for one in settings(schema)]
    known += list(dict.fromkeys(one.rpartition(".")[0] for one in known if "." in one))
    plain = re.sub(r"\[(\d+)\]|\.\d+(?=\.)", ".N", key)
    if (dotted := plain.replace("_", ".", 1)) in known:
        return [dotted]
    section, _, name = plain.rpartition(".")
    siblings = [one.rpartition(".")[2] for one in known if one.rpartition(".")[0] == section]
    if near := difflib.get_close_matches(name, siblings, n=1):
        return [f"{section}.{near[0]}".replace(".N", "").lstrip(".")]
    names = [(one, one.rpartition(".")[2]) for one in known]
    elsewhere = [one for one, last in names if last == name]
    longer = [one for one, last in names if set(name.split("_")) <= set(last.split("_"))]
    similar = difflib.get_close_matches(name, [last for _, last in names], n=1, cutoff=0.75)
    return (elsewhere or longer or [one for one, last in names if last in similar])[:3]


def _of_list(item: type, default: Any, prefix: str) -> list[Setting]:
    found = settings(item, None, prefix)
    if default is dataclasses.MISSING or not default:
        return found
    rows = zip(*(settings(item, one, prefix) for one in default), strict=True)
    values = [tuple(one.default for one in row) for row in rows]
    return [
        dataclasses.replace(one, default=own[0] if len(set(map(str, own))) == 1 else own)
        for one, own in zip(found, values, strict=True)
    ]


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _kind(hint: Any) -> str:
    """Describe a type and its allowed values: "whole number of at least 1", "text or null"."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return " ".join([_kind(parts[0]), *filter(None, map(_limits, parts[1:]))]).removeprefix("text : ")
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _kind(part) for part in parts)
    if origin in (list, tuple):
        return f"list, each {_kind(parts[0])}"
    return "section" if origin is dict else _KINDS.get(hint, "value")


def _limits(declared: Any) -> str:
    if isinstance(declared, Choice):
        return f": {', '.join(declared.values[:-1])} or {declared.values[-1]}"
    if not isinstance(declared, Range):
        return ""
    least = f"{'more than' if declared.above else 'at least'} {declared.least:,g}" if declared.least > -_WIDE else ""
    most = f"{'less than' if declared.below else 'at most'} {declared.most:,g}" if declared.most < _WIDE else ""
    if least and most and not declared.above and not declared.below:
        return f"from {declared.least:,.0f} to {declared.most:,.0f}"
    return ", ".join(filter(None, (least, most)))


@functools.cache
def _meanings(schema: type) -> dict[str, str]:
    """Return the entries of the section `Attributes:` of a docstring, by name."""
    found: dict[str, str] = {}
    _, _, section = inspect.cleandoc(schema.__doc__ or "").partition("\nAttributes:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    for entry in re.split(r"\n(?= {4}\S)", section):
        names, _, text = entry.partition(":")
        text = re.sub(r"\bNone\b", "null", " ".join(text.split()))
        found |= dict.fromkeys("".join(names.split()).split(","), text)
    return found
