"""What is comparable: which evaluation a configuration is, at which scale, and the words for it in tables."""

import difflib
import importlib
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from intl_bench.ablations.cells import is_cell
from intl_bench.core import config as configs
from intl_bench.core.datasets import PAPER
from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity, same_protocol
from pretrain import recipe as recipes
from pretrain.checkpoint import Checkpoint, Origin, Preprocessing
from pretrain.images.data import DataConfig
from transfer import TASKS

# SimCLR's lists of ImageNet's images.
_LISTED = {1: 12_811, 10: 128_116}

_CIFAR100 = Preprocessing.of(DataConfig(kind="cifar100"))
# Sections under `for_checkpoints` of a protocol's file: for which checkpoints each holds; None where that is not known.
_CONDITIONS: dict[str, Callable[[Checkpoint], bool | None]] = {
    "two_views": lambda checkpoint: None if checkpoint.recipe is None else len(checkpoint.recipe.views) <= 2,
    "cifar100_normalization": lambda checkpoint: checkpoint.preprocessing in (None, _CIFAR100),
}


def default_path(task: str, data: DataConfig) -> Path:
    """The file of a task's protocol for a data set: its own, or that for its kind.

    Raises:
        InputError: there is none.
    """
    folder = configs.CONFIGS / task
    for name in (data.dataset, data.kind, "default"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    near = difflib.get_close_matches(data.dataset, known, n=1) or known
    raise InputError(
        f"{task}: no protocol for the data set {data.dataset}; choose one with --config, such as {near[0]}"
    )


def build_config(
    module: ModuleType, checkpoint: Checkpoint, data: Mapping[str, Any], path: Path, overrides: Any = ()
) -> Any:
    """A task's configuration: the checkpoint's part and `data`, under the protocol's file, under the overrides.

    Raises:
        InputError: an unknown key or value.
    """
    content = next(_variants(configs.read(path), checkpoint))
    return _build(module, checkpoint, data, content, path, overrides)


def _build(
    module: ModuleType, checkpoint: Checkpoint, data: Mapping[str, Any], content: dict[str, Any], path: Path, own: Any
) -> Any:
    values = _merge({"data": dict(data)}, module.from_checkpoint(checkpoint), content)
    return configs.build(module.Config, values, f"config {path.parent.name}/{path.name}", own)


def _variants(content: dict[str, Any], checkpoint: Checkpoint) -> Any:
    """A protocol's file for a checkpoint, one version for each answer to what is not known of it; "no" first."""
    sections = content.pop("for_checkpoints", {})
    for name in sections:
        if name not in _CONDITIONS:
            raise InputError(f"for_checkpoints.{name}: unknown; expected {' or '.join(_CONDITIONS)}")
    holds = [_CONDITIONS[name](checkpoint) for name in sections]
    for choice in itertools.product(*([False, True] if held is None else [held] for held in holds)):
        chosen = [section for section, held in zip(sections.values(), choice, strict=True) if held]
        yield _merge(content, *chosen)


def _merge(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Later ones over earlier ones, sections key by key."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


def evaluation(module: ModuleType, checkpoint: Checkpoint, config: Any, data: Mapping[str, str]) -> dict[str, Any]:
    """Which evaluation this is, whatever its seed and checkpoint: equal for what may be averaged or compared.

    What is taken over from the checkpoint is "checkpoint" here, for it follows from the pre-training. A random
    initialization keeps the numbers: which checkpoint it replaces is nowhere else.

    Args:
        data: the fingerprints of the splits.
    """
    settings = identity(config)
    if getattr(module, "PROCESSES_MATTER", False):
        settings["processes"] = int(os.environ.get("WORLD_SIZE", 1))
    if checkpoint.origin is not Origin.RANDOM:
        for section, values in module.from_checkpoint(checkpoint).items():
            for key, value in values.items():
                if settings[section][key] == value:
                    settings[section][key] = "checkpoint"
    # Without the checkpoint's nor any others they are the data set's, as if these had been given.
    pixels = settings["data"]
    if {"mean", "std"} <= pixels.keys() and None in (pixels["mean"], pixels["std"]):
        pixels |= identity(Preprocessing.of(config.data))
    return {"settings": settings, "data": dict(data)}


def describe(module: ModuleType, checkpoint: Checkpoint, config: Any) -> dict[str, Any]:
    """How a result was measured, in the words of a table's footnote; see `ResultRecord.protocol`."""
    stated = {key: value for key, value in module.protocol(config).items() if value is not None}
    if "normalization" in stated:
        stated["normalization"] += f" ({_whose(module, checkpoint, config)})"
    return stated | describe_pretraining(checkpoint)


def _whose(module: ModuleType, checkpoint: Checkpoint, config: Any) -> str:
    """Where the mean and std of a configuration's pixels come from."""
    settings, pixels = identity(config), ("mean", "std", "pixel_mean", "pixel_std")
    given = {key: v for part in module.from_checkpoint(checkpoint).values() for key, v in part.items() if key in pixels}
    used = {key: v for part in ("data", "model") for key, v in settings.get(part, {}).items() if key in pixels}
    if not any(used.values()):
        return "the data set's"
    return "the checkpoint's" if used == given else "set by the protocol or an override"


def describe_pretraining(checkpoint: Checkpoint) -> dict[str, Any]:
    """How the backbone was pre-trained, as keys that start with "pretrain_"."""
    recipe = checkpoint.recipe
    if checkpoint.origin is Origin.RANDOM:
        return {"pretrain_epochs": 0}
    if recipe is None:
        known = {} if checkpoint.epoch is None else {"pretrain_epochs": checkpoint.epoch}
        return {"pretrain_source": checkpoint.source, **known}
    sizes = [view.size for view in recipe.views]
    momentum = checkpoint.details.get("momentum_target", bool(recipe.method.get("momentum_target")))
    stated = {
        "pretrain_dataset": recipe.data.dataset,
        "pretrain_images": checkpoint.details.get("images"),
        "pretrain_epochs": checkpoint.epoch,
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
    if checkpoint.branch != "online":
        stated["pretrain_branch"] = checkpoint.branch
    if checkpoint.inputs.initial_weights is not None:
        stated["pretrain_initial_weights"] = checkpoint.inputs.initial_weights[:12]
    return stated


def pretraining_scale(checkpoint: Checkpoint) -> str:
    """The scale of a pre-training: its recipe's, and a published one only where all images were seen to the end.

    How a foreign checkpoint was trained is not for us to say, and random initialization is not training: "paper".
    """
    recipe = checkpoint.recipe
    if recipe is None:
        return "paper"
    scale = recipes.judged_scale(recipe)
    if scale != recipe.scale and is_cell(recipe):
        scale = recipe.scale
    facts = PAPER.get(recipe.data.dataset)
    whole = facts is not None and checkpoint.details.get("images") == facts.train
    complete = checkpoint.progress == "complete" and checkpoint.inputs.initial_weights is None
    return "reduced" if scale in recipes.PUBLISHED and not (whole and complete) else scale


def scale(task: str, trained: Checkpoint, config: Any, details: Mapping[str, Any], *, random: bool) -> str:
    """The scale of a result: its pre-training's, unless the evaluation is a cut-down one.

    Args:
        trained: the checkpoint; with `random` the one whose architecture was initialized anew.
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
    """Whether the data set is one of the paper's, with all of its images."""
    facts = PAPER.get(config.data.dataset)
    if facts is None or details["test_images"] != facts.test:
        return False
    share = getattr(config, "train_percent", None)
    return bool(details["train_images"] == (facts.train if share is None else _LISTED[share]))


def _is_published(task: str, checkpoint: Checkpoint, config: Any) -> bool:
    """Whether the configuration is a packaged protocol for this checkpoint and data set."""
    module = importlib.import_module(TASKS[task])
    data = {key: value for key, value in configs.to_dict(config.data).items() if key not in ("mean", "std")}
    if hasattr(module, "DEFAULT"):
        paths = [path for path in (configs.CONFIGS / task).glob("*.yaml") if path.stem != "demo"]
    else:
        paths = [default_path(task, config.data)]
    for path in paths:
        for content in _variants(configs.read(path), checkpoint):
            if same_protocol(_build(module, checkpoint, data, content, path, ()), config):
                return True
    return False
