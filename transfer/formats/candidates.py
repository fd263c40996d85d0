"""Backbones in a file, wherever they are: in nested dictionaries, in wrappers, or several beside each other."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from intl_bench.core.errors import InputError
from transfer.formats.layout import Layout
from transfer.formats.layouts import LAYOUTS
from transfer.formats.names import Names, known
from transfer.formats.safe_load import tensors

# With so many names of a layout, a file holds its network, complete or not: half of the smallest architecture.
ENOUGH = 30
TOP = "top"  # the name after `--from LAYOUT:` of a backbone at the top of the file without a prefix
SHOWN = 100  # characters of a key in an error
_DEEPEST = 5  # dictionaries inside each other
_MOST = 2000  # dictionaries of a file that are searched
_MOST_PARTS = 64  # of a key

# A part of a key that a wrapper adds: DistributedDataParallel, AveragedModel and DeepSpeed (`module`), torch.compile
# (`_orig_mod`), activation checkpointing (`_checkpoint_wrapped_module`), FSDP (`_fsdp_wrapped_module`), Lightning
# (`_forward_module`), Opacus (`_module`).
_WRAPPER = re.compile(r"module|_\w*mod(?:ule)?")
# Names of networks that are averages of others. The names of the trained network are in no list.
_AVERAGES = frozenset(("ema", "momentum", "target", "key", "k", "avg", "average", "averaged", "swa", "slow", "shadow"))
_TEACHER, _STUDENT = "teacher", "student"
ROLES = _AVERAGES | {_TEACHER, _STUDENT}

# Layouts by whose names a backbone is found under any prefix.
_GENERIC: dict[Names, Layout] = {layout.tables[0]: layout for layout in reversed(LAYOUTS) if layout.anywhere}


def words(place: str) -> frozenset[str]:
    """Return the words of a place: those of `model/encoder_q.` are model, encoder and q."""
    return frozenset(re.split(r"[./_]", place.lower()))


def unwrapped(key: str, *, leading: bool = True) -> str:
    """Return a key without the names of wrappers: `module.layer1._orig_mod.0.x` becomes `layer1.0.x`.

    Args:
        leading: whether those at the beginning are left out too.
    """
    if "mod" not in key:  # most keys; files may have very many
        return key
    parts = key.split(".")
    first = next((place for place, part in enumerate(parts) if leading or not _WRAPPER.fullmatch(part)), len(parts))
    return ".".join([*parts[:first], *(part for part in parts[first:] if not _WRAPPER.fullmatch(part))])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Container:
    """A dictionary in a file.

    Attributes:
        keys: the keys that lead to it from the top of the file.
        values: its content.
        inside: its tensors.
    """

    keys: tuple[str, ...]
    values: dict[Any, Any]
    inside: Mapping[str, torch.Tensor]

    @property
    def path(self) -> str:
        """Its keys joined by "/"; "" is the top of the file."""
        return "/".join(self.keys)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A backbone, complete or not, with the names of a layout under some prefix.

    Attributes:
        container: the dictionary that holds it.
        prefix: what precedes its names in most of its keys.
        keys: {name after the prefix, without wrappers: key} of the tensors under the prefix, heads included.
    """

    container: Container
    prefix: str
    layout: Layout
    table: Names
    keys: dict[str, str]

    @property
    def place(self) -> str:
        return "/".join(part for part in (self.container.path, self.prefix) if part) or "the top of the file"

    @property
    def words(self) -> frozenset[str]:
        """See `words`."""
        return words(self.place)

    @property
    def storage(self) -> int:
        """The memory of one of its tensors: the same for two names of one network."""
        return self.container.inside[self.keys[min(self.keys.keys() & known(self.table))]].data_ptr()

    @property
    def kernels(self) -> dict[str, torch.Size]:
        """The shapes of its convolutions, by name: the same for two networks of one architecture."""
        own = {name: self.container.inside[self.keys[name]] for name in self.keys.keys() & known(self.table)}
        return {name: tensor.shape for name, tensor in own.items() if tensor.ndim == 4}


def containers(root: dict[Any, Any]) -> list[Container]:
    """Return the dictionaries of a file, the top first, then by depth."""
    level: list[tuple[tuple[str, ...], dict[Any, Any]]] = [((), root)]
    found: list[Container] = []
    seen = {id(root)}
    for _ in range(_DEEPEST):
        following = []
        for keys, values in level[: _MOST - len(found)]:
            found.append(Container(keys=keys, values=values, inside=tensors(values)))
            for key, value in values.items():
                if isinstance(key, str) and isinstance(value, dict) and id(value) not in seen:
                    seen.add(id(value))
                    following.append(((*keys, key), value))
        level = following
    return found


