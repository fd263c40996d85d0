"""`intl-bench ablation NAME`: a grid of pre-trainings and seeds, each scored and measured, resumable cell by cell.

The end of a cell is a record of the task "pretrain" beside the records of its scores. It holds spectra of the
embedding, or states that the cell diverged. A cell with all its records is skipped, even without its checkpoint.
"""

import dataclasses
import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from intl_bench import protocol, provenance, runs
from intl_bench.ablations.cells import EXPERIMENTS, Ablation, recipes, split_scoring
from intl_bench.ablations.figures import DRAWN, FIGURES, Point
from intl_bench.core import config as configs
from intl_bench.core import distributed, files, inputs
from intl_bench.core.distributed import Process
from intl_bench.core.errors import DivergedError, InputError, NotFiniteError
from intl_bench.core.identity import digest
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.spectra.measure import measure_run
from intl_bench.spectra.values import record_values
from intl_bench.tables import render
from intl_bench.tables.ablation import TASK
from pretrain import checkpoint as checkpoints
from pretrain import methods, states, train
from pretrain.checkpoint import Checkpoint, Origin, Preprocessing
from pretrain.images.data import open_source
from pretrain.images.fingerprint import fingerprint
from pretrain.recipe import Inputs, Recipe
from transfer.task import Task

Scoring = tuple[Task[Any], Checkpoint, Any]  # a task, what it scores, its configuration


def check(recipes: Sequence[Recipe], tasks: Sequence[str], *, elsewhere: bool = False) -> None:
    """Build every cell without memory, so that an error in the last cell is reported before the first one runs.

    Args:
        elsewhere: whether the cells are jobs of a cluster, so that this machine needs no GPU.

    Raises:
        InputError: a data set cannot be read, or a method does not fit the rest of its recipe, or a setting of a task
            is wrong or does not fit its images.
        ResourceError: see `require_gpu`.
    """
    nowhere = Process(rank=0, world_size=1, device=torch.device("meta"))
    scored = set[str]()
    for number, recipe in enumerate(recipes):
        if number == 0 or recipe.data != recipes[number - 1].data:
            source = open_source(recipe.data, "train")
        with nowhere.device:
            train.build_training(recipe, nowhere, len(source), len(source.class_names))
        prepared = scorings(planned_checkpoint(recipe, opened=False), tasks)
        for scoring, (task, _, config) in zip(tasks, prepared, strict=True):
            if (key := scoring_key(scoring, config)) not in scored:
                task.images(config)
                scored.add(key)
        if not elsewhere:
            require_gpu(recipe, prepared)


def scorings(planned: Checkpoint, tasks: Sequence[str]) -> list[Scoring]:
    """Return what `runs.prepare` does for each entry of `tasks`, without opening the images."""
    return [runs.prepare(plan(scoring, planned)) for scoring in tasks]


def scoring_key(scoring: str, config: Any) -> str:
    """Return a key that is equal for cells that an entry of `tasks` scores with the same configuration."""
    return digest({"scoring": scoring, "config": configs.to_dict(config)})


def require_gpu(recipe: Recipe, prepared: Sequence[Scoring]) -> None:
    """Refuse a cell that needs a GPU, if PyTorch sees none here.

    Args:
        prepared: its scores; see `scorings`.

    Raises:
        InputError: its precision needs one.
        ResourceError: its device, or that of a score, is one.
    """
    if recipe.precision == "fp16" and (recipe.device == "cpu" or not torch.cuda.is_available()):
        raise InputError("precision=fp16: expected a GPU for a cell of this precision; add precision=bf16, or fp32")
    for device in (recipe.device, *(config.device for _, _, config in prepared)):
        distributed.require(device)


def run(
    ablation: Ablation,
    *,
    seeds: Iterable[int],
    results: Path,
    overrides: Sequence[str] = (),
    fresh: bool = False,
) -> None:
    """Run every cell that has no records, for every seed.

    A cell that diverges counts as a result, and the grid continues.

    Raises:
        BenchError: a cell failed. The records of finished cells are kept.
    """
    store = RecordStore(results / "records")
    for seed in seeds:
        cells = recipes(ablation, seed, overrides)
        for recipe in cells:
            run_cell(recipe, ablation.tasks, store, results, fresh=fresh)
        for recipe in {recipe.backbone: recipe for recipe in reversed(cells)}.values() if ablation.random else ():
            for scoring in ablation.tasks:
                random = plan(scoring, planned_checkpoint(recipe), seed)
                runs.run(dataclasses.replace(random, init="random", results=results))


