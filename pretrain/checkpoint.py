"""Backbones with the known facts about their pre-training: from a training state, or exported."""

import contextlib
import dataclasses
import enum
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes

from intl_bench.core import config as configs
from intl_bench.core import files, seals
from intl_bench.core.errors import BenchError, DamagedError, InputError
from intl_bench.core.identity import identity
from pretrain import recipe as recipes
from pretrain import states
from pretrain.backbone import BackboneConfig
from pretrain.images.data import DataConfig, normalization
from pretrain.recipe import Inputs, Recipe

# Prefixes of the backbones in the weights of a method: `backbone`, and the first part of `momentum_encoder`.
BRANCHES = {"online": "backbone.", "momentum": "momentum_encoder.0."}


class Origin(enum.StrEnum):
    """Origin of a backbone."""

    TRAINED = "trained"  # a training state of `intl-bench pretrain`
    EXPORTED = "exported"  # a backbone alone, written by `intl-bench pretrain` or `intl-bench convert`
    FOREIGN = "foreign"
    RANDOM = "random"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing of pixels that a backbone expects: RGB in 0..1, minus `mean`, divided by `std`, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: DataConfig) -> "Preprocessing":
        """Return the preprocessing of the images of a data set (`pretrain.images.data.normalization`)."""
        mean, std = normalization(data)
        return cls(mean=mean, std=std)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # lists in JSON and YAML
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A backbone with the known facts about its pre-training.

    Attributes:
        path: the file.
        sha256: digest of the file; "" for a random initialization.
        backbone: parameters and buffers under the names of torchvision.
        origin: see `Origin`.
        method: name of the method in tables, such as "INTL".
        preprocessing: None if it is unknown; then the preprocessing of the evaluated data set is used.
        seed: seed of the pre-training (or of the initialization); None if it is unknown.
        source: layout of the file; "intl-bench" for a file of this project.
        recipe, inputs: recipe and inputs of the pre-training; None and empty for a foreign or random backbone.
        branch: "online" or "momentum", for a checkpoint of this project.
        epoch: number of completed epochs; None if it is unknown.
        progress: "complete", "unknown", or the completed part of the training, such as "step 3 of 40".
        group: name, chosen by the user, of foreign files that are seeds of the same training; None for a single file.
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

    @property
    def unfinished(self) -> bool:
        """Whether a part of the pre-training is known to be missing."""
        return self.progress not in ("complete", "unknown")

    @functools.cached_property
    def weights_sha256(self) -> str:
        """The digest of the tensors of the backbone, which does not depend on the file."""
        return weights_digest(self.backbone)

    def pretraining(self) -> dict[str, Any]:
        """Return the identity of the pre-training without its seed: equal only for results that may be averaged."""
        if self.recipe is not None:
            values = recipes.identity(self.recipe, self.inputs)
            settings = {key: value for key, value in values.pop("settings").items() if key != "seed"}
            if values.pop("extends") is not None:
                values["initial_weights"] = f"of the same seed of {self.inputs.extends}"
            if values["computed_in"] is None:
                del values["computed_in"]
            if values["data"] is None:  # unknown images may differ, so only equal weights are the same
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
    """Compute the SHA-256 of tensors with their names and shapes, without `num_batches_tracked`, which has no effect.

    The parameters of a momentum encoder count under their earlier names, so digests in existing records stay valid.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(states.earlier_names(weights).items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def online(path: Path, sha256: str, state: Mapping[str, Any]) -> Checkpoint:
    """Return the trained backbone in a state from `states.load`; raise InputError if a field is missing or unknown."""
    prefix = BRANCHES["online"]
    backbone = {key.removeprefix(prefix): value for key, value in state["method"].items() if key.startswith(prefix)}
    with readable(path):
        return from_state(path, sha256, state, backbone)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Convert the errors of missing or invalid fields to `InputError`."""
    try:
        yield
    except BenchError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise InputError(f"checkpoint {path}: its fields are not those of this version ({reason})") from error


def from_state(
    path: Path, sha256: str, state: Mapping[str, Any], backbone: dict[str, torch.Tensor], branch: str = "online"
) -> Checkpoint:
    """Return a backbone with the facts in its training state.

    Args:
        path, sha256: the file and its digest.
        backbone, branch: weights and name of one of `BRANCHES`.

    Raises:
        InputError: this version does not know the recipe in the state.
    """
    recipe, steps = recipes.from_dict(state["config"], f"checkpoint {path}"), state["steps_per_epoch"]
    total = recipe.total_steps(steps)
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


_OF_A_RUN = ("seconds", "gpu_seconds", "gpu_joules", "bad_files")  # facts that differ between runs of one result
_ABOUT = 3  # version of `about`; 1 had only the recipe, or only the facts of a layout; 2 had the paths of a user


def about(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the facts that are stored with exported weights, as JSON values; `from_about` reads them."""
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
        "recipe": checkpoint.recipe and _without_places(checkpoint.recipe),
        "inputs": dataclasses.asdict(checkpoint.inputs),
        "details": {key: value for key, value in checkpoint.details.items() if key not in _OF_A_RUN},
    }
    return values


def _without_places(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a recipe that say how it was trained, not where: no paths, devices or workers."""
    values = identity(recipe)
    names = {"name": recipe.name, "scale": recipe.scale}
    return {**values, **names, "data": {**values["data"], "name": recipe.data.dataset}}


def from_about(values: Mapping[str, Any], path: Path, sha256: str, backbone: dict[str, torch.Tensor]) -> Checkpoint:
    """Return exported weights with the facts that `about` (of this or an earlier version) stored with them.

    Raises:
        InputError: the facts are of a later version, or this version does not know the recipe.
    """
    where = f"checkpoint {path}"
    if values.get("about", 0) > _ABOUT:
        raise InputError(
            f"{where}: found facts of version {values['about']}; expected at most {_ABOUT}; update intl-bench"
        )
    if values.get("about", 0) == _ABOUT and not files.has_digest(path):
        raise DamagedError(f"{where}: its SHA-256 is missing; restore the file from a copy, or write it again")
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
        # Earlier versions exported only finished runs, but converted runs (`source_sha256`) at any time.
        epoch=values.get("epoch", recipe.epochs if recipe is not None else None),
        progress=values.get("progress", "unknown" if recipe is not None and "source_sha256" in values else "complete"),
        details=dict(values.get("details", {})),
    )


def _canonical(look: Mapping[str, Any], where: str) -> Preprocessing:
    """Convert stored preprocessing to RGB in 0..1."""
    channels, scale = look.get("channels", "RGB"), look.get("scale", "0..1")
    if channels != "RGB" or scale not in ("0..1", "0..255"):
        raise InputError(
            f"{where}: preprocessing is {channels} in {scale}; expected RGB in 0..1 or 0..255; for BGR, reverse the "
            "channels of conv1.weight, mean and std"
        )
    unit = 255 if scale == "0..255" else 1
    return Preprocessing(
        mean=tuple(value / unit for value in look["mean"]), std=tuple(value / unit for value in look["std"])
    )


def export_backbone(path: Path, checkpoint: Checkpoint, more: Mapping[str, Any] | None = None) -> None:
    """Write only the backbone as safetensors, with `about` and `more` in the header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.backbone.items()}
    values = json.dumps({**about(checkpoint), **(more or {})}, sort_keys=True)
    content = safetensors_bytes(tensors, metadata={"format": "pt", "config": values, seals.KEY: seals.UNSET})
    # The library writes the metadata in an order that changes from process to process.
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content = len(text).to_bytes(8, "little") + text + content[start:]
    files.write_digested(path, lambda stream: stream.write(content))
