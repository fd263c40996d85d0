"""Find the backbone in a checkpoint: its layout, its branch, its architecture, and each of its tensors."""

import collections
import dataclasses
import difflib
import re
from pathlib import Path
from typing import Any

import torch

from intl_bench.core.errors import InputError
from pretrain.backbone import NAMES
from transfer.formats.layouts import IMAGENET, LAYOUTS, Layout, Place
from transfer.formats.names import Names, known, names, shapes
from transfer.formats.safe_load import ByolState, Content, flatten_byol, tensors

SOURCES = tuple(layout.name for layout in LAYOUTS)
_BY_NAME = {layout.name: layout for layout in LAYOUTS}
# With so many names of a layout, a file holds its network, complete or not: half of the smallest architecture.
_ENOUGH = 30
_LARGEST = 2**24  # numbers in a tensor of a backbone; the largest has 2.4 million
_SHOWN = 100  # characters of a key in an error
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Keys of networks that are not in `pretrain.backbone`, and the reason that an error gives.
_OTHER_NETWORKS = (
    (r"(^|[./])(conv1\.\d+\.|stem\.\d|stem\.conv\d*[_.]?[23]|stem\.conv1_1)", "a deep stem (ResNet-C or -D)"),
    (r"(^|\.)net\.0\.3\.0\.weight$", "selective kernels (SimCLR v2's sk1) on a deep stem"),
    (r"(^|\.)downsample\.2\.", "an average pool in the shortcuts (ResNet-D)"),
    (r"(^|\.)(cls_token|pos_embed|patch_embed\.|blocks\.\d+\.attn)", "a vision transformer"),
    (r"(^|[./])(layer3\.6\.|res4[._]6|stages\.2\.layers\.6\.)", "more blocks than ResNet-50"),
)
# A shortcut with a convolution where torchvision's basic blocks have none.
_PROJECTION = r"(layer1\.0\.downsample|layer1\.0\.shortcut|block_group_0/~/block_0/~/shortcut|res2\.0\.shortcut)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A backbone as stored in a file.

    Attributes:
        container, prefix: the place of its tensors (see `transfer.formats.layouts.Place`).
        table: the names of its tensors in the layout.
        stored: {name after the prefix: tensor} of all tensors under the prefix, heads included.
        other_keys: all other keys of the file.
    """

    layout: Layout
    branch: str
    container: str
    prefix: str
    table: Names
    stored: dict[str, torch.Tensor]
    other_keys: list[str]

    @property
    def place(self) -> str:
        return "/".join(part for part in (self.container, self.prefix) if part) or "the top of the file"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extracted:
    """A complete backbone with torchvision's names, in float32.

    Attributes:
        kernel: the side of conv1, 3 or 7.
        left_aside: keys of the file that are not part of the backbone.
        counters: the number of batch norms without `num_batches_tracked` in the file; it becomes 0.
        dtypes: of the weights in the file.
        notes: changes of the values of tensors, for people.
    """

    architecture: str
    kernel: int
    state: dict[str, torch.Tensor]
    left_aside: list[str]
    counters: int
    dtypes: list[str]
    notes: list[str]


def find(content: Content, source: str = "auto") -> Found:
    """Find a backbone in a file.

    Args:
        source: "auto", a layout, or LAYOUT:BRANCH; torchvision:PREFIX takes any prefix.

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
    if name == "torchvision" and branch and branch not in _BY_NAME[name].branches:
        places = tuple(Place(container, re.escape(branch)) for container in _containers(root))
        layout = dataclasses.replace(_BY_NAME[name], branches={branch: places})
        return _required(layout, branch, root, content.path)
    if name != "auto":
        layout = _BY_NAME[name]
        if branch and branch not in layout.branches:
            raise InputError(f"--from {source}: unknown branch; {name} has the branches {', '.join(layout.branches)}")
        return _required(layout, branch, root, content.path)
    for layout in LAYOUTS:
        found = _search(layout, layout.default or tuple(layout.branches)[:1], root, content.path, marked=True)
        if found is not None:
            return found
        others = [b for b in layout.branches if layout.marks and _search(layout, (b,), root, content.path, marked=True)]
        if others:
            raise InputError(
                f"checkpoint {content.path}: it has the layout {layout.name}, but only the branch "
                f"{' and '.join(others)}; add --from {layout.name}:{others[0]} to use this branch"
            )
    return _only_prefix(root, content.path)


def _required(layout: Layout, branch: str, root: dict[str, Any], path: Path) -> Found:
    """Find the backbone of a layout without looking at its marks; "" is the default branch."""
    wanted = (branch,) if branch else layout.default or tuple(layout.branches)[:1]
    found = _search(layout, wanted, root, path, marked=False)
    if found is None:
        raise InputError(
            f"checkpoint {path}: no {layout.name} backbone ({wanted[0]}) in it: its keys are {_sample(root)}; "
            "try --from auto"
        )
    return found


