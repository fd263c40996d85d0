"""Finding the backbone in a file: which layout, which copy, which of our architectures; every tensor accounted for."""

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
# So many names of a layout say that its network is meant, complete or not: half of the smallest we have.
_ENOUGH = 30

# Why a network with such keys is not one of ours, whatever else is missing.
_OTHER_NETWORKS = (
    (r"(^|[./])(conv1\.\d+\.|stem\.\d|stem\.conv\d*[_.]?[23]|stem\.conv1_1)", "a deep stem (ResNet-C or -D)"),
    (r"(^|\.)net\.0\.3\.0\.weight$", "selective kernels (SimCLR v2's sk1) on a deep stem"),
    (r"(^|\.)downsample\.2\.", "an average pool in the shortcuts (ResNet-D)"),
    (r"(^|\.)(cls_token|pos_embed|patch_embed\.|blocks\.\d+\.attn)", "a vision transformer"),
    (r"(^|[./])(layer3\.6\.|res4[._]6|stages\.2\.layers\.6\.)", "deeper than ResNet-50"),
    (r"(layer1\.0\.downsample|layer1\.0\.shortcut|block_group_0/~/block_0/~/shortcut|res2\.0\.shortcut)", "projection"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A backbone in a file, still as stored there.

    Attributes:
        container, prefix: where its tensors lie.
        rest: its tensors and their neighbors, by what follows the prefix.
        table: what the layout calls them.
        others: every other key of the file.
    """

    layout: Layout
    branch: str
    container: str
    prefix: str
    table: Names
    rest: dict[str, torch.Tensor]
    others: list[str]

    @property
    def place(self) -> str:
        return "/".join(part for part in (self.container, self.prefix) if part) or "the top of the file"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extracted:
    """A complete backbone under torchvision's names, in float32.

    Attributes:
        left_aside: keys of the file that are no part of it.
        counters: batch norms for which the file has no `num_batches_tracked`; it is 0 there.
        dtypes: of the weights in the file.
        notes: what was done to the tensors beyond naming them.
    """

    architecture: str
    kernel: int
    state: dict[str, torch.Tensor]
    left_aside: list[str]
    counters: int
    dtypes: list[str]
    notes: list[str]


def find(content: Content, source: str = "auto") -> Found:
    """The backbone that `source` names: "auto", a layout, or layout:branch; torchvision:PREFIX takes any prefix.

    Raises:
        InputError: an unknown layout or branch, no backbone in the file, or several and none of them the usual one.
    """
    root = content.data
    if isinstance(root, dict) and isinstance(root.get("experiment_state"), ByolState):
        root = {**root, **flatten_byol(root["experiment_state"])}
    if not isinstance(root, dict):
        raise InputError(f"checkpoint {content.path}: holds a {type(root).__name__}, expected a dictionary of tensors")
    name, _, branch = source.partition(":")
    if name != "auto" and name not in _BY_NAME:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: auto, {', '.join(SOURCES)}"
        raise InputError(f"--from {source}: unknown layout; {hint}")
    if name == "torchvision" and branch and branch not in _BY_NAME[name].branches:
        places = tuple(Place(container, re.escape(branch)) for container in _containers(root))
        layout = dataclasses.replace(_BY_NAME[name], branches={branch: places})
        return _required(layout, branch, root, content.path)
    if name != "auto":
        layout = _BY_NAME[name]
        if branch and branch not in layout.branches:
            raise InputError(f"--from {source}: {name} has the branches {', '.join(layout.branches)}")
        return _required(layout, branch, root, content.path)
    for layout in LAYOUTS:
        found = _look(layout, layout.default or tuple(layout.branches)[:1], root, content.path, marked=True)
        if found is not None:
            return found
        others = [b for b in layout.branches if layout.marks and _look(layout, (b,), root, content.path, marked=True)]
        if others:
            raise InputError(
                f"checkpoint {content.path}: looks like {layout.name}, but has only its branch {' and '.join(others)}; "
                f"if that is the one you want, say --from {layout.name}:{others[0]}"
            )
    return _only_prefix(root, content.path)


def _required(layout: Layout, branch: str, root: dict[str, Any], path: Path) -> Found:
    wanted = (branch,) if branch else layout.default or tuple(layout.branches)[:1]
    found = _look(layout, wanted, root, path, marked=False)
    if found is None:
        raise InputError(
            f"checkpoint {path}: no {layout.name} backbone ({wanted[0]}) in it; its keys are {_sample(root)}; "
            "try --from auto"
        )
    return found


def _look(layout: Layout, branches: tuple[str, ...], root: dict[str, Any], path: Path, *, marked: bool) -> Found | None:
    """The first of `branches` that the file has; None where it has none, or not the layout's marks."""
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
                (prefix, table): len(rest.keys() & known(table))
                for prefix, rest in groups.items()
                for table in layout.tables
            }
            enough = {key: count for key, count in counts.items() if count >= _ENOUGH}
            prefixes = sorted({prefix for prefix, _ in enough})
            if len(prefixes) > 1:
                raise InputError(
                    f"checkpoint {path}: backbones under {' and '.join(prefixes)}, which {layout.name} does not tell "
                    f"apart; say --from torchvision:{prefixes[0]} or --from torchvision:{prefixes[1]}"
                )
            if enough:
                prefix, table = max(enough, key=enough.__getitem__)
                rest = groups[prefix]
                others = _siblings(root, place)
                others += [
                    str(key)
                    for key in _inside(root, place)
                    if not (str(key).startswith(prefix) and str(key)[len(prefix) :] in rest)
                ]
                return Found(
                    layout=layout,
                    branch=branch,
                    container=place.container,
                    prefix=prefix,
                    table=table,
                    rest=rest,
                    others=others,
                )
    return None


def _inside(root: dict[str, Any], place: Place) -> Any:
    value: Any = root
    for key in place.keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _siblings(root: dict[str, Any], place: Place) -> list[str]:
    """Keys beside those that lead to a place."""
    found, value = [], root
    for depth, key in enumerate(place.keys):
        found += ["/".join([*place.keys[:depth], str(other)]) for other in value if other != key]
        value = value[key]
    return found


def _has_marks(layout: Layout, root: dict[str, Any], inside: dict[str, torch.Tensor]) -> bool:
    listing = "\n".join([*(f"/{key}" for key in root), *inside])
    return all(
        bool(re.search(mark.removeprefix("!"), listing, re.MULTILINE)) != mark.startswith("!") for mark in layout.marks
    )


def _containers(root: dict[str, Any]) -> list[str]:
    """Where tensors may lie: the top, and every dictionary in it."""
    return ["", *(str(key) for key, value in root.items() if isinstance(value, dict))]


def _only_prefix(root: dict[str, Any], path: Path) -> Found:
    """A backbone with torchvision's names under a prefix that no layout has, if it is the only one."""
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
            f"checkpoint {path}: no ResNet-18, -34 or -50 in a known layout: {detail}; see --from for the layouts"
        )
    if len(places) > 1:
        choices = ", ".join(f"--from torchvision:{prefix}" for _, prefix in places)
        raise InputError(f"checkpoint {path}: {len(places)} backbones in no known layout; choose one: {choices}")
    container, prefix = places[0]
    layout = _BY_NAME["torchvision"]
    place = Place(container, re.escape(prefix))
    return _required(dataclasses.replace(layout, branches={"online": (place,)}), "online", root, path)


