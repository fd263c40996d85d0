"""Match the tensors of a stored backbone with those of an architecture: each is used once."""

import dataclasses
import re
from pathlib import Path

import torch

from intl_bench.core.errors import InputError
from pretrain.backbone import NAMES
from transfer.formats.find import SOURCES, Found, find
from transfer.formats.layout import IMAGENET
from transfer.formats.names import names, shapes
from transfer.formats.other_networks import reason

__all__ = ["SOURCES", "Extracted", "Found", "extract", "find"]
_LARGEST = 2**24  # numbers in a tensor of a backbone; the largest has 9.4 million
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# A shortcut with a convolution where torchvision's basic blocks have none.
_PROJECTION = r"(layer1\.0\.downsample|layer1\.0\.shortcut|block_group_0/~/block_0/~/shortcut|res2\.0\.shortcut)"


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

    @property
    def widths(self) -> tuple[int, int]:
        """The channels of the stem, and those of the 3x3 convolutions of the first stage."""
        return len(self.state["conv1.weight"]), len(self.state["layer1.0.conv2.weight"])


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
        f"{found.key(names(found.table, best)[name])} has values that are not finite"
        for name, tensor in by_architecture[best].items()
        if not torch.isfinite(tensor.to(torch.float32)).all()
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        unused = [found.key(key) for key in candidates if key not in names(found.table, best).values()]
        because = reason(unused)
        if best != "resnet50" and any(re.search(_PROJECTION, line) for line in wrong):
            because = "a projection in the first shortcut, which torchvision's basic blocks lack: another network"
        because = f" ({because})" if because else ""
        if any(tensor.numel() == 0 for tensor in candidates.values()):
            because = " (its tensors are empty, as of ZeRO stage 3 of DeepSpeed; run its zero_to_fp32.py)"
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
    left_aside = [*found.other_keys, *(found.key(key) for key in found.stored if key not in used_keys)]
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
                    f"{found.key(stored_names[name])} has the shape {tuple(state[name].shape)}; expected one number"
                )
            continue
        if name not in state:
            wrong.append(f"{found.prefix}{stored_names[name]} is missing")
            continue
        tensor = state[name]
        allowed = {shape, (*shape[:2], 3, 3)} if name == "conv1.weight" else {shape}
        if tuple(tensor.shape) not in allowed:
            wrong.append(f"{found.key(stored_names[name])} has the shape {tuple(tensor.shape)}; expected {shape}")
        elif tensor.dtype not in _DTYPES:
            wrong.append(f"{found.key(stored_names[name])} has {tensor.dtype}; expected floating-point numbers")
    unused = candidates.keys() - set(stored_names.values())
    return wrong + [f"{found.key(key)} is not part of the backbone" for key in candidates if key in unused]