def _search(
    layout: Layout, branches: tuple[str, ...], root: dict[str, Any], path: Path, *, marked: bool
) -> Found | None:
    """Return the first of `branches` that the file has; None if it has none, or not the layout's marks (`marked`)."""
    for branch in branches:
        for place in layout.branches[branch]:
            inside = tensors(_inside(root, place))
            if not inside or (marked and not _has_marks(layout, root, inside)):
                continue
            pattern = re.compile(place.prefix)
            groups: dict[str, dict[str, torch.Tensor]] = collections.defaultdict(dict)
            for key, tensor in inside.items():
                match = pattern.match(key)
                if match is not None:
                    groups[match[0]][key[match.end() :]] = tensor
            counts = {
                (prefix, table): len(stored.keys() & known(table))
                for prefix, stored in groups.items()
                for table in layout.tables
            }
            enough = {key: count for key, count in counts.items() if count >= _ENOUGH}
            prefixes = sorted({prefix for prefix, _ in enough})
            if len(prefixes) > 1:
                raise InputError(
                    f"checkpoint {path}: {len(prefixes)} backbones of the layout {layout.name}; expected one; choose "
                    + " or ".join(f"--from torchvision:{prefix}" for prefix in prefixes)
                )
            if enough:
                prefix, table = max(enough, key=enough.__getitem__)
                stored = groups[prefix]
                other_keys = _siblings(root, place)
                other_keys += [
                    str(key)
                    for key in _inside(root, place)
                    if not (str(key).startswith(prefix) and str(key)[len(prefix) :] in stored)
                ]
                return Found(
                    layout=layout,
                    branch=branch,
                    container=place.container,
                    prefix=prefix,
                    table=table,
                    stored=stored,
                    other_keys=other_keys,
                )
    return None


def _inside(root: dict[str, Any], place: Place) -> Any:
    """Return the value at a place; None if its keys do not exist."""
    value: Any = root
    for key in place.keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _siblings(root: dict[str, Any], place: Place) -> list[str]:
    """Return the keys next to those that lead to a place."""
    found, value = [], root
    for depth, key in enumerate(place.keys):
        found += ["/".join([*place.keys[:depth], str(other)]) for other in value if other != key]
        value = value[key]
    return found


def _has_marks(layout: Layout, root: dict[str, Any], inside: dict[str, torch.Tensor]) -> bool:
    """Tell whether the keys at the top and next to the backbone have all marks of a layout."""
    listing = "\n".join([*(f"/{key}" for key in root), *inside])
    return all(
        bool(re.search(mark.removeprefix("!"), listing, re.MULTILINE)) != mark.startswith("!") for mark in layout.marks
    )


def _containers(root: dict[str, Any]) -> list[str]:
    """Return the places where tensors are searched: "" (the top), and the keys of every dictionary at the top."""
    return ["", *(key for key, value in root.items() if isinstance(key, str) and isinstance(value, dict))]


def _only_prefix(root: dict[str, Any], path: Path) -> Found:
    """Find the only backbone with torchvision's names, under a prefix that no layout has.

    Raises:
        InputError: the file has none or several.
    """
    places = []
    for container in _containers(root):
        keys = tensors(_inside(root, Place(container)))
        counts: collections.Counter[str] = collections.Counter()
        for key in keys:
            match = re.match(r"((?:.*?\.)??)(?:layer\d\.\d+\.)?(?:conv|bn)\d\.[a-z_]+$", key)
            if match is not None:
                counts[match[1]] += 1
        places += [(container, prefix) for prefix, count in counts.items() if count >= _ENOUGH]
    if not places:
        reason = _reason([key for c in _containers(root) for key in tensors(_inside(root, Place(c)))])
        detail = f"it has {reason}" if reason else f"its keys are {_sample(root)}"
        raise InputError(
            f"checkpoint {path}: no ResNet-18, -34 or -50 in a known layout: {detail}; name the layout with --from"
        )
    if len(places) > 1:
        choices = " or ".join(f"--from torchvision:{prefix}" for _, prefix in places)
        raise InputError(
            f"checkpoint {path}: {len(places)} backbones in an unknown layout; expected one; choose {choices}"
        )
    container, prefix = places[0]
    layout = _BY_NAME["torchvision"]
    place = Place(container, re.escape(prefix))
    return _required(dataclasses.replace(layout, branches={"online": (place,)}), "online", root, path)


def _sample(root: dict[str, Any]) -> str:
    """Return the first keys of a file, for an error."""
    keys = [str(key)[:_SHOWN] for key in root]
    for container in _containers(root)[1:]:
        keys += [f"{container}/{key}"[:_SHOWN] for key in list(root[container])[:3]]
    return ", ".join(keys[:6]) + (", ..." if len(keys) > 6 else "")


def _reason(keys: list[str]) -> str:
    """Return the kind of another network that keys show, and the key; "" if they show none."""
    for pattern, reason in _OTHER_NETWORKS:
        for key in keys:
            if re.search(pattern, key):
                return f"{reason}: {key[:_SHOWN]}"
    return ""


