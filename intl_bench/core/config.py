"""Configuration: YAML files and `a.b=c` overrides into frozen keyword-only dataclasses, through OmegaConf.

A file may inherit from another one with `base: other.yaml`, relative to itself, or with the name of a packaged one. An
unknown key is an error that names the nearest known key. The types of the fields declare the ranges of numbers
(`ranges`). Each dataclass checks its other values in `__post_init__` and raises `ValueError`.

Files and overrides hold plain values only. OmegaConf's interpolation could read the environment, and aliases of YAML
could fill the memory: interpolation is refused, and what aliases repeat is counted.

Every value is read as text, and the field that gets it decides what the text means. So a name may be `on`, `0123` or
`2024_01_01`. Only an unquoted `null`, `~` or nothing is no text. Where a list of texts is expected, a text is its only
item, and nothing is the empty list. `views.size=64` sets the size of all views.
"""

import dataclasses
import difflib
import json
import os
import re
import typing
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent, YAMLError

from intl_bench.core import inputs, ranges, settings
from intl_bench.core.errors import InputError

T = TypeVar("T")

_MAX_BYTES, _MAX_NODES, _MAX_DEPTH = 10**6, 20_000, 50
_MAX_INTEGER = 10**30
_FEW = 20  # names in a message
_LONGEST = 400  # characters of a message of OmegaConf, which may quote a value
_KINDS = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
_EVENTS: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_PACKAGE = Path(__file__).resolve().parents[1]
# An installed wheel holds the files inside the package. A checkout holds them beside it.
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def find(name: str, kind: str) -> Path:
    """Find a config file: a path, or the name of a file in configs/`kind`/ such as `cifar10_r18_intl`.

    Raises:
        InputError: there is no such file; the message lists the packaged names.
    """
    found = _find(name, kind, Path())
    if found is not None:
        return found
    known = sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))
    near = difflib.get_close_matches(Path(name).stem, known, n=1)
    listed = ", ".join(known) if len(known) <= _FEW else f"intl-bench ls recipes lists {len(known)}"
    hint = f"did you mean {near[0]}?" if near else f"packaged {kind} configs: {listed}"
    raise InputError(f"config {name}: no such file; {hint}")


def _find(name: str, kind: str, folder: Path) -> Path | None:
    """Return the file that a name means: a path relative to `folder`, or the name of a packaged file."""
    packaged = (CONFIGS / kind / f"{name}.yaml", CONFIGS / kind / name, CONFIGS.parent / name, CONFIGS / name)
    return next(filter(None, map(_existing, (folder / os.path.expanduser(name), *packaged))), None)


def _existing(path: Path) -> Path | None:
    """Return the file of a path, whose accents may be composed differently: macOS decomposes them, Linux keeps them."""
    found = path if str(path).isascii() else _spelled(path)
    return found if found is not None and found.is_file() else None


def _spelled(path: Path) -> Path | None:
    """Return an existing path that differs at most in the composition of accents."""
    if path.exists() or path == path.parent:
        return path
    folder, name = _spelled(path.parent), unicodedata.normalize("NFC", path.name)
    if folder is None or not folder.is_dir():
        return None
    same = (entry for entry in sorted(os.listdir(folder)) if unicodedata.normalize("NFC", entry) == name)
    return next((folder / entry for entry in same), None)


def read(path: Path, kind: str = "") -> dict[str, Any]:
    """Read a YAML file as a plain dictionary. Its values win over those of its `base`.

    Args:
        kind: the folder of configs/ in which a `base` that is a name is looked up. By default it is looked up in all.

    Raises:
        InputError: the file cannot be read or is not valid.
    """
    return _read(path, kind, ())


