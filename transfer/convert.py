"""Read and convert checkpoints of all projects: torchvision's names, float32, no classifier.

`load_backbone` and `read` take every layout of `transfer.formats.layouts`. `convert` writes a file for Detectron2,
torchvision or timm, or safetensors. It reads the written file back and compares features.
"""

import dataclasses
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from intl_bench.core import distributed, files, machine, planned, run_folders
from intl_bench.core.errors import BenchError, InputError
from pretrain import checkpoint as checkpoints
from pretrain import states
from pretrain.backbone import BackboneConfig
from pretrain.checkpoint import Checkpoint, Origin, Preprocessing, export_backbone
from transfer import converted_features
from transfer.formats import safe_load
from transfer.formats.facts import read as read_facts
from transfer.formats.facts import write as write_facts
from transfer.formats.layout import Layout
from transfer.formats.layouts import LAYOUTS
from transfer.formats.loaded import Loaded, describe, detectron2_settings
from transfer.formats.match import Extracted, Found, extract, find
from transfer.formats.names import DETECTRON2, TORCHVISION, Names, names

__all__ = ["TARGETS", "Conversion", "convert", "from_detectron2", "interpret", "load_backbone", "read", "to_detectron2"]
TARGETS = ("detectron2", "torchvision", "timm", "safetensors")
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """Result of `convert`.

    Attributes:
        lines: a description for people.
        about: the facts stored beside the written file: `pretrain.checkpoint.about` and digests.
        left_aside: keys of the source that are not part of the backbone.
        difference: the largest difference between features of the written file and of the source, relative to the
            largest feature.
    """

    lines: list[str]
    about: dict[str, Any]
    left_aside: list[str]
    difference: float


def load_backbone(path: str | Path, source: str = "auto") -> dict[str, torch.Tensor]:
    """Read the backbone of a checkpoint with torchvision's names: float32, contiguous, without fc.

    A warning on stderr tells how the network of the checkpoint differs from torchvision's with the same weights.

    Args:
        path: a PyTorch file, safetensors, or a pickle of Detectron2 or haiku. Code in the file is not run.
        source: "auto", a layout such as "moco", or a branch of it such as "moco:momentum".

    Raises:
        InputError: the file is unreadable, or has no backbone, or several and no default among them; or a tensor is
            missing, unexpected, of another shape, or not finite.
    """
    loaded = _interpret(safe_load.read(Path(path)), source)
    _warn(loaded)
    return loaded.extracted.state


def read(path: str | Path, source: str = "auto") -> Checkpoint:
    """Read a checkpoint for a task. A checkpoint of this project also has the facts of its training.

    Raises:
        InputError: see `load_backbone`; or the strides of the network differ from those of our backbone.
    """
    return interpret(safe_load.read(Path(path)), source)


def interpret(content: safe_load.Content, source: str = "auto") -> Checkpoint:
    """Do the same as `read` for a file that `transfer.formats.safe_load.read` has read."""
    loaded, path = _interpret(content, source), content.path
    if loaded.bottleneck_stride:
        raise InputError(
            f"checkpoint {path}: its network has the {loaded.facts['differs']}: our backbone gives other features with "
            "these weights; use weights trained with the stride in the 3x3, such as torchvision's"
        )
    _warn(loaded)
    return loaded.checkpoint


