"""Whole networks in a file (`torch.save(model)`): their tensors, from the stored attributes, without their classes."""

import collections
from typing import Any

_MOST_TENSORS = 100_000  # a network that has the same part in several places has its tensors several times
_DEEPEST = 100  # modules inside each other
_LONGEST = 1000  # characters of a name
_DEEPEST_DICTIONARY = 5
_DEEPEST_LIST = 2


class Inert:
    """Stand-in for an object whose class is not imported. It keeps the stored values and runs nothing."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self.args = (*args, *named.values())

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Attributes(dict[str, Any]):
    """Attributes of a stand-in. Their state may have any form; only that of a dictionary is kept."""

    def update(self, *states: Any, **more: Any) -> None:
        for state in states:
            if isinstance(state, dict):
                super().update(state)
            elif isinstance(state, tuple):  # attributes, and those in slots
                self.update(*state)


def dictionaries(value: Any) -> Any:
    """Return the content of a file as dictionaries with names: networks as their state_dict(), and lists by their
    places, as in `torch.save([state_dict, settings])`. At the top of the file, dictionaries may be named by numbers.

    Raises:
        ValueError: a network has too many parts.
    """
    if isinstance(value, dict) and any(type(key) is int and _is_container(item) for key, item in value.items()):
        value = {str(key) if type(key) is int else key: item for key, item in value.items()}
    return _dictionaries(value, 0, {})


def _dictionaries(value: Any, depth: int, made: dict[tuple[int, int], tuple[Any, Any]]) -> Any:
    """Return a value as dictionaries.

    Args:
        made: values and results, by identity and depth, because a value may be in very many places of a small file.
    """
    key = id(value), depth
    if key in made:
        return made[key][1]
    if _is_module(value):
        result: Any = _flattened(value)
    elif isinstance(value, dict) and depth < _DEEPEST_DICTIONARY:
        changed = {name: new for name, old in value.items() if (new := _dictionaries(old, depth + 1, made)) is not old}
        result = {**value, **changed} if changed else value
    elif type(value) in (list, tuple) and depth < _DEEPEST_LIST and any(map(_is_container, value)):
        result = _dictionaries({str(place): item for place, item in enumerate(value)}, depth, made)
    else:
        return value
    made[key] = value, result
    return result


def _is_container(value: Any) -> bool:
    return isinstance(value, dict) or _is_module(value)


def _state(value: Any) -> Any:
    """Return the stored attributes of an object; None if it is no stand-in."""
    if isinstance(value, Inert):
        return getattr(value, "state", None)
    return vars(value) if isinstance(value, collections.OrderedDict) else None


def _is_module(value: Any) -> bool:
    state = _state(value)
    return isinstance(state, dict) and all(isinstance(state.get(name), dict) for name in ("_parameters", "_modules"))


def _flattened(module: Any) -> dict[str, Any]:
    """Return {name: tensor} of a network, as its state_dict() would."""
    found: dict[str, Any] = {}
    waiting = [("", module, 0)]
    visited = 0
    while waiting:
        prefix, value, depth = waiting.pop()
        state = _state(value)
        visited += 1
        if max(visited, len(found)) > _MOST_TENSORS or depth > _DEEPEST or len(prefix) > _LONGEST:
            raise ValueError(
                f"a network with more than {_MOST_TENSORS} parts, {_DEEPEST} levels or {_LONGEST} characters in a name"
            )
        buffers, transient = state.get("_buffers"), state.get("_non_persistent_buffers_set")
        here = {**state["_parameters"], **(buffers if isinstance(buffers, dict) else {})}
        for name, tensor in here.items():
            left_out = isinstance(transient, set) and name in transient
            if isinstance(name, str) and tensor is not None and not left_out:
                found[f"{prefix}{name}"] = tensor
        for name, part in reversed(state["_modules"].items()):
            if isinstance(name, str) and _is_module(part):
                waiting.append((f"{prefix}{name}.", part, depth + 1))
    return found
