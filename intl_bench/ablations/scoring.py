"""What the cells of a grid are scored with, known before they are trained."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from intl_bench import protocol, runs
from intl_bench.ablations.cells import Ablation, split_scoring
from intl_bench.core import config as configs
from intl_bench.core.identity import digest
from intl_bench.records import ResultRecord
from pretrain import methods
from pretrain.backbone import BackboneConfig
from pretrain.checkpoint import Checkpoint, Origin, Preprocessing
from pretrain.images.data import open_source
from pretrain.images.data_config import DataConfig
from pretrain.images.fingerprint import fingerprint
from pretrain.recipe import Inputs, Recipe
from transfer.task import Task

Scoring = tuple[Task[Any], Checkpoint, Any]  # a task, what it scores, its configuration


def planned_checkpoint(recipe: Recipe, *, opened: bool = True) -> Checkpoint:
    """Return the checkpoint that a cell's training will end in, without weights.

    Args:
        opened: whether it has the fingerprint of the images. A configuration of a score does not depend on it.
    """
    source = open_source(recipe.data, "train") if opened else None
    return Checkpoint(
        path=recipe.checkpoint,
        sha256="",
        backbone={},
        origin=Origin.TRAINED,
        method=methods.find(recipe.method["name"]).DISPLAY,
        architecture=recipe.backbone,
        preprocessing=Preprocessing.of(recipe.data),
        seed=recipe.seed,
        recipe=recipe,
        inputs=Inputs() if source is None else Inputs(data=fingerprint(source)),
        epoch=recipe.epochs,
        details={} if source is None else {"images": len(source)},
    )


def planned_checkpoints(recipes: Iterable[Recipe]) -> list[Checkpoint]:
    """Return `planned_checkpoint` of recipes. The fingerprint of a data set, which takes time, is read once."""
    opened: dict[DataConfig, Checkpoint] = {}
    made = []
    for recipe in recipes:
        if recipe.data not in opened:
            opened[recipe.data] = planned_checkpoint(recipe)
        images = {name: getattr(opened[recipe.data], name) for name in ("inputs", "details")}
        made.append(dataclasses.replace(planned_checkpoint(recipe, opened=False), **images))
    return made


def plan(scoring: str, checkpoint: Checkpoint, seed: int = 0) -> runs.TaskRun:
    """Return what an entry of `tasks` does with a checkpoint."""
    task, config, overrides = split_scoring(scoring)
    return runs.TaskRun(task=task, checkpoint=checkpoint, config=config, overrides=overrides, seeds=[seed])


def scorings(planned: Checkpoint, tasks: Sequence[str]) -> list[Scoring]:
    """Return what `runs.prepare` does for each entry of `tasks`, without opening the images."""
    return [runs.prepare(plan(scoring, planned)) for scoring in tasks]


def scoring_key(scoring: str, config: Any) -> str:
    """Return a key that is equal for cells that an entry of `tasks` scores with the same configuration."""
    return digest({"scoring": scoring, "config": configs.to_dict(config)})


def evaluations(
    tasks: Sequence[str], planned: Checkpoint, read: dict[str, dict[str, str]] | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """Return the task and the identity of the evaluation of each entry of `tasks`, for a planned checkpoint.

    Args:
        read: the fingerprints of images by `scoring_key`, which several checkpoints share. Those that are missing are
            read and added.
    """
    found = []
    read = {} if read is None else read
    for entry, (task, checkpoint, config) in zip(tasks, scorings(planned, tasks), strict=True):
        key = scoring_key(entry, config)
        if key not in read:
            read[key] = task.fingerprints(config)
        found.append((split_scoring(entry)[0], protocol.evaluation(task, checkpoint, config, read[key])))
    return found


def random_scores(
    cells: Sequence[Recipe], ablation: Ablation
) -> dict[tuple[BackboneConfig, str], tuple[Checkpoint, str]]:
    """Return the planned checkpoint and the entry of `tasks` of each different score at random initialization.

    The keys are the backbone and `scoring_key`.

    Cells differ in it if they have another backbone, or if the entry takes its images from them and these differ.
    """
    found = dict[tuple[BackboneConfig, str], tuple[Checkpoint, str]]()
    for recipe in cells if ablation.random else ():
        planned = planned_checkpoint(recipe, opened=False)
        for entry, (_, _, config) in zip(ablation.tasks, scorings(planned, ablation.tasks), strict=True):
            found.setdefault((recipe.backbone, scoring_key(entry, config)), (planned, entry))
    return found


def random_pretraining(planned: Checkpoint) -> str:
    """Return the digest of the identity of a random initialization in place of a training."""
    return digest(dataclasses.replace(planned, origin=Origin.RANDOM, recipe=None).pretraining())


def random_records(
    records: Sequence[ResultRecord], planned: Checkpoint, entry: str, seeds: Sequence[int]
) -> list[ResultRecord]:
    """Return those of some records that are an entry of `random_scores` with one of the seeds."""
    if not records:  # without reading the images for their fingerprint
        return []
    ((task, own),) = evaluations([entry], dataclasses.replace(planned, origin=Origin.RANDOM))
    key = task, random_pretraining(planned), digest(own)
    made = [record for record in records if record.pretrain_seed in seeds]
    return [r for r in made if (r.task, r.pretraining_sha256, r.evaluation_sha256) == key]