def to_detectron2(backbone: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename tensors from torchvision to Detectron2: `stem.conv1.weight`, `res2.0.conv1.norm.bias`, ..., no prefix.

    Raises:
        InputError: a tensor is missing, unexpected or of another shape.
    """
    extracted = _given(backbone, TORCHVISION)
    renamed = names(DETECTRON2, extracted.architecture)
    return {renamed[name]: tensor for name, tensor in extracted.state.items()}


def from_detectron2(backbone: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename tensors from Detectron2 to torchvision. A missing `num_batches_tracked` becomes 0.

    Raises:
        InputError: see `to_detectron2`.
    """
    return _given(backbone, DETECTRON2).state


def _given(backbone: Mapping[str, torch.Tensor], table: Names) -> Extracted:
    """Check tensors in memory, which have the names of `table` and no heads."""
    layout = next(
        layout for layout in LAYOUTS if layout.tables == (table,) and layout.name in ("torchvision", "detectron2")
    )
    found = Found(
        layout=dataclasses.replace(layout, heads=r"(?!)"),
        branch="online",
        container="",
        prefix="",
        table=table,
        stored=dict(backbone),
        other_keys=[],
    )
    return extract(found, Path("(weights in memory)"))


def convert(path: str | Path, out: str | Path, to: str, source: str = "auto") -> Conversion:
    """Write the backbone of `path` to `out` in the layout `to`, and facts that its keys do not tell to `out`.json.

    Args:
        to: one of `TARGETS`. For Detectron2, `out` is a pickle of arrays if it ends in .pkl, otherwise a PyTorch file;
            `MODEL.WEIGHTS` takes both.
        source: see `load_backbone`.

    Raises:
        InputError: see `load_backbone`; or the target is unknown, its networks do not have the stem, or the features
            are not finite.
        ResourceError: the disk is full.
        BenchError: features of the written file differ from those of the source.
    """
    path, out = run_folders.checkpoint_in(Path(path)), Path(out)
    loaded, features = _readable_as(path, out, to, source)
    about, state = loaded.about, loaded.extracted.state
    count = len(state)
    if to == "safetensors":
        export_backbone(out, loaded.checkpoint, loaded.facts)
    else:
        content: dict[str, Any] = state
        if to == "detectron2":
            # Detectron2's converters and frozen batch norms have no counters.
            model = {k: v for k, v in to_detectron2(state).items() if not k.endswith("num_batches_tracked")}
            count = len(model)
            content = {"model": model, "__author__": "intl-bench", "matching_heuristics": True}
            if out.suffix == ".pkl":
                content["model"] = {name: tensor.numpy() for name, tensor in model.items()}
        write = pickle.dump if out.suffix == ".pkl" and to == "detectron2" else torch.save
        files.write_digested(out, lambda stream: write(content, stream))
    written = safe_load.read(out)
    difference, against = converted_features.difference(
        loaded.extracted, loaded.checkpoint.architecture.stem, features, written, to
    )
    if not difference <= _TOLERANCE:
        raise BenchError(
            f"{out}: its features differ from those of {path} by {difference:.1e}; expected at most {_TOLERANCE:.0e}; "
            "do not use it"
        )
    write_facts(out, written.sha256, about)
    lines = [
        *describe(loaded),
        f"{out}: {to}, {count} tensors, sha256 {written.sha256}; features equal within {difference:.0e} ({against})",
    ]
    if to == "detectron2":
        lines.append(detectron2_settings(loaded))
    lines += [f"warning: {line}" for line in loaded.warnings()]
    return Conversion(lines=lines, about=about, left_aside=loaded.extracted.left_aside, difference=difference)


def plan(path: Path, out: Path, to: str, source: str = "auto") -> list[str]:
    """Return what `convert` reads and writes, in lines for people, and write nothing.

    Raises:
        InputError: see `convert`.
    """
    loaded, _ = _readable_as(run_folders.checkpoint_in(path), out, to, source)
    state, free = loaded.extracted.state, machine.free_bytes(out)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return [
        *describe(loaded),
        f"{out}: {to}, {len(state)} tensors, about {planned.size(size)} of {planned.size(free)} free"
        + ("; the file is replaced" if out.exists() else ""),
        f"{out}.json: the facts that the keys do not tell",
        *(f"warning: {line}" for line in loaded.warnings()),
        "dry run: nothing was written",
    ]


def _readable_as(path: Path, out: Path, to: str, source: str) -> tuple[Loaded, torch.Tensor]:
    """Read the backbone of `path` for a conversion to `out`; raise the errors of `convert` before it writes.

    Returns:
        The backbone, and its features; see `converted_features.compute`.
    """
    if to not in TARGETS:
        raise InputError(f"--to {to}: expected one of {', '.join(TARGETS)}")
    if out.is_dir() or (out.exists() and out.samefile(path)):
        raise InputError(f"cannot write {out}: it is {'a folder' if out.is_dir() else 'the source'}; give another file")
    loaded = _interpret(safe_load.read(path), source)
    stem = loaded.checkpoint.architecture.stem
    if to != "safetensors" and stem != "imagenet":
        raise InputError(
            f"checkpoint {path}: it has the {stem} stem (3x3); networks of {to} expect a stem of 7x7; "
            "use --to safetensors, which keeps the name of the stem"
        )
    features = converted_features.compute(loaded.extracted.architecture, stem, loaded.extracted.state)
    if not features.isfinite().all():
        raise InputError(f"checkpoint {path}: features of random images are not finite; the training may have diverged")
    return loaded, features


def _interpret(content: safe_load.Content, source: str) -> Loaded:
    """Find and convert the backbone of a file, with the facts that the file, its layout or its JSON file tell."""
    path = content.path
    found = find(content, source)
    extracted = extract(found, path)
    stored = read_facts(content) if source == "auto" else None
    facts: dict[str, Any] = {"source_sha256": content.sha256}
    with checkpoints.readable(path):
        if found.layout.name == "intl-bench":
            states.check(path, content.data)
            checkpoint = checkpoints.from_state(path, content.sha256, content.data, extracted.state, found.branch)
        elif stored is not None:
            checkpoint = checkpoints.from_about(stored, path, content.sha256, extracted.state)
            facts |= {key: stored[key] for key in ("differs", "stride_in_1x1", "assumed") if key in stored}
        else:
            checkpoint = _foreign(content, found, extracted)
            facts |= _facts(found.layout, extracted)
    note = found.layout.preprocessing.get("note", "") if checkpoint.origin is Origin.FOREIGN else ""
    return Loaded(found=found, extracted=extracted, checkpoint=checkpoint, facts=facts, note=note)


def _foreign(content: safe_load.Content, found: Found, extracted: Extracted) -> Checkpoint:
    """Describe a foreign checkpoint by the facts of its layout."""
    layout, small = found.layout, extracted.kernel != 7
    pixels = Preprocessing(mean=layout.preprocessing["mean"], std=layout.preprocessing["std"])
    return Checkpoint(
        path=content.path,
        sha256=content.sha256,
        backbone=extracted.state,
        origin=Origin.FOREIGN,
        method=layout.display,
        architecture=BackboneConfig(name=extracted.architecture, stem=layout.small_stem if small else "imagenet"),
        # On small images most projects use the mean and std of the data set, which keys do not tell.
        preprocessing=None if small and layout.per_data_set else pixels,
        seed=None,
        source=layout.name if found.branch == next(iter(layout.branches)) else f"{layout.name}:{found.branch}",
        epoch=_epochs(content.data),
    )


def _epochs(root: Mapping[str, Any]) -> int | None:
    """Return the number of completed epochs; None if it is unknown.

    Some projects store this number, others the index of the last epoch, from 0.
    """
    meta = root.get("meta")
    epoch = root.get("epoch", meta.get("epoch") if isinstance(meta, dict) else None)
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
        return None
    from_0 = (
        "pytorch-lightning_version" in root
        or ("arch" in root and isinstance(root.get("version"), int) and root["version"] > 1)  # timm's train.py
        or {"model", "lr_scheduler", "args"} <= root.keys()  # torchvision's references/classification
    )
    return epoch + from_0


def _facts(layout: Layout, extracted: Extracted) -> dict[str, Any]:
    """Return the differences of a foreign network from ours, and the assumptions about its stem."""
    facts: dict[str, Any] = {}
    if layout.differs and not (layout.stride_in_1x1 and "layer1.0.conv3.weight" not in extracted.state):
        facts |= {"differs": layout.differs, "stride_in_1x1": layout.stride_in_1x1}
    if extracted.kernel != 7:
        facts["assumed"] = (
            "keys tell neither the padding of the 3x3 stem nor whether a max-pool follows: assumed "
            f"{layout.small_stem}, as in the code of {layout.display}"
        )
        if layout.per_data_set:
            facts["assumed"] += (
                "; keys do not tell the mean and std of the pixels: assumed those of the protocol or data set"
            )
    return facts


def _warn(loaded: Loaded) -> None:
    if not distributed.is_main_process():
        return
    choice = loaded.choice() if loaded.checkpoint.origin is Origin.FOREIGN else []
    for line in choice + loaded.warnings():
        print(f"{loaded.checkpoint.path}: {line}", file=sys.stderr)