def candidates(container: Container, path: Path) -> list[Candidate]:
    """Return the backbones of one dictionary, under all prefixes.

    Raises:
        InputError: two keys are the same without the names of wrappers.
    """
    names: dict[tuple[str, ...], dict[Names, set[str]]] = collections.defaultdict(lambda: collections.defaultdict(set))
    split = {key: tuple(unwrapped(key).split(".")) for key in container.inside if key.count(".") < _MOST_PARTS}
    for parts in split.values():
        for table in _GENERIC:
            for length in _lengths(table):
                if length <= len(parts) and (name := ".".join(parts[-length:])) in known(table):
                    names[parts[:-length]][table].add(name)
                    break
    best = {prefix: max(tables, key=lambda table: len(tables[table])) for prefix, tables in names.items()}
    enough = {prefix: table for prefix, table in best.items() if len(names[prefix][table]) >= ENOUGH}
    groups: dict[tuple[str, ...], dict[str, list[str]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for key, parts in split.items():  # a key belongs to the longest prefix
        longest = next((n for n in range(len(parts), -1, -1) if parts[:n] in enough), None)
        if longest is not None:
            groups[parts[:longest]][".".join(parts[longest:])].append(key)
    return [
        Candidate(container=container, prefix=before, layout=_GENERIC[table], table=table, keys=keys)
        for prefix, table in enough.items()
        for before, keys in _without_collisions(groups[prefix], len(prefix), table, path)
    ]


def _without_collisions(
    stored: Mapping[str, list[str]], kept: int, table: Names, path: Path
) -> Iterable[tuple[str, dict[str, str]]]:
    """Return {name: key} of the backbones under one prefix of `kept` parts, each with the prefix in the file.

    There are two if a file has the same backbone names with and without a wrapper, such as `module.`.
    """
    shared = [keys for name, keys in stored.items() if len(keys) > 1 and name in known(table)]
    if not shared:
        return [same_wrapper({name: key for name, keys in stored.items() for key in keys[:1]}, kept, table)]
    groups: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for name, keys in stored.items():
        for key in keys:
            group = groups[before(key, kept)]
            if name in group and name in known(table):
                raise collision(path, group[name], key)
            group[name] = key
    numbers = [len(group.keys() & known(table)) for group in groups.values()]
    if any(0 < number < ENOUGH for number in numbers):
        raise collision(path, *shared[0][:2])
    return [pair for pair, number in zip(groups.items(), numbers, strict=True) if number]


def same_wrapper(keys: Mapping[str, str], kept: int, table: Names) -> tuple[str, dict[str, str]]:
    """Return the beginning of most keys of a backbone, and the keys without heads that are outside of its wrapper.

    `head.weight` is no part of the backbone at `module.conv1.weight`, although both are at the top without wrappers.

    Args:
        keys: {name: key} of the tensors.
        kept: the number of parts of the keys before the names, besides those of wrappers.
    """
    befores = {name: before(key, kept) for name, key in keys.items()}
    (usual, _), *_ = collections.Counter(befores[name] for name in keys if name in known(table)).most_common(1)
    return usual, {name: key for name, key in keys.items() if name in known(table) or befores[name] == usual}


def collision(path: Path, first: str, second: str) -> InputError:
    """Return the error for two keys that are the same without the names of wrappers."""
    return InputError(
        f"checkpoint {path}: {first[:SHOWN]} and {second[:SHOWN]} are the same name without their wrappers; expected "
        "one of them; save the state_dict() of the network without its wrapper"
    )


@functools.cache
def _lengths(table: Names) -> list[int]:
    """Return the numbers of parts of the names of a table, the largest first."""
    return sorted({name.count(".") + 1 for name in known(table)}, reverse=True)


def before(key: str, kept: int) -> str:
    """Return the beginning of a key that has `kept` parts besides those of wrappers, with the wrappers that follow."""
    parts = key.split(".")
    number = 0
    for place, part in enumerate(parts):
        if not _WRAPPER.fullmatch(part):
            if number == kept:
                return "".join(f"{one}." for one in parts[:place])
            number += 1
    return key


def choose(found: list[Candidate]) -> Candidate | None:
    """Choose one of several backbones of an unknown layout; None if their names do not tell.

    The rule: the teacher of a student-teacher pair of one architecture, which the projects evaluate; otherwise the
    trained network and not an average of it. Of several teachers, or of a teacher with another architecture, which is
    a distillation, the names do not tell which one was meant.
    """
    distinct = list({one.storage: one for one in reversed(found)}.values())
    if len(distinct) == 1:
        return distinct[0]
    teachers = [one for one in distinct if _TEACHER in one.words]
    if teachers and all(_STUDENT in one.words for one in distinct if one not in teachers):
        alike = all(one.kernels == teachers[0].kernels for one in distinct)
        return teachers[0] if len(teachers) == 1 and alike else None
    trained = [one for one in distinct if not one.words & _AVERAGES and one not in teachers]
    return trained[0] if len(trained) == 1 else None


def name_of(one: Candidate, found: Iterable[Candidate]) -> str:
    """Return the shortest name after `--from LAYOUT:` that means one of several backbones."""
    others = [other for other in found if other is not one]
    for word in sorted(one.words & ROLES, key=len, reverse=True):
        if len(word) > 2 and not any(word in other.words for other in others):
            return word
    for name in (one.prefix, one.container.path):
        if name and not any(name in (other.prefix, other.container.path) for other in others):
            return name
    return one.place if one.container.path or one.prefix else TOP


def named(name: str, found: Iterable[Candidate]) -> list[Candidate]:
    """Return the backbones that a name after `--from LAYOUT:` can mean."""
    every = list(found)
    exact = [one for one in every if name in (name_of(one, every), one.place, one.place.rstrip("."))]
    part = [one for one in every if name in (one.prefix, one.prefix.rstrip("."), one.container.path)]
    return (
        exact or part or [one for one in every if name.lower() in one.words | {*re.split(r"[./]", one.place.lower())}]
    )
