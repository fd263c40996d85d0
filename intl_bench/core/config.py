"""Configuration: YAML files and `a.b=c` overrides into frozen keyword-only dataclasses, through OmegaConf.

A file may inherit from another one with `base: other.yaml`, relative to itself. An unknown key is an error that names
the nearest known key. Each dataclass checks its own values in `__post_init__` and raises `ValueError`.
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from intl_bench.core.errors import InputError, from_os_error

T = TypeVar("T")

_PACKAGE = Path(__file__).resolve().parents[1]
# An installed wheel holds the files inside the package. A checkout holds them beside it.
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def find(name: str, kind: str) -> Path:
    """Find a config file: a path, or the name of a file in configs/`kind`/ such as `cifar10_r18_intl`.

    Raises:
        InputError: there is no such file; the message lists the packaged names.
    """
    for candidate in (Path(name), CONFIGS / kind / f"{name}.yaml", CONFIGS.parent / name, CONFIGS / name):
        if candidate.is_file():
            return candidate
    known = sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))
    near = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"packaged {kind} configs: {', '.join(known)}"
    raise InputError(f"config {name}: no such file; {hint}")


def read(path: Path) -> dict[str, Any]:
    """Read a YAML file as a plain dictionary. Its values win over those of its `base`.

    Raises:
        InputError: the file cannot be read or is not valid.
    """
    try:
        node = OmegaConf.load(path)
        content = OmegaConf.to_container(node, resolve=True)
    except OSError as error:
        raise from_os_error(error, f"cannot read config {path}") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise InputError(f"config {path}: not valid YAML: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"config {path}: expected `key: value` lines at the top level")
    values = {str(key): value for key, value in content.items()}
    base = values.pop("base", None)
    if base is None:
        return values
    below = read(path.parent / str(base))
    # A value of the file holds for every checkpoint, even if the base has another value for some checkpoints.
    for section in below.get("for_checkpoints", {}).values():
        _drop(section, values)
    merged = OmegaConf.merge(below, values)
    return cast(dict[str, Any], OmegaConf.to_container(merged))


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
        # The nodes of the schema are frozen like the dataclass. They are thawed to be filled; the result is frozen.
        template = OmegaConf.structured(schema)
        _thaw(template)
        merged = OmegaConf.merge(template, dict(values))
        _thaw(merged)  # the merge makes new list items, which are frozen
        for override in overrides:
            key, _, value = override.partition("=")
            try:
                parsed = OmegaConf.from_dotlist([f"value={value}"]).value
            except YAMLError as error:
                raise InputError(f"override {override}: not valid YAML: {_one_line(error)}") from error
            OmegaConf.update(merged, key, parsed)
        return cast(T, _with_tuples(OmegaConf.to_object(merged)))
    except (ConfigKeyError, ConfigAttributeError) as error:
        key, owner = str(error.key), error.object_type
        known = [field.name for field in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        raise InputError(f"{where}: unknown key {error.full_key!r}; {hint}") from error
    except (ValidationError, OmegaConfBaseException) as error:
        field = f" {error.full_key!r}" if error.full_key else ""
        raise InputError(f"{where}: wrong value for{field or ' a key'}: {_one_line(error)}") from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def load(schema: type[T], name: str, kind: str, overrides: Sequence[str] = ()) -> T:
    """Find, read and build a config; raises the errors of `find`, `read` and `build`."""
    path = find(name, kind)
    return build(schema, read(path), f"config {path.name}", overrides)


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a config dataclass to plain JSON values."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the differences of two resolved configurations, as lines "key: old -> new"."""
    found: list[str] = []
    for key in sorted({*old, *new}):
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n    full_key")[0].split())
