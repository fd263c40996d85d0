"""What is comparable: which evaluation a configuration is, at which scale, and the words for it in tables."""

import importlib
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from intl_bench.core import config as configs
from intl_bench.core.datasets import PAPER
from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity, same_protocol
from pretrain import recipe as recipes
from pretrain.checkpoint import Checkpoint, Origin, Preprocessing
from pretrain.data import DataConfig, normalization
from transfer import TASKS

# SimCLR's lists of ImageNet's images.
_LISTED = {1: 12_811, 10: 128_116}

# Sections under `for_checkpoints` of a protocol's file: for which checkpoints each holds; None where that is not known.
_CONDITIONS: dict[str, Callable[[Checkpoint], bool | None]] = {
    "two_views": lambda checkpoint: None if checkpoint.recipe is None else len(checkpoint.recipe.views) <= 2,
    "cifar100_normalization": lambda checkpoint: checkpoint.preprocessing in (None, _usual("cifar100")),
}


def _usual(kind: str) -> Preprocessing:
    mean, std = normalization(DataConfig(kind=kind))
    return Preprocessing(mean=mean, std=std)


def build(module: ModuleType, checkpoint: Checkpoint, data: Mapping[str, Any], path: Path, overrides: Any = ()) -> Any:
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
    if checkpoint.origin is not Origin.RANDOM:
        for section, values in module.from_checkpoint(checkpoint).items():
            for key, value in values.items():
                if settings[section][key] == value:
                    settings[section][key] = "checkpoint"
    return {"settings": settings, "data": dict(data)}


def describe(module: ModuleType, checkpoint: Checkpoint, config: Any) -> dict[str, Any]:
    """How a result was measured, in the words of a table's footnote; see `ResultRecord.protocol`."""
    stated = {key: value for key, value in module.protocol(config).items() if value is not None}
    if "normalization" in stated:
        look = checkpoint.preprocessing
        if config.data.mean is None and config.data.std is None:
            whose = "the data set's"
        elif look is not None and (look.mean, look.std) == normalization(config.data):
            whose = "the checkpoint's"
        else:
            whose = "set by the protocol or an override"
        stated["normalization"] = f"{stated['normalization']} ({whose})"
    return stated | describe_pretraining(checkpoint)


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
    if scale != recipe.scale and importlib.import_module("intl_bench.ablations.grid").is_cell(recipe):
        scale = recipe.scale
    facts = PAPER.get(recipe.data.dataset)
    whole = facts is not None and checkpoint.details.get("images", facts.train) == facts.train
    complete = checkpoint.progress == "complete" and checkpoint.inputs.initial_weights is None
    return "reduced" if scale in recipes.PUBLISHED and not (whole and complete) else scale


def scale(task: str, trained: Checkpoint, config: Any, details: Mapping[str, Any], *, random: bool) -> str:
    """The scale of a result: its pre-training's, unless the evaluation is a cut-down one.

    Args:
        trained: the checkpoint; with `random` the one whose architecture was initialized anew.
        details: of the outcome: `train_images`, `test_images`.
    """
    found = pretraining_scale(trained)
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
    for path in (configs.CONFIGS / task).glob("*.yaml"):
        if path.stem == "demo" or (path.stem in PAPER and path.stem != config.data.dataset):
            continue
        for content in _variants(configs.read(path), checkpoint):
            if same_protocol(_build(module, checkpoint, data, content, path, ()), config):
                return True
    return False
