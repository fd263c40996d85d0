"""The configuration of one pre-training run."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intl_bench.core import config as configs
from intl_bench.core import identity as identities
from intl_bench.core.datasets import PAPER
from intl_bench.core.errors import InputError
from intl_bench.core.identity import SCALES, runtime_only
from pretrain import methods, optim
from pretrain.backbone import BackboneConfig
from pretrain.images.data import DataConfig, normalization
from pretrain.images.views import ViewConfig
from pretrain.projector import ProjectorConfig

PRECISIONS = ("fp32", "bf16", "fp16")
PUBLISHED = ("paper", "adapted")  # scales that only a packaged recipe has


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a pre-training run depends on; see configs/pretrain/ for the published ones.

    `base_lr` is multiplied by batch_size / 256; `batch_size` is the global one. The optimizer's settings are those of
    `pretrain.optim.build_optimizer`. `data.mean` and `data.std` are resolved here, so that they are stored and compared
    as numbers. `init` is a checkpoint whose weights the run starts from (see `pretrain.warm_start`). A checkpoint is
    written whenever `save_minutes` have passed since the last one. `compile` (networks), `graph` (a step recorded as a
    CUDA graph) and `deterministic` are for GPUs and change no result beyond rounding (docs/gpu.md).

    `scale` is "paper" for a published recipe, "adapted" for one whose training differs from its source as its header
    says, "reduced" for a cut-down one and "demo" for a demonstration. `load_recipe` makes "reduced" of a recipe that
    says "paper" or "adapted" but is no packaged one.
    """

    name: str = runtime_only()
    scale: str = runtime_only("reduced")
    init: str | None = runtime_only(None)
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
    device: str = runtime_only("auto")
    workers: int = runtime_only(8)
    log_every: int = runtime_only(50)
    spectrum_every: int = runtime_only(500)
    save_minutes: float = runtime_only(10)
    compile: bool = runtime_only(False)
    graph: bool = runtime_only(False)
    deterministic: bool = runtime_only(False)
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
        if self.name in ("", ".", "..") or "/" in self.name:
            raise ValueError(f"name={self.name!r}: expected a folder name")
        mean, std = normalization(self.data)
        object.__setattr__(self, "data", dataclasses.replace(self.data, mean=mean, std=std))

    def unused(self) -> set[str]:
        """See `intl_bench.core.identity.identity`."""
        names = set() if self.optimizer == "lars" else {"trust_coefficient", "clip_trust"}
        return names | ({"momentum"} if self.optimizer in ("adam", "adamw") else set())

    @property
    def folder(self) -> Path:
        """Where the run lives, relative to the working directory."""
        return Path("runs") / "pretrain" / self.name / f"seed{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """The run's training state; after the last epoch, its result."""
        return self.folder / "checkpoint.pt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run reads beside its recipe.

    Attributes:
        data: `pretrain.images.fingerprint.fingerprint` of the training images; None where an earlier version did not
            note it.
        initial_weights: SHA-256 of the weights of `Recipe.init`; None for a run that starts at random.
        extends: digest of the pre-training that they are of, where it had the same seed: so seeds that were extended
            each from its own stay seeds of one training.
        computed_in: the precision, where the device does not have the recipe's (fp16 on a CPU).
    """

    data: str | None = None
    initial_weights: str | None = None
    extends: str | None = None
    computed_in: str | None = None


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe file `name` (a path, or packaged in configs/pretrain/) with overrides; `method` with its defaults.

    Raises:
        InputError: no such recipe, an unknown key, a wrong type or value.
    """
    path = configs.find(name, "pretrain")
    values = configs.read(path)
    data = values.get("data", {})
    changes = [change.removeprefix("data.") for change in overrides if change.startswith("data.")]
    # Another kind of data is another data set, which the recipe's name is not of.
    if _asked(changes, "kind", data.get("kind")) != data.get("kind"):
        values["data"] = {key: value for key, value in data.items() if key not in ("name", "root", "classes")}
    recipe = _build(values, path.name, overrides)
    return dataclasses.replace(recipe, scale=judged_scale(recipe))