def _sample(root: dict[str, Any]) -> str:
    keys = [str(key) for key in root]
    for container in _containers(root)[1:]:
        keys += [f"{container}/{key}" for key in list(root[container])[:3]]
    return ", ".join(keys[:6]) + (", ..." if len(keys) > 6 else "")


def _reason(keys: list[str]) -> str:
    """What betrays another kind of network among keys, if anything does."""
    for pattern, reason in _OTHER_NETWORKS[:-1]:
        for key in keys:
            if re.search(pattern, key):
                return f"{reason}: {key}"
    return ""


def extract(found: Found, path: Path) -> Extracted:
    """Every tensor of the backbone, once, and nothing else.

    Raises:
        InputError: a tensor is missing, left over, of another shape or kind, or not finite.
    """
    problems: dict[str, list[str]] = {}
    heads = re.compile(found.layout.heads)
    neighbors = {key: tensor for key, tensor in found.rest.items() if not heads.fullmatch(key)}
    converted = {}
    for architecture in NAMES:
        theirs = names(found.table, architecture)
        state = {
            ours: _adapt(found, theirs[ours], shapes(architecture)[ours])
            for ours in theirs
            if theirs[ours] in neighbors
        }
        problems[architecture] = _problems(found, architecture, state, neighbors)
        converted[architecture] = state
    best = min(NAMES, key=lambda name: len(problems[name]))
    wrong = problems[best] or [
        f"{found.prefix}{names(found.table, best)[name]} holds values that are not finite"
        for name, tensor in converted[best].items()
        if not torch.isfinite(tensor).all()
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        reason = _reason(list(neighbors))
        if best != "resnet50" and any(re.search(_OTHER_NETWORKS[-1][0], line) for line in wrong):
            reason = "a projection in the first shortcut, which torchvision's basic blocks lack"
        because = f" ({reason}, which is another network)" if reason else ""
        raise InputError(
            f"checkpoint {path}: the {found.layout.name} backbone at {found.place} is not a {best}{because}: "
            f"{'; '.join(wrong[:3])}{more}"
        )
    stored, notes = converted[best], []
    counters = [name for name in shapes(best) if name.endswith("num_batches_tracked")]
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for name, t in stored.items() if name not in counters})
    state = {}
    for name in shapes(best):
        if name in counters:
            state[name] = stored[name].to(torch.int64).reshape(()) if name in stored else torch.tensor(0)
        else:
            state[name] = stored[name].to(torch.float32).contiguous().clone()
    if found.layout.adapt == "msra":
        std = torch.tensor(IMAGENET["std"]).mul(255)
        state["conv1.weight"] = state["conv1.weight"].flip(1) * std[None, :, None, None]
        notes.append("BGR in 0..255 folded into conv1: it now expects RGB in 0..1, normalized")
    if found.layout.adapt == "split_bn" and any(
        found.rest[names(found.table, best)[n]].shape != state[n].shape for n in stored
    ):
        notes.append("running statistics of SplitBatchNorm averaged over its splits")
    used = {names(found.table, best)[name] for name in stored}
    left = [*found.others, *(found.prefix + key for key in found.rest if key not in used)]
    return Extracted(
        architecture=best,
        kernel=state["conv1.weight"].shape[-1],
        state=state,
        left_aside=left,
        counters=len(counters) - sum(name in stored for name in counters),
        dtypes=dtypes,
        notes=notes,
    )


