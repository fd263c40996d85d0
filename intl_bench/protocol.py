"""What is comparable: the identity and the scale of an evaluation, and its description in tables."""

import difflib
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from intl_bench.ablations.cells import is_cell
from intl_bench.core import config as configs
from intl_bench.core.datasets import DATASETS
from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity, same_protocol
from intl_bench.core.inputs import shorten
from intl_bench.core.machine import limit_workers
from pretrain import recipe as recipes
from pretrain.checkpoint import Checkpoint, Origin, Preprocessing
from pretrain.images.data import DataConfig
from transfer import find_task
from transfer.task import Task

_VIEW_SIZE = "view_size"  # a section of sizes for views of `_USUAL_SIZE` pixels; see `_for_views`
_USUAL_SIZE = 224
_CIFAR100 = Preprocessing.of(DataConfig(kind="cifar100"))
# Sections under `for_checkpoints` of a protocol's file: whether each applies to a checkpoint; None if that is unknown.
_CONDITIONS: dict[str, Callable[[Checkpoint], bool | None]] = {
    "two_views": lambda checkpoint: None if checkpoint.recipe is None else len(checkpoint.recipe.views) <= 2,
    "cifar100_normalization": lambda checkpoint: checkpoint.preprocessing in (None, _CIFAR100),
    _VIEW_SIZE: lambda checkpoint: checkpoint.recipe is not None,
}


def default_path(task: str, data: DataConfig) -> Path:
    """Return the file of a task's protocol for a data set: that of its name, of its kind, or the default.

    Raises:
        InputError: there is no such file.
    """
    folder = configs.CONFIGS / task
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    for name in (data.dataset, data.kind, "default"):  # a data set of a stranger's checkpoint can be named ../../x
        if name in known:
            return folder / f"{name}.yaml"
    near = difflib.get_close_matches(data.dataset, known, n=1) or known
    raise InputError(
        f"{task}: no protocol for the data set {data.dataset}; choose one with --config, such as {near[0]}"
    )


def build_config(
    task: Task[Any], checkpoint: Checkpoint, data: Mapping[str, Any], path: Path, overrides: Any = ()
) -> Any:
    """Build a task's configuration from `data`, the checkpoint, the protocol's file and the overrides.

    Later ones win.

    Raises:
        InputError: a key or a value is unknown.
    """
    content = next(_variants(configs.read(path), checkpoint))
    return limit_workers(_build(task, checkpoint, data, content, path, overrides), overrides)


def _build(
    task: Task[Any], checkpoint: Checkpoint, data: Mapping[str, Any], content: dict[str, Any], path: Path, own: Any
) -> Any:
    values = _merge({"data": dict(data)}, task.from_checkpoint(checkpoint), content)
    return configs.build(task.config, values, f"config {path.parent.name}/{path.name}", own)


def _variants(content: dict[str, Any], checkpoint: Checkpoint) -> Any:
    """Yield the content of a protocol's file for a checkpoint: one version for each answer to an unknown condition.

    The version with all answers "no" comes first.
    """
    sections = content.pop("for_checkpoints", {})
    for name in sections:
        if name not in _CONDITIONS:
            raise InputError(f"for_checkpoints.{name}: unknown condition; expected {' or '.join(_CONDITIONS)}")
    holds = [_CONDITIONS[name](checkpoint) for name in sections]
    for choice in itertools.product(*([False, True] if held is None else [held] for held in holds)):
        chosen = [name for name, held in zip(sections, choice, strict=True) if held]
        yield _merge(
            content, *(_for_views(sections[k], checkpoint) if k == _VIEW_SIZE else sections[k] for k in chosen)
        )


