"""Find the backbone in a checkpoint: its layout, its branch, and the place of its tensors."""

import collections
import contextlib
import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from intl_bench.core.errors import InputError
from transfer.formats import candidates as backbones
from transfer.formats.candidates import (
    ENOUGH,
    ROLES,
    SHOWN,
    TOP,
    Candidate,
    Container,
    collision,
    same_wrapper,
    unwrapped,
)
from transfer.formats.layout import Layout, Place
from transfer.formats.layouts import LAYOUTS
from transfer.formats.names import Names, known
from transfer.formats.other_networks import sample, without_backbone
from transfer.formats.safe_load import ByolState, Content, flatten_byol, tensors

SOURCES = tuple(layout.name for layout in LAYOUTS)
_BY_NAME = {layout.name: layout for layout in LAYOUTS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A backbone as stored in a file.

    Attributes:
        container, prefix: the place of its tensors (see `transfer.formats.layouts.Place`).
        table: the names of its tensors in the layout.
        stored: {name after the prefix, without wrappers: tensor} of all tensors under the prefix, heads included.
        other_keys: all other keys of the file.
        keys: {name after the prefix: key in the file} where the key is not the prefix and the name.
        others: {place: value of `--from`} of the other backbones in the file.
    """

    layout: Layout
    branch: str
    container: str
    prefix: str
    table: Names
    stored: dict[str, torch.Tensor]
    other_keys: list[str]
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def key(self, name: str) -> str:
        """Return the key in the file of the tensor with a name after the prefix."""
        return self.keys.get(name, self.prefix + name)

    @property
    def storage(self) -> int:
        """The memory of one of its tensors: the same for two names of one network."""
        return self.stored[min(self.stored.keys() & known(self.table))].data_ptr()

    @property
    def place(self) -> str:
        return "/".join(part for part in (self.container, self.prefix) if part) or "the top of the file"


def find(content: Content, source: str = "auto") -> Found:
    """Find a backbone in a file.

    Args:
        source: "auto", a layout, or LAYOUT:BRANCH. A branch is one of the layout, or a name of another backbone in the
            file: its prefix, its dictionary, or a word of them such as "ema".

    Raises:
        InputError: the layout or branch is unknown; the file has no backbone, or several and no default among them.
    """
    root = content.data
    if isinstance(root, dict) and isinstance(root.get("experiment_state"), ByolState):
        root = {**root, **flatten_byol(root["experiment_state"])}
    if not isinstance(root, dict):
        raise InputError(f"checkpoint {content.path}: holds a {type(root).__name__}; expected a dictionary of tensors")
    name, _, branch = source.partition(":")
    if name != "auto" and name not in _BY_NAME:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected auto, {', '.join(SOURCES)}"
        raise InputError(f"--from {source}: unknown layout; {hint}")
    file = _File(content.path, root)
    if name == "auto":
        try:
            found = file.recognize()
        except InputError:  # the names do not tell which of several backbones is trained, but the user does
            if branch and (one := file.named(branch)):
                return one
            raise
        if not branch:
            return file.with_others(found)
        name = found.layout.name
    if branch:
        return file.branch(_BY_NAME[name], branch)
    return file.with_others(file.required(_BY_NAME[name]))


class _File:
    """The dictionaries of a checkpoint, and the ways to find a backbone in them."""

    def __init__(self, path: Path, root: dict[Any, Any]) -> None:
        self.path, self.root = path, root
        self.containers = backbones.containers(root)
        self._inside = {id(container.values): container.inside for container in self.containers}
        self._candidates: dict[int, list[Candidate]] = {}

    def recognize(self) -> Found:
        """Find the backbone by the keys of the file."""
        if found := self._by_marks(self.containers[0], LAYOUTS, clean=False):
            return found
        shallow = [one for box in self.containers if len(box.keys) <= 1 for one in self._of(box)]
        usual = [one for one in shallow if one.layout.name == "torchvision"]
        if len({one.storage for one in usual}) == 1:
            return self._found(usual[0])
        # Names of wrappers inside prefixes, deeper dictionaries, other names, several backbones.
        layouts = tuple(one for one in LAYOUTS if one.name not in ("intl-bench", "torchvision"))
        deepest = max(len(box.keys) for box in self.containers)
        for depth in range(deepest + 1):
            level = [box for box in self.containers if len(box.keys) == depth]
            recognized = [found for box in level if (found := self._by_marks(box, layouts, clean=True))]
            if len(recognized) == 1:
                return recognized[0]
        levels = [
            [one for box in self.containers if len(box.keys) == n for one in self._of(box)] for n in range(deepest + 1)
        ]
        several = [one for level in levels for one in level]
        if not several:
            raise without_backbone(self.path, self.containers)
        return self._found(backbones.choose(several) or self._decided(next(level for level in levels if level)))

    def required(self, layout: Layout, branch: str = "") -> Found:
        """Find the backbone of a layout without looking at its marks; "" is the default branch."""
        wanted = (branch,) if branch else layout.default or tuple(layout.branches)[:1]
        if found := self._search_everywhere(layout, wanted):
            return found
        bare = any(re.fullmatch(place.prefix, "") for place in layout.branches[wanted[0]]) or layout.anywhere
        several = [one for one in self._all() if one.table in layout.tables and not one.words & ROLES]
        if several and bare and not branch:
            return self._found(self._decided(several), layout)
        raise InputError(
            f"checkpoint {self.path}: no {layout.name} backbone ({wanted[0]}) in it: its keys are "
            f"{sample(self.containers)}; try --from auto{self._choices()}"
        )

    def branch(self, layout: Layout, branch: str) -> Found:
        """Find a branch of a layout, or another backbone of the file by its name."""
        if branch in layout.branches and (found := self._search_everywhere(layout, (branch,))):
            return found
        if layout.name == "torchvision":
            places = tuple(Place(box.path, re.escape(branch)) for box in self.containers if len(box.keys) <= 1)
            named = dataclasses.replace(layout, branches={branch: places})
            if found := self._search(named, (branch,), self.containers[0], marked=False, clean=False):
                return found
        several = backbones.named(branch, self._all())
        if len({one.storage for one in several}) == 1:
            fitting = layout if several[0].table in layout.tables else several[0].layout
            return self._found(several[0], fitting, branch)
        if branch in layout.branches or layout.name == "torchvision":
            return self.required(
                dataclasses.replace(layout, branches={branch: layout.branches.get(branch, ())}), branch
            )
        raise InputError(
            f"--from {layout.name}:{branch}: unknown branch; {layout.name} has the branches "
            f"{', '.join(layout.branches)}{self._choices()}"
        )

    def named(self, name: str) -> Found | None:
        """Return the only backbone of the file that a name can mean; None if there is none, or several."""
        several = backbones.named(name, self._all())
        return self._found(several[0], branch=name) if len({one.storage for one in several}) == 1 else None

    def with_others(self, found: Found) -> Found:
        """Return what was found with the names of the other backbones in the file."""
        every = self._all()
        others = {one.storage: (one.place, backbones.name_of(one, every)) for one in reversed(every)}
        for branch in found.layout.branches:
            if branch != found.branch and (one := self._search_everywhere(found.layout, (branch,))):
                others[one.storage] = others.get(one.storage, (one.place,))[0], branch
        others.pop(found.storage, None)
        named = {place: f"{found.layout.name}:{name}" for place, name in reversed(others.values())}
        return dataclasses.replace(found, others=named)

    def _of(self, box: Container) -> list[Candidate]:
        """Return the backbones of one dictionary; see `transfer.formats.candidates.candidates`."""
        if id(box) not in self._candidates:
            self._candidates[id(box)] = backbones.candidates(box, self.path)
        return self._candidates[id(box)]

    def _all(self) -> list[Candidate]:
        """Return every backbone of the file, without those whose keys are ambiguous."""
        found = []
        for box in self.containers:
            with contextlib.suppress(InputError):
                found += self._of(box)
        return found

    def _choices(self) -> str:
        """Return the end of an error: the backbones that `--from` can name; "" if the file has none."""
        every = self._all()
        named = sorted({f"--from torchvision:{backbones.name_of(one, every)[:SHOWN]}" for one in every})
        return f"; the file has {' and '.join(named[:6])}" if named else ""

    def _by_marks(self, box: Container, layouts: tuple[Layout, ...], *, clean: bool) -> Found | None:
        """Return the backbone of the first layout whose marks a dictionary has."""
        for layout in layouts:
            wanted = layout.default or tuple(layout.branches)[:1]
            if found := self._search(layout, wanted, box, marked=True, clean=clean):
                return found
            others = [
                one
                for one in layout.branches
                if layout.marks and self._search(layout, (one,), box, marked=True, clean=clean)
            ]
            if others:
                raise InputError(
                    f"checkpoint {self.path}: it has the layout {layout.name}, but only the branch "
                    f"{' and '.join(others)}; add --from {layout.name}:{others[0]} to use this branch"
                )
        return None

    def _search_everywhere(self, layout: Layout, branches: tuple[str, ...]) -> Found | None:
        """Return the first of `branches` that a dictionary of the file has, the top first."""
        if found := self._search(layout, branches, self.containers[0], marked=False, clean=False):
            return found
        for box in self.containers if layout.name != "intl-bench" else []:
            named = backbones.words(box.path) & ROLES  # another branch than the one at the top
            if not named and (found := self._search(layout, branches, box, marked=False, clean=True)):
                return found
        return None

    def _search(
        self, layout: Layout, branches: tuple[str, ...], box: Container, *, marked: bool, clean: bool
    ) -> Found | None:
        """Return the first of `branches` that a dictionary has.

        Args:
            marked: whether the dictionary must have the marks of the layout.
            clean: whether prefixes and marks are matched without the names of wrappers inside keys.
        """
        cleaned: Callable[[str], str] = unwrapped if clean else str
        for branch in branches:
            for place in layout.branches[branch]:
                values = _inside(box.values, place)
                inside = self._inside.get(id(values)) or tensors(values)
                listing = [cleaned(key) for key in inside]
                if not inside or (marked and not _has_marks(layout, box.values, listing)):
                    continue
                pattern = re.compile(place.prefix)
                groups: dict[str, dict[str, list[str]]] = {}
                for key, text in zip(inside, listing, strict=True):
                    match = pattern.match(text)
                    if match is not None:
                        group = groups.setdefault(match[0], collections.defaultdict(list))
                        group[unwrapped(text[match.end() :], leading=clean)].append(key)
                counts = {
                    (prefix, table): len(keys.keys() & known(table))
                    for prefix, keys in groups.items()
                    for table in layout.tables
                }
                enough = {key: count for key, count in counts.items() if count >= ENOUGH}
                prefixes = sorted({prefix for prefix, _ in enough})
                if len(prefixes) > 1:
                    raise InputError(
                        f"checkpoint {self.path}: {len(prefixes)} backbones of the layout {layout.name}; expected one; "
                        f"choose {' or '.join(f'--from torchvision:{prefix or TOP}' for prefix in prefixes)}"
                    )
                if enough:
                    prefix, table = max(enough, key=enough.__getitem__)
                    whole = Container(keys=(*box.keys, *place.keys), values=values, inside=inside)
                    keys = self._unique(groups, prefix, table, values)
                    return self._build(layout, branch, whole, prefix, table, keys)
        return None

    def _unique(
        self, groups: Mapping[str, Mapping[str, list[str]]], prefix: str, table: Names, values: dict[Any, Any]
    ) -> dict[str, str]:
        """Return {name: key} of the tensors under a prefix, without those of another backbone under a longer prefix.

        Raises:
            InputError: two keys have one name, if the names of wrappers are left out.
        """
        alike = [group for other, group in groups.items() if unwrapped(f"{other}x") == unwrapped(f"{prefix}x")]
        for name in groups[prefix]:
            keys = [key for group in alike if name in group for key in group[name]]
            if len(keys) > 1 and (name in known(table) or len(groups[prefix][name]) > 1):
                raise collision(self.path, *keys[:2])
        kept = unwrapped(f"{prefix}x").count(".")
        _, found = same_wrapper({name: keys[0] for name, keys in groups[prefix].items()}, kept, table)
        own = {key for name, key in found.items() if name in known(table)}
        others = [set(one.keys.values()) for one in self._all() if one.container.values is values]
        nested = set().union(*(keys for keys in others if not keys & own))
        return {name: key for name, key in found.items() if key not in nested}

    def _found(self, one: Candidate, layout: Layout | None = None, branch: str = "online") -> Found:
        return self._build(layout or one.layout, branch, one.container, one.prefix, one.table, one.keys)

    def _build(
        self, layout: Layout, branch: str, box: Container, prefix: str, table: Names, keys: Mapping[str, str]
    ) -> Found:
        used = set(keys.values())
        return Found(
            layout=layout,
            branch=branch,
            container=box.path,
            prefix=prefix,
            table=table,
            stored={name: box.inside[key] for name, key in keys.items()},
            other_keys=[
                *_siblings(self.root, box.keys),
                *(str(key) for key in box.values if not isinstance(key, str) or key not in used),
            ],
            keys={name: key for name, key in keys.items() if key != prefix + name},
        )

    def _decided(self, several: list[Candidate]) -> Candidate:
        """Choose one of several backbones; see `transfer.formats.candidates.choose`."""
        one = backbones.choose(several)
        if one is None:
            every = self._all()
            names = [backbones.name_of(other, every)[:SHOWN] for other in several[:6]]
            choices = " or ".join(f"--from torchvision:{name}" for name in names)
            raise InputError(
                f"checkpoint {self.path}: {len(several)} backbones in an unknown layout; expected one; choose {choices}"
            )
        return one


def _inside(root: dict[str, Any], place: Place) -> Any:
    """Return the value at a place; None if its keys do not exist."""
    value: Any = root
    for key in place.keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _siblings(root: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    """Return the keys next to those that lead to a place."""
    found, value = [], root
    for depth, key in enumerate(keys):
        found += ["/".join([*keys[:depth], str(other)]) for other in value if other != key]
        value = value[key]
    return found


def _has_marks(layout: Layout, values: dict[str, Any], inside: list[str]) -> bool:
    """Tell whether the keys of a dictionary and next to the backbone have all marks of a layout."""
    listing = "\n".join([*(f"/{key}" for key in values), *inside])
    return all(
        bool(re.search(mark.removeprefix("!"), listing, re.MULTILINE)) != mark.startswith("!") for mark in layout.marks
    )
