"""The configuration of one pre-training run."""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from intl_bench.core import config as configs
from intl_bench.core import identity as identities
from intl_bench.core.datasets import DATASETS
from intl_bench.core.errors import InputError
from intl_bench.core.identity import SCALES, by_content, runtime_only, shorthand
from intl_bench.core.machine import limit_workers
from intl_bench.core.names import require_folder_name
from intl_bench.core.ranges import Checked, Choice, Count, Device, Natural, NonNegative, Pixels, Seed, Share, Workers
from pretrain import methods, optim
from pretrain.backbone import BackboneConfig
from pretrain.images.data import DataConfig, normalization
from pretrain.images.views import ViewConfig
from pretrain.monitor import MonitorConfig
from pretrain.projector import ProjectorConfig

PRECISIONS = ("fp32", "bf16", "fp16")
PUBLISHED = ("paper", "adapted")  # scales that only a packaged recipe has


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """All settings of a pre-training run. configs/pretrain/ holds the published ones.

    Attributes:
        name: of the run's folder.
        scale: "paper" for a published recipe, "adapted" for one that differs from its source as its header states,
            "reduced" for a cut-down one, "demo" for a demonstration. "paper" and "adapted" become
            "reduced" unless a packaged recipe has the same settings.
        init: the run or checkpoint of intl-bench pretrain, or the exported backbone, whose weights the run starts from.
        seed: of the initial weights, the order of the images and the views.
        epochs: passes over the training images.
        max_steps: the run has at most this number of steps. The learning rate then falls to its end within them, and
            the warm-up takes at most a tenth of them.
        batch_size: images of a step, over all processes.
        base_lr: learning rate of a batch of 256 images; it is multiplied by batch_size / 256.
        final_lr_ratio: learning rate at the end of the cosine schedule, relative to that after the warm-up.
        warmup_epochs: epochs in which the learning rate rises from 0.
        optimizer: "sgd" with momentum, "lars", "adam" or "adamw".
        momentum: of SGD and LARS.
        weight_decay: of the weights.
        decay_one_dimensional: whether biases and the parameters of batch norms decay too, and are scaled by LARS.
        one_dimensional_lr_ratio: learning rate of these parameters, relative to that of the others.
        trust_coefficient: of LARS: its learning rate is this times |weight| / |gradient|.
        clip_trust: whether LARS never raises the learning rate of a weight.
        precision: "fp32", or "bf16" or "fp16" for autocast. A CPU computes fp16 as bf16.
        channels_last: whether the channels of a pixel are stored together, which is faster on most devices.
        device: "auto" takes a GPU if there is one.
        workers: at most this many processes that load images, of each training process, and one for each core; an
            override is taken as it is.
        log_every: steps between two lines of the log.
        spectrum_every: steps between two spectra of the embedding in the log; 0 for none.
        monitor: scores on a labeled subset during the run.
        save_minutes: a checkpoint is written when this time has passed since the last one.
        keep_every: epochs between two checkpoints that stay, as `epoch0010.pt`; 0 keeps none but the last three.
        compile: whether the networks are compiled (torch.compile). Changes no result beyond rounding (docs/gpu.md).
        graph: whether a step is recorded as a CUDA graph. Changes no result beyond rounding (docs/gpu.md).
        deterministic: whether a GPU computes the same bits in every run, at some cost in time.
        method: name and settings of the method.
        backbone: of the network.
        projector: of the network.
        size: side of all views in pixels, instead of `size` in each of `views`. Views that are smaller than the others,
            as those of multi-crop, keep their ratio. It is resolved here: `views` has the sizes, and `size` is None.
        data: `data.mean` and `data.std` are resolved here, so that they are stored and compared as numbers.
        views: the views of each image, two or more.
    """

    name: str = runtime_only()
    scale: Annotated[str, Choice(SCALES)] = runtime_only("reduced")
    init: str | None = by_content(None)
    seed: Seed = 0
    epochs: Count = 800
    max_steps: Count | None = None
    batch_size: Count = 256
    base_lr: NonNegative = 0.3
    final_lr_ratio: NonNegative = 0.001
    warmup_epochs: Natural = 2
    optimizer: Annotated[str, Choice(optim.NAMES)] = "sgd"
    momentum: Share = 0.9
    weight_decay: NonNegative = 1e-5
    decay_one_dimensional: bool = False
    one_dimensional_lr_ratio: NonNegative = 1.0
    trust_coefficient: NonNegative = 0.001
    clip_trust: bool = False
    precision: Annotated[str, Choice(PRECISIONS)] = "fp32"
    channels_last: bool = True
    device: Device = runtime_only("auto")
    workers: Workers = runtime_only(8)
    log_every: Count = runtime_only(50)
    spectrum_every: Natural = runtime_only(500)
    monitor: MonitorConfig = runtime_only(MonitorConfig())
    save_minutes: NonNegative = runtime_only(10)
    keep_every: Natural = runtime_only(0)
    compile: bool = runtime_only(False)
    graph: bool = runtime_only(False)
    deterministic: bool = runtime_only(False)
    method: dict[str, Any] = dataclasses.field(default_factory=lambda: {"name": "intl"})
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    projector: ProjectorConfig = dataclasses.field(default_factory=ProjectorConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    size: Pixels | None = shorthand(None)
    views: tuple[ViewConfig, ...] = (ViewConfig(), ViewConfig())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 2:
            raise ValueError(f"batch_size={self.batch_size}: expected at least 2")
        if not self.views:
            raise ValueError("views: expected at least one")
        if self.size is not None:
            largest = max(view.size for view in self.views)
            sizes = [max(1, round(view.size / largest * self.size)) for view in self.views]
            views = tuple(dataclasses.replace(view, size=size) for view, size in zip(self.views, sizes, strict=True))
            object.__setattr__(self, "views", views)
            object.__setattr__(self, "size", None)
        require_folder_name(self.name, "name")
        mean, std = normalization(self.data)
        object.__setattr__(self, "data", dataclasses.replace(self.data, mean=mean, std=std))

    def unused(self) -> set[str]:
        """See `intl_bench.core.identity.identity`."""
        names = set() if self.optimizer == "lars" else {"trust_coefficient", "clip_trust"}
        names |= {"momentum"} if self.optimizer in ("adam", "adamw") else set()
        return names | ({"max_steps"} if self.max_steps is None else set())

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps of the whole run."""
        return min(self.epochs * steps_per_epoch, self.max_steps or sys.maxsize)

    def warmup_steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps of the warm-up."""
        planned = self.warmup_epochs * steps_per_epoch
        shortened = self.total_steps(steps_per_epoch) < self.epochs * steps_per_epoch
        return min(planned, self.total_steps(steps_per_epoch) // 10) if shortened else planned

    @property
    def folder(self) -> Path:
        """Folder of the run, relative to the working directory."""
        return Path("runs") / "pretrain" / self.name / f"seed{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """File of the run's training state. After the last epoch it holds the result."""
        return self.folder / "checkpoint.pt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run reads in addition to its recipe.

    Attributes:
        data: `pretrain.images.fingerprint.fingerprint` of the training images. None for a run of an earlier version.
        initial_weights: SHA-256 of the weights of `Recipe.init`. None for a random start.
        extends: digest of the pre-training that made the initial weights, if it had the same seed. Several seeds, each
            extended from its own weights, then remain seeds of one training.
        computed_in: the precision, if the device lacks that of the recipe (fp16 on a CPU).
    """

    data: str | None = None
    initial_weights: str | None = None
    extends: str | None = None
    computed_in: str | None = None


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load the recipe `name`, a path or a file of configs/pretrain/, and apply the overrides "key=value".

    The section `method` gets the defaults of its method.

    Raises:
        InputError: there is no such recipe, or a key is unknown, or a type or value is wrong.
    """
    path = configs.find(name, "pretrain")
    values = configs.read(path, "pretrain")
    changes = [change.removeprefix("data.") for change in overrides if change.startswith("data.")]
    if "data" in values:
        values["data"] = _of_kind(values["data"], changes)
    recipe = limit_workers(_build(values, path.name, overrides), overrides)
    return dataclasses.replace(recipe, scale=judged_scale(recipe))


def judged_scale(recipe: Recipe) -> str:
    """Return the scale of a recipe. "paper" and "adapted" require a packaged recipe with the same settings.

    Returns:
        The scale of that packaged recipe, or "reduced" if there is none. "demo" requires generated images.
    """
    if recipe.scale == "demo":
        return "demo" if recipe.data.kind == "shapes" and recipe.init is None else "reduced"
    if recipe.scale not in PUBLISHED:
        return recipe.scale
    packaged = sorted((configs.CONFIGS / "pretrain").glob("*.yaml"), key=lambda path: path.stem != recipe.name)
    for other in packaged if recipe.init is None else ():
        values = _packaged(other)
        # These two settings distinguish most recipes, in a fiftieth of the time that building them takes.
        if all(int(values.get(key, getattr(Recipe, key))) == getattr(recipe, key) for key in ("epochs", "batch_size")):
            published = dataclasses.replace(_published(other), seed=recipe.seed)
            if decides_the_same(published, recipe):
                return published.scale
    return "reduced"


_packaged = functools.cache(configs.read)


@functools.cache
def _published(path: Path) -> Recipe:
    return _build(_packaged(path), path.name, ())


def decides_the_same(one: Recipe, other: Recipe) -> bool:
    """Return whether two recipes describe the same training on a data set of the same name."""
    return one.data.dataset == other.data.dataset and identities.identity(one) == identities.identity(other)


def _build(values: Mapping[str, Any], where: str, overrides: Sequence[str]) -> Recipe:
    recipe = configs.build(Recipe, values, f"config {where}", overrides)
    _, method = methods.parse(recipe.method, f"config {where}")
    return dataclasses.replace(recipe, method=configs.to_dict(method))


def from_dict(values: Mapping[str, Any], where: str) -> Recipe:
    """Rebuild a recipe from the values that `configs.to_dict` made of it.

    Args:
        where: the file of the values, for messages.

    Raises:
        InputError: a key is unknown or a value is refused.
    """
    return _build(values, where, ())


def inherited_data(own: DataConfig, changes: Sequence[str]) -> dict[str, Any]:
    """Return the values of a checkpoint's own `DataConfig` that still hold under overrides "key=value".

    An override of `root` means other images. They keep a name of `DATASETS`, which is checked against their content,
    and lose any other name, a limit and a holdout.
    """
    values = _of_kind(dataclasses.asdict(own), changes)
    if _asked(changes, "root", own.root) != own.root and own.name not in DATASETS:
        values |= {"name": None, "limit": None, "limit_seed": 0, "holdout": None, "holdout_seed": 0}
    return values


def _of_kind(stored: Any, changes: Sequence[str]) -> Any:
    """Return the stored values of a `DataConfig` that still hold under overrides "key=value".

    An override that changes the kind of data means other images. Only what does not depend on them remains.
    """
    if not isinstance(stored, dict):  # `configs.build` refuses it
        return stored
    if _asked(changes, "kind", stored.get("kind")) == stored.get("kind"):
        return stored
    return {key: stored[key] for key in ("mean", "std", "on_bad_image") if key in stored}


def _asked(changes: Sequence[str], key: str, otherwise: Any) -> Any:
    """Return the value that the last override "key=value" gives a key, or `otherwise`."""
    return dict(change.partition("=")[::2] for change in changes).get(key, otherwise)


def identity(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """Return what determines the final weights of a run: {"settings": {...}, "data": ..., "initial_weights": ...}."""
    return {"settings": identities.identity(recipe), **dataclasses.asdict(inputs)}


def check_same_run(recipe: Recipe, inputs: Inputs, before: Recipe, read: Inputs) -> None:
    """Refuse to continue a run with settings or inputs that would lead to other weights.

    Args:
        before, read: the stored recipe and inputs. An input that is stored as None is not compared.

    Raises:
        InputError: something differs; the message names the first difference.
    """
    remedy = "give this run another name with name=... (a grid: with name: in its file), or add --fresh to start over"
    changed = configs.differences(identities.identity(before), identities.identity(recipe))
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        extend = f"; to continue from its weights, start a new run with init={recipe.checkpoint}"
        raise InputError(f"{recipe.checkpoint} belongs to another configuration ({changed[0]}{more}); {remedy}{extend}")
    if read.data is not None and read.data != inputs.data:
        raise InputError(
            f"{recipe.checkpoint} was trained on other images: their fingerprint is {read.data[:12]}, that of "
            f"data.root={recipe.data.root} is {str(inputs.data)[:12]}; restore the images, or {remedy}"
        )
    if read.computed_in != inputs.computed_in:
        raise InputError(
            f"{recipe.checkpoint} was computed in {read.computed_in or recipe.precision}, but this device computes in "
            f"{inputs.computed_in or recipe.precision}; continue on the device where it began, or {remedy}"
        )
    if read.initial_weights != inputs.initial_weights:
        if recipe.init is None:
            raise InputError(
                f"{recipe.checkpoint} started from other weights; add init={before.init} to resume, or {remedy}"
            )
        raise InputError(
            f"{recipe.checkpoint} started from other weights than init={recipe.init}: {read.initial_weights} -> "
            f"{inputs.initial_weights}; {remedy}"
        )