def _read(path: Path, kind: str, above: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file and its base. `above` are the files that it is the base of."""
    where = " is the base of ".join(str(file) for file in (path, *reversed(above)))
    if path.resolve() in {file.resolve() for file in above}:
        raise InputError(f"config {where}: a file cannot be the base of itself; correct `base`")
    try:
        text = inputs.decode_text(inputs.read_bytes(path, largest=_MAX_BYTES))
    except UnicodeDecodeError as error:
        raise InputError(f"config {where}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except InputError as error:
        raise InputError(f"config {where}: {error}") from error
    values = _parse(text, f"config {where}")
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"config {where}: expected `key: value` lines at the top level")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise InputError(f"config {where}: base is {base!r}; expected the path of a file, such as base: other.yaml")
    below = _read(_find_base(base, path.parent, kind, f"config {where}"), kind, (*above, path))
    # A value of the file holds for every checkpoint, even if the base has another value for some checkpoints.
    sections = below.get("for_checkpoints")
    for section in sections.values() if isinstance(sections, dict) else ():
        _drop(section, values)
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(below, values)))


def _find_base(name: str, folder: Path, kind: str, where: str) -> Path:
    """Return the file of a `base`: a path relative to the folder of the config, or the name of a packaged config."""
    kinds = [kind] if kind else sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
    found = list(dict.fromkeys(path for one in kinds if (path := _find(name, one, folder))))
    if not found and os.path.basename(name) != Path(name).stem:
        return folder / os.path.expanduser(name)  # reading it says what is wrong
    if not found:
        known = [path.stem for one in kinds for path in sorted((CONFIGS / one).glob("*.yaml"))]
        near = difflib.get_close_matches(Path(name).stem, known, n=1)
        hint = f"did you mean base: {near[0]}?" if near else "expected a path from this file on, or a packaged config"
        raise InputError(f"{where}: base: {name}: no such file; {hint}")
    if len(found) > 1:
        several = " or ".join(f"{path.parent.name}/{path.stem}.yaml" for path in found)
        raise InputError(f"{where}: base: {name}: {len(found)} packaged configs have this name; write base: {several}")
    return found[0]


def _parse(text: str, where: str) -> Any:
    """Parse YAML to plain values.

    Raises:
        InputError: the text is not valid, too large, too deep, or holds an interpolation.
    """
    try:
        _require_bounded(text, where)
        values = OmegaConf.to_container(OmegaConf.create({"all": yaml.load(text, Loader=_Loader)}))
    except InputError:
        raise
    except (YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid YAML: {_one_line(error)}") from error
    values = cast(dict[str, Any], values)["all"]
    require_plain(values, where)
    return values


class _Loader(get_yaml_loader()):  # type: ignore[misc]
    """OmegaConf's loader, which reads all values as text but null."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def _as_written(loader: Any, node: yaml.ScalarNode) -> Any:
    """Return the text of a value with an explicit tag such as `!!bool on`, which is not the text "True".

    A number that text does not stand for, such as `!!int 0x1F`, remains a number.
    """
    if node.tag.endswith(":int"):
        number = loader.construct_yaml_int(node)
        return node.value if node.value == str(number) else number
    return loader.construct_scalar(node)


for _tag in ("bool", "int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _as_written)


def _require_bounded(text: str, where: str) -> None:
    """Refuse YAML with too many values, counting those that an alias repeats, or too many levels."""
    count, sizes, open_nodes = 0, dict[str, int](), list[tuple[str | None, int]]()
    for event in yaml.parse(text, Loader=_EVENTS):
        if isinstance(event, AliasEvent):
            if event.anchor not in sizes:
                raise InputError(f"{where}: the alias *{event.anchor} is unknown or a part of itself; expected values")
            count += sizes[event.anchor]
        elif isinstance(event, CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes |= {anchor: count - before} if anchor else {}
        elif isinstance(event, NodeEvent):
            count += 1
            if isinstance(event, CollectionStartEvent):
                sizes.pop(str(event.anchor), None)
                open_nodes.append((event.anchor, count))
            elif event.anchor:
                sizes[event.anchor] = 1
        if count > _MAX_NODES or len(open_nodes) > _MAX_DEPTH:
            raise InputError(f"{where}: more than {_MAX_NODES} values or {_MAX_DEPTH} levels; expected fewer")


def require_plain(value: Any, where: str) -> None:
    """Refuse what a configuration cannot mean: OmegaConf's interpolation, which could read the environment, in a key or
    a value, and integers of more than 30 digits.

    Raises:
        InputError: the message names the field.
    """
    if isinstance(value, str) and "${" in value:
        raise InputError(f"{where}: found {value[:60]!r}; ${{...}} is not supported; write the value itself")
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{where}: found a zero byte in {value[:60]!r}; leave it out")
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise InputError(f"{where}: found an integer of more than 30 digits; expected a smaller number")
    if isinstance(value, Mapping):
        for key, item in value.items():
            require_plain(key, where)
            require_plain(item, f"{where}: {key}")
    elif isinstance(value, list | tuple):
        for item in value:
            require_plain(item, where)


def build(schema: type[T], values: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> T:
    """Build an instance of the dataclass `schema` from `values` and then `overrides` ("a.b=c").

    Raises:
        InputError: a key is unknown, a type is wrong, or the dataclass refuses a value. The message starts with
            `where`.
    """
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise InputError(f"override {override!r}: expected key=value, such as epochs=100")
    try:
        require_plain(values, where)
        for override in overrides:
            require_plain(override, "override")
        # The nodes of the schema are frozen like the dataclass. They are thawed to be filled; the result is frozen.
        template = OmegaConf.structured(schema)
        _thaw(template)
        merged = OmegaConf.merge(template, _as_declared(schema, values, where))
        _thaw(merged)  # the merge makes new list items, which are frozen
        for override in overrides:
            key, _, text = override.partition("=")
            try:
                for one in _each_item(schema, key, merged):
                    value = _as_declared(ranges.field_type(schema, one), _read_override(schema, one, text), one, text)
                    OmegaConf.update(merged, one, value)
            except (LookupError, AssertionError, TypeError) as error:
                raise InputError(f"override {override[:80]}: {_one_line(error)}; expected key=value") from error
        ranges.check(schema, cast(Mapping[str, Any], OmegaConf.to_container(merged)))
        return cast(T, _with_tuples(OmegaConf.to_object(merged)))
    except (ConfigKeyError, ConfigAttributeError) as error:
        key, owner = str(error.key), error.object_type
        known = [field.name for field in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
        near = settings.near_keys(schema, str(error.full_key))
        hint = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known)}"
        raise InputError(f"{where}: unknown key {error.full_key!r}; {hint}") from error
    except (ValidationError, OmegaConfBaseException) as error:
        raise InputError(f"{where}: {_wrong_value(error)}") from error
    except InputError:
        raise
    except (ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{where}: {_one_line(error)}") from error


def _read_override(schema: type, key: str, text: str) -> Any:
    """Return the value of an override.

    For a field of type text it is the text itself, and for a list of texts the only item unless it begins with a
    bracket or is empty. For other fields it is what it means in YAML.
    """
    if ranges.is_text(schema, f"{key}.0") is False and not text.startswith("["):
        return [text] if text else []
    optional = ranges.is_text(schema, key)
    if optional is None:
        return _parse(text, f"override {key}={text[:80]}")
    return None if optional and text in ("", "null") else text


def _each_item(schema: type, key: str, values: DictConfig | ListConfig) -> list[str]:
    """Return the keys that an override sets: `views.size` means the size of each view."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        name = ".".join(parts[:end])
        if ranges.item_of(ranges.field_type(schema, name)) is None:
            continue
        count = len(OmegaConf.select(values, name) or ())
        if not parts[end].lstrip("-").isdigit():
            return [".".join((name, str(number), *parts[end:])) for number in range(count)]
        if int(parts[end]) >= count:
            raise InputError(f"override {key}: {name} has {count} items; expected {name}.0 to {name}.{count - 1}")
    return [key]


def _as_declared(hint: Any, value: Any, where: str, text: str | None = None) -> Any:
    """Return a value of a file or an override in the form of the declared type of its field.

    Args:
        hint: the type; None if the field is unknown, which OmegaConf refuses.
        where: the file and the field, or the key of an override.
        text: of the override.

    Raises:
        InputError: a section or a list of sections is one value. The message says how a setting of it is written.
    """
    section, item = ranges.section_of(hint), ranges.item_of(hint)
    if section and isinstance(value, Mapping):
        types = ranges.field_types(section)
        return {key: _as_declared(types.get(key), part, f"{where}: {key}") for key, part in value.items()}
    inner, key = section or ranges.section_of(item), where.rpartition(": ")[2]
    if isinstance(value, str) and (inner or typing.get_origin(hint) is dict):
        place = where if text is None else f"override {key}={value:.60}"
        what = f"{key} is {'a list of sections' if item else 'a section'}"
        name = ranges.main_field(inner, value) if inner else "name"
        raise InputError(f"{place}: {what}; write {key}.{name}={value:.60}")
    if section and isinstance(value, list):
        place = where if text is None else f"override {where}={text:.60}"
        raise InputError(f"{place}: {key} is a section; expected key=value for each setting")
    if item and inner and isinstance(value, Mapping):
        raise InputError(f"{where}: {key} is a list of sections; expected lines that begin with -")
    if item is str and text is None:
        return [] if value is None else [value] if isinstance(value, str) else value
    if item and inner and isinstance(value, list):
        return [_as_declared(inner, one, f"{where}[{number}]") for number, one in enumerate(value)]
    return value


def load(schema: type[T], name: str, kind: str, overrides: Sequence[str] = ()) -> T:
    """Find, read and build a config; raises the errors of `find`, `read` and `build`."""
    path = find(name, kind)
    return build(schema, read(path, kind), f"config {path.name}", overrides)


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a config dataclass to plain JSON values."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the differences of two resolved configurations, as lines "key: old -> new"."""
    found: list[str] = []
    for key in sorted({*old, *new}, key=str):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a} -> {b}")
    return found


def _drop(section: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Remove from a section the keys that a file sets itself."""
    for key, value in own.items():
        if isinstance(value, Mapping) and isinstance(section.get(key), dict):
            _drop(section[key], value)
        else:
            section.pop(key, None)


def _with_tuples(value: Any) -> Any:
    """Convert the lists of OmegaConf to tuples where a field of the dataclass is declared as a tuple."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            part = _with_tuples(getattr(value, field.name))
            is_tuple = isinstance(part, list) and "tuple" in str(field.type)
            object.__setattr__(value, field.name, tuple(map(_with_tuples, part)) if is_tuple else part)
    return value


def _thaw(node: DictConfig | ListConfig) -> None:
    OmegaConf.set_readonly(node, None)
    if node._is_none():
        return
    keys: Any = node.keys() if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        child = node._get_node(key)
        if isinstance(child, DictConfig | ListConfig):
            _thaw(child)


def _wrong_value(error: OmegaConfBaseException) -> str:
    key = error.full_key
    found = re.match(r"Value '(.*)' (?:of type .* converted to|is not a valid) (\w+)", str(error), re.DOTALL)
    if not key or found is None or found[2] not in _KINDS:
        return f"wrong value for {repr(key) if key else 'a key'}: {_one_line(error)}"
    return f"{key}: found {'a section' if found[1] == '{}' else f'{found[1]:.60}'}; expected {_KINDS[found[2]]}"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split("\n    full_key")[0].split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