def experiment(ablation: Ablation, results: Path, *, fresh: bool = False) -> None:
    """Run the experiment of a grid, if it has one, unless its results exist; print its table, if there is one."""
    if ablation.also is None:
        return
    folder = results / ablation.also
    if fresh or not (folder / f"{ablation.also}.json").exists():  # the file that is written last
        importlib.import_module(EXPERIMENTS[ablation.also]).run(folder)
    print(f"{ablation.also}: {folder}", flush=True)
    table = folder / f"{ablation.also}.md"
    if table.exists():
        print(inputs.read_text(table, "the table"))


def finish(ablation: Ablation, results: Path, cells: Iterable[Recipe]) -> str:
    """Write the table and the figure of these cells with all seeds that have records; return the table."""
    planned = [planned_checkpoint(recipe) for recipe in cells]
    wanted = {digest(one.pretraining()) for one in planned}
    random = {digest(dataclasses.replace(one, origin=Origin.RANDOM, recipe=None).pretraining()) for one in planned}
    records = RecordStore(results / "records").load()
    ended = [r for r in records if r.task == TASK and r.pretraining_sha256 in wanted]
    scores = [r for r in records if r.task != TASK and r.pretraining_sha256 in wanted | random]
    records = [*ended, *scores]
    if not records:  # none of the cells ran here
        return ""
    table = render(records, tables=["ablation"])
    files.write_text(results / "table.md", table + "\n")
    if ablation.figure is not None:
        read = dict[str, dict[str, str]]()
        current = {(task, digest(own)) for one in planned for task, own in evaluations(ablation.tasks, one, read)}
        figure = FIGURES[ablation.figure](
            points([*ended, *(r for r in scores if (r.task, r.evaluation_sha256) in current)])
        )
        files.write_stream(results / "figure.png", lambda stream: figure.savefig(stream, format="png", dpi=150))
    return table


def points(records: Sequence[ResultRecord]) -> list[Point]:
    """Return the finished cells with all their measurements and the scores of `figures.DRAWN`."""
    found = []
    for cell in records:
        if cell.task != TASK:
            continue
        digest = cell.details["weights_sha256"]
        scores = [r.metrics for r in records if digest and r.weights_sha256 == digest and r.task in DRAWN]
        metrics = {name: value for score in [cell.metrics, *scores] for name, value in score.items()}
        found.append(
            Point(
                method=cell.method, seed=cell.pretrain_seed, config=cell.config, metrics=metrics, details=cell.details
            )
        )
    return found


def run_cell(recipe: Recipe, tasks: Sequence[str], store: RecordStore, results: Path, *, fresh: bool) -> None:
    """Train a cell, score it and measure it, unless it has all its records.

    Raises:
        BenchError: it failed.
    """
    records, planned = store.load(), planned_checkpoint(recipe)
    if not fresh and _is_recorded(planned, tasks, records):
        names = {split_scoring(scoring)[0] for scoring in tasks}
        for folder in (recipe.folder.parent, *(base / name for name in names for base in (Path("runs"), store.folder))):
            files.sweep(folder)  # what a failed call could not remove
        print(f"{recipe.name} seed {recipe.seed}: already there", flush=True)
        return
    require_gpu(recipe, scorings(planned, tasks))
    try:
        path = train.run(recipe, fresh=fresh)
    except DivergedError as error:
        record = _diverged(planned, error)
    else:
        try:
            record = _scored(path, planned, tasks, records, results, fresh=fresh)
        except NotFiniteError as error:  # the last step diverged, or the numbers of the network are too large
            record = _diverged(planned, error)
    store.replace(record)