def judged_scale(recipe: Recipe) -> str:
    """The scale of a recipe; one that says "paper" or "adapted" has to decide the same as a packaged one.

    Returns:
        The packaged recipe's scale, "reduced" where there is none; "demo" on generated images alone.
    """
    if recipe.scale == "demo":
        return "demo" if recipe.data.kind == "shapes" and recipe.init is None else "reduced"
    if recipe.scale not in PUBLISHED:
        return recipe.scale
    packaged = sorted((configs.CONFIGS / "pretrain").glob("*.yaml"), key=lambda path: path.stem != recipe.name)
    for other in packaged if recipe.init is None else ():
        values = _packaged(other)
        # Most are told apart by these, in a fiftieth of the time of building them.
        if all(values.get(key, getattr(Recipe, key)) == getattr(recipe, key) for key in ("epochs", "batch_size")):
            published = dataclasses.replace(_build(values, other.name, ()), seed=recipe.seed)
            if decides_the_same(published, recipe):
                return published.scale
    return "reduced"


_packaged = functools.cache(configs.read)


def decides_the_same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes ask for the same training on a data set of the same name."""
    return one.data.dataset == other.data.dataset and identities.identity(one) == identities.identity(other)


def _build(values: Mapping[str, Any], where: str, overrides: Sequence[str]) -> Recipe:
    recipe = configs.build(Recipe, values, f"config {where}", overrides)
    _, method = methods.parse(recipe.method, f"config {where}")
    return dataclasses.replace(recipe, method=configs.to_dict(method))


def from_dict(values: Mapping[str, Any], where: str) -> Recipe:
    """The recipe that `configs.to_dict` made `values` of, at `where`.

    Raises:
        InputError: an unknown key, or a value that is refused.
    """
    return _build(values, where, ())


def inherited_data(own: DataConfig, changes: Sequence[str]) -> dict[str, Any]:
    """What of a checkpoint's own data set holds under overrides "key=value", as values of a `DataConfig`.

    Of another kind of data nothing does but the mean and std of the pixels. Images elsewhere keep a name of the
    paper's, which is checked against their content, and no other.
    """
    values: dict[str, Any] = dataclasses.asdict(own)
    if _asked(changes, "kind", own.kind) != own.kind:
        return {key: values[key] for key in ("mean", "std")}
    if _asked(changes, "root", own.root) != own.root and own.name not in PAPER:
        values["name"] = None
    return values


def _asked(changes: Sequence[str], key: str, otherwise: Any) -> Any:
    """The text that the last override "key=value" of a key gives it, `otherwise` where there is none."""
    return dict(change.partition("=")[::2] for change in changes).get(key, otherwise)


def identity(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """What decides the weights that a run ends in: {"settings": {...}, "data": ..., "initial_weights": ...}."""
    return {"settings": identities.identity(recipe), **dataclasses.asdict(inputs)}


def check_same_run(recipe: Recipe, inputs: Inputs, before: Recipe, read: Inputs) -> None:
    """Refuses to continue a run folder with what would learn something else.

    Args:
        before, read: the stored recipe and inputs; of what the latter do not know nothing is compared.

    Raises:
        InputError: naming the first difference.
    """
    remedy = "give this run a name of its own (name=...), or add --fresh to start over"
    changed = configs.differences(identities.identity(before), identities.identity(recipe))
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        extend = f"; to go on from its weights, start a new run with init={recipe.checkpoint}"
        raise InputError(f"{recipe.checkpoint} belongs to another configuration ({changed[0]}{more}); {remedy}{extend}")
    if read.data is not None and read.data != inputs.data:
        raise InputError(
            f"{recipe.checkpoint} was trained on other images: their fingerprint is {read.data[:12]}, that of those at "
            f"data.root={recipe.data.root} is {str(inputs.data)[:12]}; restore the images, or {remedy}"
        )
    if read.computed_in != inputs.computed_in:
        raise InputError(
            f"{recipe.checkpoint} was computed in {read.computed_in or recipe.precision}, here it would be in "
            f"{inputs.computed_in or recipe.precision}; go on where it began, or {remedy}"
        )
    if read.initial_weights != inputs.initial_weights:
        if recipe.init is None:
            raise InputError(
                f"{recipe.checkpoint} started from other weights; add init={before.init} to go on, or {remedy}"
            )
        raise InputError(
            f"{recipe.checkpoint} started from other weights than init={recipe.init}: {read.initial_weights} -> "
            f"{inputs.initial_weights}; {remedy}"
        )