def _for_views(sizes: Mapping[str, str], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the sizes for images that are as large as the largest view of a pre-training.

    Args:
        sizes: the sizes in pixels by setting, for views of 224 pixels.
    """
    assert checkpoint.recipe is not None
    view = max(view.size for view in checkpoint.recipe.views)
    try:
        return {key: round(int(size) * view / _USUAL_SIZE) for key, size in sizes.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"for_checkpoints.{_VIEW_SIZE}: found {shorten(sizes)}; expected sizes for views of {_USUAL_SIZE} pixels, "
            "such as {resize: 256, crop: 224}"
        ) from error


def _merge(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Merge configurations. Later ones win; sections are merged key by key."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


def evaluation(task: Task[Any], checkpoint: Checkpoint, config: Any, data: Mapping[str, str]) -> dict[str, Any]:
    """Return the identity of an evaluation, without its seed and checkpoint. Equal identities may be averaged.

    A setting that comes from the checkpoint becomes "checkpoint", because it follows from the pre-training. A random
    initialization keeps the numbers, because nothing else in its record states them.

    Args:
        data: the fingerprints of the splits.
    """
    settings = identity(config)
    if task.processes_matter:
        settings["processes"] = int(os.environ.get("WORLD_SIZE", 1))
    if checkpoint.origin is not Origin.RANDOM:
        for section, values in task.from_checkpoint(checkpoint).items():
            for key, value in values.items():
                if settings[section][key] == value:
                    settings[section][key] = "checkpoint"
    # If neither the checkpoint nor the user gives the normalization, it is that of the data set, as if it were given.
    pixels = settings["data"]
    if {"mean", "std"} <= pixels.keys() and None in (pixels["mean"], pixels["std"]):
        pixels |= identity(Preprocessing.of(config.data))
    return {"settings": settings, "data": dict(data)}


def describe(task: Task[Any], checkpoint: Checkpoint, config: Any) -> dict[str, Any]:
    """Describe how a result was measured, for a table's footnote; see `ResultRecord.protocol`."""
    stated = {key: value for key, value in task.protocol(config).items() if value is not None}
    if "normalization" in stated:
        stated["normalization"] += f" ({_normalization_source(task, checkpoint, config)})"
    if getattr(config.data, "limit", None) is not None:
        stated["limit"] = _limit(config.data)
    if getattr(config.data, "holdout", None) is not None:
        stated["scored_on"] = _holdout(config.data)
    return stated | describe_pretraining(checkpoint)


def _limit(data: DataConfig) -> str:
    return f"{data.limit}, drawn with seed {data.limit_seed}"


def _holdout(data: DataConfig) -> str:
    return f"{data.holdout:.4g} of the training images, held out with seed {data.holdout_seed}"


def _normalization_source(task: Task[Any], checkpoint: Checkpoint, config: Any) -> str:
    """Return where the mean and std of a configuration's pixels come from."""
    settings, pixels = identity(config), ("mean", "std", "pixel_mean", "pixel_std")
    given = {key: v for part in task.from_checkpoint(checkpoint).values() for key, v in part.items() if key in pixels}
    used = {key: v for part in ("data", "model") for key, v in settings.get(part, {}).items() if key in pixels}
    if not any(used.values()):
        return "the data set's"
    return "the checkpoint's" if used == given else "set by the protocol or an override"


def describe_pretraining(checkpoint: Checkpoint) -> dict[str, Any]:
    """Describe how the backbone was pre-trained, as keys that start with "pretrain_"."""
    recipe = checkpoint.recipe
    if checkpoint.origin is Origin.RANDOM:
        return {"pretrain_epochs": 0}
    if recipe is None:
        known = {} if checkpoint.epoch is None else {"pretrain_epochs": checkpoint.epoch}
        return {"pretrain_source": checkpoint.source, **known}
    epochs = f"{recipe.epochs} planned, {checkpoint.progress}" if checkpoint.unfinished else checkpoint.epoch
    sizes = [view.size for view in recipe.views]
    momentum = checkpoint.details.get("momentum_target", bool(recipe.method.get("momentum_target")))
    stated = {
        "pretrain_dataset": recipe.data.dataset,
        "pretrain_images": checkpoint.details.get("images"),
        "pretrain_epochs": epochs,
        "pretrain_batch_size": recipe.batch_size,
        "pretrain_lr": recipe.base_lr,
        "pretrain_crops": "+".join(f"{sizes.count(size)}x{size}" for size in dict.fromkeys(sizes)),
        "pretrain_momentum_target": momentum,
        "pretrain_embedding_dim": recipe.projector.out,
        **{
            f"pretrain_method_{key}": str(value) if isinstance(value, list | dict) else value
            for key, value in recipe.method.items()
            if key not in ("name", "momentum_target") and value is not None
        },
    }
    if recipe.max_steps is not None:
        stated["pretrain_max_steps"] = recipe.max_steps
    if recipe.data.limit is not None:
        stated["pretrain_limit"] = _limit(recipe.data)
    if recipe.data.holdout is not None:
        stated["pretrain_without"] = _holdout(recipe.data)
    if checkpoint.branch != "online":
        stated["pretrain_branch"] = checkpoint.branch
    if checkpoint.inputs.initial_weights is not None:
        stated["pretrain_initial_weights"] = checkpoint.inputs.initial_weights[:12]
    return stated


def pretraining_scale(checkpoint: Checkpoint) -> str:
    """Return the scale of a pre-training: that of its recipe.

    A published scale requires all images of the data set and all epochs. The scale of a foreign checkpoint is unknown,
    and a random initialization has no training; both count as "paper".
    """
    recipe = checkpoint.recipe
    if recipe is None:
        return "paper"
    scale = recipes.judged_scale(recipe)
    if scale != recipe.scale and is_cell(recipe):
        scale = recipe.scale
    facts = DATASETS.get(recipe.data.dataset)
    whole = facts is not None and checkpoint.details.get("images") == facts.train
    complete = checkpoint.progress == "complete" and checkpoint.inputs.initial_weights is None
    return "reduced" if scale in recipes.PUBLISHED and not (whole and complete) else scale


def scale(task: str, trained: Checkpoint, config: Any, details: Mapping[str, Any], *, random: bool) -> str:
    """Return the scale of a result: that of its pre-training, or "reduced" if the evaluation is cut down.

    Args:
        trained: the checkpoint. With `random`, only its architecture was used.
        details: of the outcome: `train_images`, `test_images`.
    """
    found = pretraining_scale(trained)
    if found == "demo" and isinstance(config.data, DataConfig) and config.data.kind != "shapes":
        return "reduced"
    if random and found != "demo":
        found = "paper"
    if found in recipes.PUBLISHED and not (_is_whole(config, details) and _is_published(task, trained, config)):
        return "reduced"
    return found


def _is_whole(config: Any, details: Mapping[str, Any]) -> bool:
    """Return whether the data set is a published one with all of its images."""
    facts = DATASETS.get(config.data.dataset)
    if facts is None or details["test_images"] != facts.test:
        return False
    share = getattr(config, "train_percent", None)
    return bool(details["train_images"] == (facts.train if share is None else facts.listed.get(share)))


def _is_published(name: str, checkpoint: Checkpoint, config: Any) -> bool:
    """Return whether the configuration is a packaged protocol for this checkpoint and data set."""
    task = find_task(name)
    data = {key: value for key, value in configs.to_dict(config.data).items() if key not in ("mean", "std")}
    if task.default is not None:
        paths = [path for path in (configs.CONFIGS / name).glob("*.yaml") if path.stem != "demo"]
    else:
        paths = [default_path(name, config.data)]
    for path in paths:
        for content in _variants(configs.read(path), checkpoint):
            if same_protocol(_build(task, checkpoint, data, content, path, ()), config):
                return True
    return False
