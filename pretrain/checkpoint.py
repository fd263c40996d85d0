"""Checkpoints: weights, optimizer and position in one digested file that loads with `weights_only=True`."""

import contextlib
import dataclasses
import enum
import functools
import hashlib
import json
import pickle
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes

from intl_bench.core import config as configs
from intl_bench.core import files
from intl_bench.core.errors import InputError, from_os_error
from intl_bench.core.identity import identity
from pretrain import recipe as recipes
from pretrain.backbone import BackboneConfig
from pretrain.images.data import DataConfig, normalization
from pretrain.recipe import Inputs, Recipe

FORMAT = 2  # 1 did not note the training images' fingerprint
_READABLE = (1, FORMAT)
# Where a training state keeps backbones: a method's `backbone`, and the first part of its momentum network, `target`.
BRANCHES = {"online": "backbone.", "momentum": "target.0."}


class Origin(enum.StrEnum):
    """Where a backbone comes from."""

    TRAINED = "trained"  # a training state of `intl-bench pretrain`
    EXPORTED = "exported"  # its backbone alone, as `intl-bench pretrain` or `convert` wrote it
    FOREIGN = "foreign"
    RANDOM = "random"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a backbone expects of pixels: RGB in 0..1, minus `mean`, divided by `std`, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: DataConfig) -> "Preprocessing":
        """That of a data set's images, as `pretrain.images.data.normalization` has it."""
        mean, std = normalization(data)
        return cls(mean=mean, std=std)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # JSON and YAML have lists
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A backbone, and what is known about how it came to be.

    Attributes:
        path: the file.
        sha256: its digest; "" for a random initialization.
        backbone: parameters and buffers under torchvision's names.
        method: the method's name in tables, such as "INTL".
        preprocessing: None where its files do not tell: then the data set's own is taken.
        seed: of the pre-training (or the initialization); None where it is not known.
        source: the layout of the file, "intl-bench" for ours.
        recipe, inputs: what it was trained by; None for a foreign or random one.
        branch: "online" or "momentum", for one of ours.
        epoch: epochs completed; None where it is not known.
        progress: "complete", or how far the recipe's training had got.
        group: the user's name for foreign files that are seeds of one training; None where each stands for itself.
        details: counts and times of the pre-training (`images`, `bad_images`, `seconds`, ...).
    """

    path: Path
    sha256: str
    backbone: dict[str, torch.Tensor]
    origin: Origin
    method: str
    architecture: BackboneConfig
    preprocessing: Preprocessing | None
    seed: int | None
    source: str = "intl-bench"
    recipe: Recipe | None = None
    inputs: Inputs = dataclasses.field(default_factory=Inputs)
    branch: str = "online"
    epoch: int | None = None
    progress: str = "complete"
    group: str | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def weights_sha256(self) -> str:
        """The digest of the backbone's tensors, the same whatever file they are in."""
        return weights_digest(self.backbone)

    def pretraining(self) -> dict[str, Any]:
        """Which pre-training this is, whatever its seed: equal for what may be averaged, and for nothing else."""
        if self.recipe is not None:
            values = recipes.identity(self.recipe, self.inputs)
            settings = {key: value for key, value in values.pop("settings").items() if key != "seed"}
            if values.pop("extends") is not None:
                values["initial_weights"] = f"of the same seed of {self.inputs.extends}"
            if values["computed_in"] is None:
                del values["computed_in"]
            if values["data"] is None:  # it may be any images: not known is not the same
                values["weights"] = self.weights_sha256
            return {**values, "settings": settings, "progress": self.progress, "branch": self.branch}
        settings = {"backbone": identity(self.architecture)}
        if self.origin is Origin.RANDOM:
            return {"initialization": "random", "settings": settings}
        if self.preprocessing is not None:
            settings["preprocessing"] = identity(self.preprocessing)
        own = {"weights": self.weights_sha256} if self.group is None else {"group": self.group}
        return {"source": self.source, "epochs": self.epoch, "settings": settings, **own}


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors with their names and shapes; batch norms' counters, which compute nothing, are left out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(path: Path, state: dict[str, Any]) -> str:
    """Writes a training state (tensors and plain values only) atomically; returns its SHA-256.

    Raises:
        ResourceError: the disk is full; the checkpoint that was there stays.
    """
    return files.write_digested(path, lambda stream: torch.save({"format": FORMAT, **state}, stream))