def _adapt(found: Found, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A stored tensor turned as torchvision has it; a shape that is wrong stays wrong."""
    tensor = found.rest[key]
    if found.layout.adapt == "haiku":
        return tensor.permute(3, 2, 0, 1) if key.endswith("/w") and tensor.ndim == 4 else tensor.reshape(-1)
    if found.layout.adapt == "split_bn" and ".running_" in key and tensor.numel() % shape[0] == 0:
        splits = tensor.reshape(-1, shape[0])  # equal once the model was evaluated, which is when they are used
        return splits[0] if bool((splits == splits[0]).all()) else splits.mean(0)
    return tensor


def _problems(
    found: Found, architecture: str, state: dict[str, torch.Tensor], neighbors: dict[str, torch.Tensor]
) -> list[str]:
    """What speaks against the tensors being this architecture's, by their names in the file."""
    theirs = names(found.table, architecture)
    wrong = []
    for name, shape in shapes(architecture).items():
        if name.endswith("num_batches_tracked"):
            if name in state and state[name].numel() != 1:
                wrong.append(f"{found.prefix}{theirs[name]} is {tuple(state[name].shape)}, expected one number")
            continue
        if name not in state:
            wrong.append(f"{found.prefix}{theirs[name]} is missing")
            continue
        tensor = state[name]
        allowed = {shape, (*shape[:2], 3, 3)} if name == "conv1.weight" else {shape}
        if tuple(tensor.shape) not in allowed:
            wrong.append(f"{found.prefix}{theirs[name]} is {tuple(tensor.shape)}, expected {shape}")
        elif not tensor.is_floating_point():
            wrong.append(f"{found.prefix}{theirs[name]} holds {tensor.dtype}, expected floating-point numbers")
    unused = neighbors.keys() - set(theirs.values())
    return wrong + [f"{found.prefix}{key} is not part of it" for key in neighbors if key in unused]
