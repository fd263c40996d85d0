"""Whole networks in a file (`torch.save(model)`): their tensors, from the stored attributes, without their classes."""

import collections
from typing import Any

_MOST_TENSORS = 100_000  # a network that has the same part in several places has its tensors several times
_DEEPEST = 100  # modules inside each other
_LONGEST = 1000  # characters of a name
_DEEPEST_DICTIONARY = 5


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


def without_modules(value: Any, depth: int = 0) -> Any:
    """Return the content of a file with every network as its state_dict().

    Raises:
        ValueError: a network has too many parts.
    """
    if _is_module(value):
        return _flattened(value)
    if isinstance(value, dict) and depth < _DEEPEST_DICTIONARY:
        changed = {key: new for key, old in value.items() if (new := without_modules(old, depth + 1)) is not old}
        return {**value, **changed} if changed else value
    return value


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