class Writer:
    """Writes training states in the background, one at a time; at the end of the block all are written.

    `save` returns as soon as the state is copied, so that training may change it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[str] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self.wait()

    def save(self, path: Path, state: dict[str, Any]) -> None:
        """As the function `save`; what it raises, the next call of this class raises."""
        self.wait()
        self._writing = self._thread.submit(save, path, _copy(state))

    def wait(self) -> None:
        """Returns when the state is on the disk; raises what `save` raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()


def _copy(state: Any) -> Any:
    """The same on the CPU, sharing no tensor with `state`."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copy(value) for key, value in state.items()}
    return [_copy(value) for value in state] if isinstance(state, list) else state


def load(path: Path) -> tuple[dict[str, Any], str]:
    """A training state as `save` wrote it, on the CPU, and its SHA-256.

    Raises:
        InputError: missing, damaged, would run code, or not one of ours.
    """
    if not path.is_file():
        raise InputError(
            f"checkpoint {path}: no such file; run `intl-bench pretrain` first, or name another checkpoint"
        )
    digest = files.verify(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise from_os_error(error, f"cannot read checkpoint {path}") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path}: not loaded: it holds objects other than tensors, which could run code"
        ) from error
    except Exception as error:  # what a damaged or foreign file makes the reader raise is not limited to a few kinds
        raise InputError(f"checkpoint {path}: not a readable PyTorch file (truncated or another format)") from error
    if not isinstance(state, dict) or "format" not in state:
        raise InputError(f"checkpoint {path}: not written by `intl-bench pretrain` (it has no field `format`)")
    require_format(path, state)
    return state, digest


def require_format(path: Path, state: Mapping[str, Any]) -> None:
    """Raises `InputError` where a training state's format is another version's."""
    if state["format"] not in _READABLE:
        raise InputError(
            f"checkpoint {path}: format {state['format']}, this version reads {' and '.join(map(str, _READABLE))}; "
            "update intl-bench"
        )


def load_own(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The state at `path`, saved with an `identity`, of the run that has this one.

    Raises:
        InputError: as `load`, or it belongs to another run.
    """
    state, _ = load(path)
    changed = configs.differences(state["identity"], identity)
    if changed:
        raise InputError(f"{path} belongs to another run ({changed[0]}); add --fresh to start over")
    return state


def online(path: Path, sha256: str, state: Mapping[str, Any]) -> Checkpoint:
    """The backbone that was trained, of the state that `load` read; raises as `from_state`."""
    prefix = BRANCHES["online"]
    backbone = {key.removeprefix(prefix): value for key, value in state["method"].items() if key.startswith(prefix)}
    with readable(path):
        return from_state(path, sha256, state, backbone)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what odd or missing fields raise into one line."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise InputError(f"checkpoint {path}: its fields are not those of this version ({reason})") from error


def from_state(
    path: Path, sha256: str, state: Mapping[str, Any], backbone: dict[str, torch.Tensor], branch: str = "online"
) -> Checkpoint:
    """A training state's `backbone`, of one of `BRANCHES`, with all that the state says about it.

    Raises:
        InputError: its configuration is not one of this version.
    """
    recipe, steps = recipes.from_dict(state["config"], f"checkpoint {path}"), state["steps_per_epoch"]
    total = recipe.epochs * steps
    return Checkpoint(
        path=path,
        sha256=sha256,
        backbone=backbone,
        origin=Origin.TRAINED,
        method=state["display"],
        architecture=recipe.backbone,
        preprocessing=Preprocessing.of(recipe.data),
        seed=recipe.seed,
        recipe=recipe,
        inputs=Inputs(**state.get("inputs", {})),
        branch=branch,
        epoch=state["step"] // steps,
        progress="complete" if state["step"] == total else f"step {state['step']} of {total}",
        details=state["details"],
    )