def _diverged(planned: Checkpoint, error: Exception) -> ResultRecord:
    assert planned.recipe is not None
    print(f"{planned.recipe.name} seed {planned.recipe.seed}: {error}", flush=True)
    return _record(planned, {"diverged": 100.0}, {"diverged": str(error), "weights_sha256": None})


def _scored(
    path: Path,
    planned: Checkpoint,
    tasks: Sequence[str],
    records: Sequence[ResultRecord],
    results: Path,
    *,
    fresh: bool,
) -> ResultRecord:
    """Score and measure a finished training; return the record of its end."""
    state, sha256 = states.load(path)  # read once, used several times below
    # The recipe as typed now: since the training, the data may have moved, or have got other test images.
    state = {**state, "config": configs.to_dict(planned.recipe)}
    trained = checkpoints.online(path, sha256, state)
    if trained.inputs != planned.inputs:
        raise InputError(f"{path}: begun by an earlier version, without a fingerprint of its images; add --fresh")
    # A training that was repeated because its checkpoint was missing replaces the scores of other weights.
    cell = digest(planned.pretraining()), planned.seed
    scores = [r for r in records if (r.pretraining_sha256, r.pretrain_seed) == cell and r.task != TASK]
    again = fresh or any(r.weights_sha256 != trained.weights_sha256 for r in scores)
    for scoring in tasks:
        own = plan(scoring, trained, planned.seed or 0)
        runs.run(dataclasses.replace(own, results=results, fresh=again))
    metrics, details = record_values(measure_run(path, state))
    details |= {"weights_sha256": trained.weights_sha256}
    return _record(trained, {"diverged": 0.0, **metrics}, details)


def is_done(recipe: Recipe, seed: int, tasks: Sequence[str], records: Sequence[ResultRecord]) -> bool:
    """Return whether a cell has all its records for a seed.

    Raises:
        InputError: the images cannot be read.
    """
    if not any(r.task == TASK for r in records):  # without reading the images for their fingerprint
        return False
    return _is_recorded(planned_checkpoint(dataclasses.replace(recipe, seed=seed)), tasks, records)


def _is_recorded(planned: Checkpoint, tasks: Sequence[str], records: Sequence[ResultRecord]) -> bool:
    # The recipe and its data identify the cell. The rest of a record takes time to compute.
    cell = TASK, digest(planned.pretraining()), planned.seed
    before = next((r for r in records if (r.task, r.pretraining_sha256, r.pretrain_seed) == cell), None)
    if before is None or "diverged" in before.details:
        return before is not None
    scored = {(r.task, r.evaluation_sha256) for r in records if r.weights_sha256 == before.details["weights_sha256"]}
    return scored >= {(task, digest(own)) for task, own in evaluations(tasks, planned)}


def plan(scoring: str, checkpoint: Checkpoint, seed: int = 0) -> runs.TaskRun:
    """Return what an entry of `tasks` does with a checkpoint."""
    task, config, overrides = split_scoring(scoring)
    return runs.TaskRun(task=task, checkpoint=checkpoint, config=config, overrides=overrides, seeds=[seed])


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


def _record(checkpoint: Checkpoint, metrics: dict[str, float], details: dict[str, Any]) -> ResultRecord:
    """Return the record of the end of a cell."""
    recipe = checkpoint.recipe
    assert recipe is not None
    return ResultRecord(
        task=TASK,
        method=checkpoint.method,
        dataset=recipe.data.dataset,
        backbone=recipe.backbone.name,
        metrics=metrics,
        details={"pretrain": checkpoint.details, **details},
        pretraining=checkpoint.pretraining(),
        evaluation={},
        pretrain_seed=recipe.seed,
        transfer_seed=recipe.seed,
        protocol=protocol.describe_pretraining(checkpoint),
        scale=protocol.pretraining_scale(checkpoint),
        weights_sha256=None,  # so that the same cell on two machines is one record
        checkpoint_sha256=checkpoint.sha256 or None,
        config=configs.to_dict(recipe),
        code=provenance.code(),
        libraries=provenance.libraries(),
        hardware=provenance.hardware(),
        wall_time_s=checkpoint.details.get("seconds", 0.0),
        peak_memory_mib=round(provenance.peak_memory_mib(), 1),
        created=runs.now(),
    )
