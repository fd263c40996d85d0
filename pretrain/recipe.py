"""The configuration of one pre-training run."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from pretrain import methods, optim
from pretrain.backbone import BackboneConfig
from pretrain.data import DataConfig
from pretrain.projector import ProjectorConfig
from pretrain.views import ViewConfig

SCALES = ("paper", "reduced", "demo")
PRECISIONS = ("fp32", "bf16", "fp16")
# Keys that do not change what is learnt; a run may be resumed with other values of these.
_FREE = {"workers", "device", "log_every", "spectrum_every", "save_minutes", "scale"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a pre-training run depends on; see configs/pretrain/ for the published ones.

    `base_lr` is multiplied by batch_size / 256; `batch_size` is the global one. The optimiser's settings are those of
    `pretrain.optim.build_optimizer`. `scale` says whether the run is the
    paper's ("paper"), a cut-down one ("reduced") or a demonstration ("demo"); any override that matters makes a
    "paper" recipe "reduced". A checkpoint is written whenever `save_minutes` have passed since the last one.
    """

    name: str
    scale: str = "reduced"
    seed: int = 0
    epochs: int = 800
    batch_size: int = 256
    base_lr: float = 0.3
    final_lr_ratio: float = 0.001
    warmup_epochs: int = 2
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-5
    decay_one_dimensional: bool = False
    one_dimensional_lr_ratio: float = 1.0
    trust_coefficient: float = 0.001
    clip_trust: bool = False
    precision: str = "fp32"
    channels_last: bool = True
    device: str = "auto"
    workers: int = 8
    log_every: int = 50
    spectrum_every: int = 500
    save_minutes: float = 10
    method: dict[str, Any] = dataclasses.field(default_factory=lambda: {"name": "intl"})
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    projector: ProjectorConfig = dataclasses.field(default_factory=ProjectorConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    views: tuple[ViewConfig, ...] = (ViewConfig(), ViewConfig())

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale={self.scale!r}: expected one of {', '.join(SCALES)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r}: expected one of {', '.join(PRECISIONS)}")
        for key, least in {
            "epochs": 1,
            "batch_size": 2,
            "log_every": 1,
            "seed": 0,
            "workers": 0,
            "spectrum_every": 0,
            "save_minutes": 0,
            "warmup_epochs": 0,
            "base_lr": 0,
            "weight_decay": 0,
            "one_dimensional_lr_ratio": 0,
            "trust_coefficient": 0,
        }.items():
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)}: expected at least {least}")
        if self.optimizer not in optim.NAMES:
            raise ValueError(f"optimizer={self.optimizer!r}: expected one of {', '.join(optim.NAMES)}")
        if not self.views:
            raise ValueError("views: expected at least one")
        if not self.name or "/" in self.name:
            raise ValueError(f"name={self.name!r}: expected a folder name")

    @property
    def folder(self) -> Path:
        """Where the run lives, relative to the working directory."""
        return Path("runs") / "pretrain" / self.name / f"seed{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """The run's training state; after the last epoch, its result."""
        return self.folder / "checkpoint.pt"


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe file `name` (a path, or packaged in configs/pretrain/) with overrides; `method` with its defaults.

    Raises:
        InputError: no such recipe, an unknown key, a wrong type or value.
    """
    path = configs.find(name, "pretrain")
    values = configs.read(path)
    published, recipe = (_build(values, path.name, changes) for changes in ((), overrides))
    if recipe.scale == "paper" and identity(published) != identity(dataclasses.replace(recipe, seed=published.seed)):
        recipe = dataclasses.replace(recipe, scale="reduced")
    return recipe


def _build(values: Mapping[str, Any], where: str, overrides: Sequence[str]) -> Recipe:
    recipe = configs.build(Recipe, values, f"config {where}", overrides)
    _, method = methods.parse(recipe.method, f"config {where}")
    return dataclasses.replace(recipe, method=configs.to_dict(method))


def identity(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that decides what is learnt: no worker count, device, logging, or place of the data."""
    values = {key: value for key, value in configs.to_dict(recipe).items() if key not in _FREE}
    values["data"] = {key: value for key, value in values["data"].items() if key != "root"}
    return values


def check_same_run(recipe: Recipe, stored: Mapping[str, Any]) -> None:
    """Refuses to continue a run folder with a configuration that would learn something else.

    Raises:
        InputError: naming the first difference.
    """
    before = identity(configs.build(Recipe, stored, "the stored configuration"))
    changed = configs.differences(before, identity(recipe))
    if changed:
        raise InputError(
            f"{recipe.checkpoint} belongs to another configuration ({changed[0]}"
            + (f" and {len(changed) - 1} more" if len(changed) > 1 else "")
            + "); give this run a name of its own (name=...), or add --fresh to start over"
        )