def extract(found: Found, path: Path) -> Extracted:
    """Convert a stored backbone to torchvision's names.

    Each tensor is used once. The architecture is the one with the fewest problems.

    Raises:
        InputError: a tensor is missing, unexpected, of another shape or type, or not finite.
    """
    problems: dict[str, list[str]] = {}
    heads = re.compile(found.layout.heads)
    candidates = {key: tensor for key, tensor in found.stored.items() if not heads.fullmatch(key)}
    by_architecture = {}
    for architecture in NAMES:
        state = {
            name: _adapt(found, key, shapes(architecture)[name])
            for name, key in names(found.table, architecture).items()
            if key in candidates
        }
        problems[architecture] = _problems(found, architecture, state, candidates)
        by_architecture[architecture] = state
    best = min(NAMES, key=lambda name: len(problems[name]))
    wrong = problems[best] or [
        f"{found.prefix}{names(found.table, best)[name]} has values that are not finite"
        for name, tensor in by_architecture[best].items()
        if not torch.isfinite(tensor.to(torch.float32)).all()
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        reason = _reason(list(candidates))
        if best != "resnet50" and any(re.search(_PROJECTION, line) for line in wrong):
            reason = "a projection in the first shortcut, which torchvision's basic blocks lack"
        because = f" ({reason}, which is another network)" if reason else ""
        raise InputError(
            f"checkpoint {path}: the {found.layout.name} backbone at {found.place} is not a {best}{because}: "
            f"{'; '.join(wrong[:3])}{more}"
        )
    renamed, notes = by_architecture[best], []
    counters = [name for name in shapes(best) if name.endswith("num_batches_tracked")]
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for name, t in renamed.items() if name not in counters})
    state = {}
    for name in shapes(best):
        if name in counters:
            state[name] = renamed[name].to(torch.int64).reshape(()) if name in renamed else torch.tensor(0)
        else:
            state[name] = renamed[name].to(torch.float32).contiguous().clone()
    if found.layout.adapt == "msra":
        std = torch.tensor(IMAGENET["std"]).mul(255)
        state["conv1.weight"] = state["conv1.weight"].flip(1) * std[None, :, None, None]
        notes.append("conv1 changed from BGR in 0..255 to normalized RGB in 0..1")
    if found.layout.adapt == "split_bn" and any(
        found.stored[names(found.table, best)[n]].shape != state[n].shape for n in renamed
    ):
        notes.append("the running statistics of SplitBatchNorm averaged over the splits")
    used_keys = {names(found.table, best)[name] for name in renamed}
    left_aside = [*found.other_keys, *(found.prefix + key for key in found.stored if key not in used_keys)]
    return Extracted(
        architecture=best,
        kernel=state["conv1.weight"].shape[-1],
        state=state,
        left_aside=left_aside,
        counters=len(counters) - sum(name in renamed for name in counters),
        dtypes=dtypes,
        notes=notes,
    )


def _adapt(found: Found, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a stored tensor in torchvision's form. A wrong shape stays wrong."""
    tensor = found.stored[key]
    if tensor.numel() > _LARGEST:  # a view of one number can have any shape, and takes its memory only in a copy
        return tensor
    if found.layout.adapt == "haiku":
        return tensor.permute(3, 2, 0, 1) if key.endswith("/w") and tensor.ndim == 4 else tensor.reshape(-1)
    if found.layout.adapt == "split_bn" and ".running_" in key and tensor.numel() % shape[0] == 0:
        splits = tensor.reshape(-1, shape[0])  # lightly makes them equal when it evaluates
        return splits[0] if bool((splits == splits[0]).all()) else splits.mean(0)
    return tensor


def _problems(
    found: Found, architecture: str, state: dict[str, torch.Tensor], candidates: dict[str, torch.Tensor]
) -> list[str]:
    """Return why the tensors are not those of an architecture, with the names of the file."""
    stored_names = names(found.table, architecture)
    wrong = []
    for name, shape in shapes(architecture).items():
        if name.endswith("num_batches_tracked"):
            if name in state and state[name].numel() != 1:
                wrong.append(
                    f"{found.prefix}{stored_names[name]} has the shape {tuple(state[name].shape)}; expected one number"
                )
            continue
        if name not in state:
            wrong.append(f"{found.prefix}{stored_names[name]} is missing")
            continue
        tensor = state[name]
        allowed = {shape, (*shape[:2], 3, 3)} if name == "conv1.weight" else {shape}
        if tuple(tensor.shape) not in allowed:
            wrong.append(f"{found.prefix}{stored_names[name]} has the shape {tuple(tensor.shape)}; expected {shape}")
        elif tensor.dtype not in _DTYPES:
            wrong.append(f"{found.prefix}{stored_names[name]} has {tensor.dtype}; expected floating-point numbers")
    unused = candidates.keys() - set(stored_names.values())
    return wrong + [f"{found.prefix}{key} is not part of the backbone" for key in candidates if key in unused]