_ABOUT = 2  # version of `about`; 1 held the recipe alone, or a layout's facts without the recipe


def about(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is stored beside exported weights, for `from_about` to read: all but the tensors, JSON-able."""
    look = checkpoint.preprocessing
    values: dict[str, Any] = {
        "about": _ABOUT,
        "display": checkpoint.method,
        "source": checkpoint.source,
        "backbone": identity(checkpoint.architecture),
        "preprocessing": look and {"channels": "RGB", "scale": "0..1", **identity(look)},
        "seed": checkpoint.seed,
        "epoch": checkpoint.epoch,
        "progress": checkpoint.progress,
        "branch": checkpoint.branch,
        "recipe": checkpoint.recipe and configs.to_dict(checkpoint.recipe),
        "inputs": dataclasses.asdict(checkpoint.inputs),
        "details": checkpoint.details,
    }
    return values


def from_about(values: Mapping[str, Any], path: Path, sha256: str, backbone: dict[str, torch.Tensor]) -> Checkpoint:
    """Weights at `path` with what `about`, or an earlier version of it, stored beside them.

    Raises:
        InputError: its configuration is not one of this version.
    """
    where = f"checkpoint {path}"
    if values.get("about", 0) > _ABOUT:
        raise InputError(f"{where}: described by version {values['about']}, this one reads {_ABOUT}; update intl-bench")
    stored = values.get("recipe") if "about" in values else values if "epochs" in values else None
    recipe = None
    if stored is not None:
        known = {field.name for field in dataclasses.fields(Recipe)}
        recipe = recipes.from_dict({key: value for key, value in stored.items() if key in known}, where)
    look = values.get("preprocessing")
    display = values.get("display")
    if recipe is not None and "about" not in values:
        display = recipes.methods.find(recipe.method["name"]).DISPLAY
    return Checkpoint(
        path=path,
        sha256=sha256,
        backbone=backbone,
        origin=Origin.FOREIGN if recipe is None else Origin.EXPORTED,
        method=str(display or "unnamed"),
        architecture=configs.build(BackboneConfig, values["backbone"], where),
        preprocessing=Preprocessing.of(recipe.data) if recipe is not None else look and _canonical(look, where),
        seed=recipe.seed if recipe is not None else values.get("seed"),
        source=str(values.get("source", "intl-bench")),
        recipe=recipe,
        inputs=Inputs(**values.get("inputs", {})),
        branch=values.get("branch", "online"),
        # Earlier versions exported a run when it was finished, but converted it (`source_sha256`) at any time.
        epoch=values.get("epoch", recipe.epochs if recipe is not None else None),
        progress=values.get("progress", "unknown" if recipe is not None and "source_sha256" in values else "complete"),
        details=dict(values.get("details", {})),
    )


def _canonical(look: Mapping[str, Any], where: str) -> Preprocessing:
    """Stored preprocessing as RGB in 0..1."""
    channels, scale = look.get("channels", "RGB"), look.get("scale", "0..1")
    if channels != "RGB" or scale not in ("0..1", "0..255"):
        raise InputError(
            f"{where}: it expects {channels} in {scale}; expected RGB in 0..1 or 0..255: reverse the channels of "
            "conv1.weight, mean and std, and say RGB"
        )
    unit = 255 if scale == "0..255" else 1
    return Preprocessing(
        mean=tuple(value / unit for value in look["mean"]), std=tuple(value / unit for value in look["std"])
    )


def export_backbone(path: Path, checkpoint: Checkpoint, more: Mapping[str, Any] | None = None) -> None:
    """Writes the backbone alone as safetensors, with `about` and `more` in the header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.backbone.items()}
    values = json.dumps({**about(checkpoint), **(more or {})}, sort_keys=True)
    content = safetensors_bytes(tensors, metadata={"format": "pt", "config": values})
    files.write_digested(path, lambda stream: stream.write(content))
