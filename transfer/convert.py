"""Checkpoints of others to and from the canonical backbone: torchvision's names, float32, no classifier.

`load_backbone` and `read` take any layout of `transfer.layouts`; `convert` writes for Detectron2, torchvision, timm, or
as safetensors, and checks the written file by reading it back through the inverse of its names.
"""

import dataclasses
import functools
import importlib
import importlib.util
import json
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from intl_bench.core import config as configs
from intl_bench.core import files
from intl_bench.core.errors import BenchError, InputError
from pretrain.backbone import Backbone, BackboneConfig
from pretrain.checkpoint import Checkpoint, export_backbone, load_backbone_checkpoint
from pretrain.data import DataConfig, normalization
from transfer import unpickle
from transfer.layout_names import DETECTRON2, TORCHVISION, Names, names
from transfer.layouts import LAYOUTS
from transfer.recognise import Extracted, Found, extract, find

TARGETS = ("detectron2", "torchvision", "timm", "safetensors")
_TOLERANCE = 1e-6
_DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What `convert` did; `lines` is for people.

    Attributes:
        about: what is stored beside the result: layout, stem, preprocessing, digests.
        left_aside: keys of the source that are no part of the backbone.
        difference: largest difference of features, written file against source, relative to the largest feature.
    """

    lines: list[str]
    about: dict[str, Any]
    left_aside: list[str]
    difference: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loaded:
    path: Path
    sha256: str
    found: Found
    extracted: Extracted
    about: dict[str, Any]
    epoch: int

    @property
    def bottleneck_stride(self) -> bool:
        """Whether its network has strides that ours does not: basic blocks have no 1x1 convolution to move them to."""
        return bool(self.about.get("stride_in_1x1"))

    def warnings(self) -> list[str]:
        found = []
        if self.about.get("differs"):
            found.append(
                f"its network uses {self.about['differs']}; without that, features are only similar to its own"
            )
        if self.about.get("assumed"):
            found.append(self.about["assumed"])
        return found


def load_backbone(path: str | Path, source: str = "auto") -> dict[str, torch.Tensor]:
    """The backbone in a checkpoint, under torchvision's names: float32, contiguous, no fc, every tensor accounted for.

    What its network does differently from torchvision's with the same weights goes to stderr as a warning.

    Args:
        path: a PyTorch file, safetensors, or a Detectron2 or haiku pickle; code in it is refused, not run.
        source: "auto", a layout such as "moco", or a copy in it such as "moco:momentum".

    Raises:
        InputError: unreadable, no backbone, several that nothing tells apart, or a tensor missing, extra or misshapen.
    """
    loaded = _load(Path(path), source)
    _warn(loaded)
    return loaded.extracted.state


def read(path: str | Path, source: str = "auto") -> Checkpoint:
    """Any checkpoint as the tasks take it; one of ours with all that it knows about its training.

    Raises:
        InputError: as `load_backbone`, and where our backbone would compute something else with these weights.
    """
    loaded = _load(Path(path), source)
    if loaded.found.layout.name == "intl-bench" and loaded.found.branch == "online":
        return load_backbone_checkpoint(Path(path))
    if loaded.bottleneck_stride:
        raise InputError(
            f"checkpoint {path}: its network has its {loaded.about['differs']}: with our backbone these weights would "
            "give other features; use weights trained with the stride in the 3x3, such as torchvision's"
        )
    _warn(loaded)
    # Nothing is known to be reduced about it; `epochs` and the like are there for one of ours, exported when finished.
    config = {"scale": "paper", "seed": 0, **loaded.about}
    return Checkpoint(
        path=Path(path),
        sha256=loaded.sha256,
        backbone=loaded.extracted.state,
        config=config,
        method=loaded.about["display"],
        epoch=config.get("epochs", loaded.epoch),
        details={},
    )


def to_detectron2(backbone: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Torchvision's names to Detectron2's: `stem.conv1.weight`, `res2.0.conv1.norm.bias`, ..., without a prefix.

    Raises:
        InputError: a tensor is missing, extra or misshapen.
    """
    extracted = _given(backbone, TORCHVISION)
    theirs = names(DETECTRON2, extracted.architecture)
    return {theirs[name]: tensor for name, tensor in extracted.state.items()}


def from_detectron2(backbone: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `to_detectron2`; absent `num_batches_tracked` are 0."""
    return _given(backbone, DETECTRON2).state


def _given(backbone: Mapping[str, torch.Tensor], table: Names) -> Extracted:
    layout = next(
        layout for layout in LAYOUTS if layout.tables == (table,) and layout.name in ("torchvision", "detectron2")
    )
    found = Found(
        layout=dataclasses.replace(layout, heads=r"(?!)"),
        branch="online",
        container="",
        prefix="",
        table=table,
        rest=dict(backbone),
        others=[],
    )
    return extract(found, Path("(weights in memory)"))


def convert(path: str | Path, out: str | Path, to: str, source: str = "auto") -> Conversion:
    """Writes the backbone of `path` to `out` in the layout `to`, and `out`.json with what its keys cannot tell.

    Args:
        to: one of `TARGETS`. For Detectron2 `out` is a pickle of arrays if it ends in .pkl, else a PyTorch file; both
            are what its `MODEL.WEIGHTS` takes.
        source: as for `load_backbone`.

    Raises:
        InputError: as `load_backbone`; an unknown target; a stem that the target's network does not have.
        ResourceError: the disk is full.
        BenchError: the written file does not give the source's features.
    """
    path, out = Path(path), Path(out)
    if to not in TARGETS:
        raise InputError(f"--to {to}: expected one of {', '.join(TARGETS)}")
    if out.is_dir() or (out.exists() and out.samefile(path)):
        raise InputError(f"cannot write {out}: it is {'a folder' if out.is_dir() else 'the source itself'}")
    loaded = _load(path, source)
    about, state = loaded.about, loaded.extracted.state
    if to != "safetensors" and about["backbone"]["stem"] != "imagenet":
        raise InputError(
            f"checkpoint {path}: it has the {about['backbone']['stem']} stem (3x3), networks of {to} have a 7x7 one: "
            "use --to safetensors, which keeps the stem's name"
        )
    count = len(state)
    if to == "safetensors":
        export_backbone(out, state, about)
    else:
        content: dict[str, Any] = state
        if to == "detectron2":
            # Detectron2's converters leave the counters out, and so do its frozen batch norms.
            model = {k: v for k, v in to_detectron2(state).items() if not k.endswith("num_batches_tracked")}
            count = len(model)
            content = {"model": model, "__author__": "intl-bench", "matching_heuristics": True}
            if out.suffix == ".pkl":
                content["model"] = {name: tensor.numpy() for name, tensor in model.items()}
        write = pickle.dump if out.suffix == ".pkl" and to == "detectron2" else torch.save
        files.write_digested(out, lambda stream: write(content, stream))
    written = unpickle.read(out)
    difference, against = _difference(loaded, written, to)
    if not difference <= _TOLERANCE:
        raise BenchError(
            f"{out}: its features differ from those of {path} by {difference:.1e}, more than {_TOLERANCE:.0e}: do not "
            "use it"
        )
    files.write_text(
        out.with_name(f"{out.name}.json"), json.dumps({**about, "sha256": written.sha256}, indent=2) + "\n"
    )
    lines = [
        *_describe(loaded),
        f"{out}: {to}, {count} tensors, sha256 {written.sha256}; features equal to {difference:.0e} ({against})",
    ]
    if to == "detectron2":
        lines.append(_detectron2_settings(loaded))
    lines += [f"warning: {line}" for line in loaded.warnings()]
    return Conversion(lines=lines, about=about, left_aside=loaded.extracted.left_aside, difference=difference)


def _load(path: Path, source: str) -> _Loaded:
    content = unpickle.read(path)
    found = find(content, source)
    extracted = extract(found, path)
    layout = found.layout
    stored = _stored(content) if source == "auto" else None
    small = extracted.kernel != 7
    about: dict[str, Any] = {
        "backbone": {
            "name": extracted.architecture,
            "stem": layout.small_stem if small else "imagenet",
            "zero_init_residual": False,
        },
        "source": layout.name if found.branch == next(iter(layout.branches)) else f"{layout.name}:{found.branch}",
        "display": layout.display,
        "preprocessing": dict(layout.preprocessing),
        "source_sha256": content.sha256,
    }
    if layout.differs and not (layout.stride_in_1x1 and extracted.architecture != "resnet50"):
        about["differs"] = layout.differs
        about["stride_in_1x1"] = layout.stride_in_1x1
    if small and layout.name != "intl-bench":
        about["assumed"] = (
            "keys do not tell the padding of the 3x3 stem nor whether a max-pool follows: taken as "
            f"{layout.small_stem}, as in the code of {layout.display}"
        )
    if stored is not None:
        kept = {key: about[key] for key in ("source", "preprocessing", "source_sha256")}
        about = {"display": _display(stored), **kept, **stored}
    root = content.data
    epoch = root.get("epoch", root["meta"].get("epoch") if isinstance(root.get("meta"), dict) else None)
    if layout.name == "intl-bench":
        epoch = root["step"] // root["steps_per_epoch"]
        about["display"] = root["display"]
        about["backbone"] = dict(root["config"]["backbone"])
        mean, std = normalization(configs.build(DataConfig, root["config"]["data"], f"checkpoint {path}"))
        about["preprocessing"] = {**about["preprocessing"], "mean": list(mean), "std": list(std)}
    return _Loaded(
        path=path,
        sha256=content.sha256,
        found=found,
        extracted=extracted,
        about=about,
        epoch=epoch if isinstance(epoch, int) and epoch >= 0 else 0,
    )


def _stored(content: unpickle.Content) -> dict[str, Any] | None:
    """What `convert` or `intl-bench pretrain` stored about a backbone: in its header, or in the file beside it."""
    beside = content.path.with_name(f"{content.path.name}.json")
    try:
        if "config" in content.metadata:
            found = json.loads(content.metadata["config"])
        elif beside.is_file():
            found = json.loads(beside.read_text(encoding="utf-8"))
            if found.pop("sha256") != content.sha256:
                return None
        else:
            return None
        BackboneConfig(**found["backbone"])
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return None
    return found


def _display(stored: dict[str, Any]) -> str:
    method = stored.get("method")
    return str(method["name"]).upper() if isinstance(method, dict) and "name" in method else "intl-bench"


def _warn(loaded: _Loaded) -> None:
    for line in loaded.warnings():
        print(f"{loaded.path}: {line}", file=sys.stderr)


def _describe(loaded: _Loaded) -> list[str]:
    about, extracted = loaded.about, loaded.extracted
    look = about["preprocessing"]
    mean, std = (" ".join(f"{value:g}" for value in look[key]) for key in ("mean", "std"))
    origin = "as pre-trained" if about["source"] == "intl-bench" else "by its authors' code"
    lines = [
        f"{loaded.path}: {about['source']}, {extracted.architecture} ({about['backbone']['stem']} stem) at "
        f"{loaded.found.place}, stored as {', '.join(extracted.dtypes)}",
        f"expects {look['channels']} in {look['scale']}, mean {mean}, std {std} ({origin})"
        + (f"; {look['note']}" if "note" in look else ""),
        *extracted.notes,
    ]
    if extracted.counters:
        lines.append(f"{extracted.counters} num_batches_tracked are not in it: 0")
    if extracted.left_aside:
        lines.append(f"left aside: {_grouped(extracted.left_aside)}")
    return lines


def _grouped(keys: list[str]) -> str:
    """Keys by their first names, with counts: `module.encoder_k.* (161), optimizer`."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        wrapped = re.match(r"(?:(?:_orig_mod|module|model|backbone)\.)*[^.]+", key)
        groups.setdefault(wrapped[0] if wrapped else key, []).append(key)
    parts = [members[0] if len(members) == 1 else f"{name}.* ({len(members)})" for name, members in groups.items()]
    return ", ".join(parts[:12]) + (f", and {len(parts) - 12} more" if len(parts) > 12 else "")


def _detectron2_settings(loaded: _Loaded) -> str:
    look = loaded.about["preprocessing"]
    mean, std = ([round(255 * value, 3) for value in look[key]] for key in ("mean", "std"))
    return (
        f"in Detectron2 set INPUT.FORMAT RGB, MODEL.PIXEL_MEAN {mean}, MODEL.PIXEL_STD {std}, MODEL.RESNETS.DEPTH "
        f"{_DEPTHS.get(loaded.extracted.architecture, 'none')}, MODEL.RESNETS.STRIDE_IN_1X1 {loaded.bottleneck_stride}"
    )


def _difference(loaded: _Loaded, written: unpickle.Content, to: str) -> tuple[float, str]:
    """How far features from the written file are from the source's, and by which networks that was found."""
    architecture = loaded.extracted.architecture
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = functools.partial(_features, architecture, loaded.about["backbone"]["stem"], images=images)
    back = extract(find(written, "detectron2" if to == "detectron2" else "torchvision"), written.path).state
    expected = features(loaded.extracted.state)
    differences = [(features(back) - expected).abs().max() / expected.abs().max()]
    against = "read back through the inverse names"
    if to == "detectron2" and architecture in _DEPTHS and importlib.util.find_spec("detectron2") is not None:
        detectron2 = importlib.import_module("transfer.detection.detectron2")
        state = unpickle.tensors(written.data["model"])
        theirs = detectron2.backbone_features(state, images, _DEPTHS[architecture])
        differences.append((theirs - expected).abs().max() / expected.abs().max())
        against += ", and Detectron2's own ResNet"
    return max(float(value) for value in differences), against


@torch.inference_mode()
def _features(name: str, stem: str, state: dict[str, torch.Tensor], *, images: torch.Tensor) -> torch.Tensor:
    with torch.device("meta"):
        model = Backbone(BackboneConfig(name=name, stem=stem)).eval()
    model.load_state_dict(state, assign=True)
    return model(images)
