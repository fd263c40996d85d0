"""`intl-bench ablation NAME`: a grid of pre-trainings and seeds, each scored and measured, resumable cell by cell.

What a cell ended in is a record of the task "pretrain" beside those of its scores: spectra of its embedding, or that it
diverged. A cell with all its records is skipped, whatever has become of its checkpoint.
"""

import dataclasses
import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from intl_bench import protocol, provenance, runs, tables
from intl_bench.ablations.cells import EXPERIMENTS, Ablation, recipes
from intl_bench.ablations.figures import FIGURES, Point
from intl_bench.core import config as configs
from intl_bench.core import files
from intl_bench.core.distributed import Process
from intl_bench.core.errors import DivergedError, InputError
from intl_bench.core.identity import digest
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.spectra import compare
from intl_bench.spectra.measure import measure_run
from intl_bench.tables.ablation import TASK
from pretrain import checkpoint as checkpoints
from pretrain import methods, train
from pretrain.checkpoint import Checkpoint, Origin, Preprocessing
from pretrain.images.data import open_source
from pretrain.images.fingerprint import fingerprint
from pretrain.recipe import Inputs, Recipe


def check(recipes: Sequence[Recipe]) -> None:
    """Builds every cell without memory, so that what is wrong with the last is said before the first is run.

    Raises:
        InputError: a data set cannot be read, or a method does not suit the rest of its recipe.
    """
    nowhere = Process(rank=0, world_size=1, device=torch.device("meta"))
    for number, recipe in enumerate(recipes):
        if number == 0 or recipe.data != recipes[number - 1].data:
            source = open_source(recipe.data, "train")
        with nowhere.device:
            train.build_training(recipe, nowhere, len(source), len(source.class_names))


def run(
    ablation: Ablation,
    *,
    seeds: Iterable[int],
    results: Path,
    overrides: Sequence[str] = (),
    fresh: bool = False,
) -> None:
    """Every cell for every seed, as far as there are no records yet.

    A cell that diverges is a result like another, and the grid goes on.

    Raises:
        InputError and the other errors of the exit codes; what was finished before stays.
    """
    store = RecordStore(results / "records")
    for seed in seeds:
        cells = recipes(ablation, seed, overrides)
        for recipe in cells:
            _run_cell(recipe, ablation.tasks, store, results, fresh=fresh)
        for recipe in {recipe.backbone: recipe for recipe in reversed(cells)}.values() if ablation.random else ():
            for task in ablation.tasks:
                plan = runs.TaskRun(
                    task=task, checkpoint=_planned(recipe), init="random", seeds=[seed], results=results
                )
                runs.run(plan)


def experiment(ablation: Ablation, results: Path, *, fresh: bool = False) -> None:
    """Runs the experiment beside a grid, if any, unless its results are there; prints its table, if it makes one."""
    if ablation.also is None:
        return
    folder = results / ablation.also
    if fresh or not (folder / f"{ablation.also}.json").exists():  # the last that is written
        importlib.import_module(EXPERIMENTS[ablation.also]).run(folder)
    print(f"{ablation.also}: {folder}", flush=True)
    table = folder / f"{ablation.also}.md"
    if table.exists():
        print(table.read_text())


def finish(ablation: Ablation, results: Path, cells: Iterable[Recipe]) -> str:
    """Writes the table and the figure of these cells, with all the seeds that there are; returns the table."""
    planned = [_planned(recipe) for recipe in cells]
    wanted = {digest(one.pretraining()) for one in planned}
    random = {digest(dataclasses.replace(one, origin=Origin.RANDOM, recipe=None).pretraining()) for one in planned}
    records = RecordStore(results / "records").load()
    ended = [r for r in records if r.task == TASK and r.pretraining_sha256 in wanted]
    scores = [r for r in records if r.task != TASK and r.pretraining_sha256 in wanted | random]
    records = [*ended, *scores]
    table = tables.render(records, tables=["ablation"])
    files.write_text(results / "table.md", table + "\n")
    if ablation.figure is not None:
        figure = FIGURES[ablation.figure](points(records))
        files.write_stream(results / "figure.png", lambda stream: figure.savefig(stream, format="png", dpi=150))
    return table


def points(records: Sequence[ResultRecord]) -> list[Point]:
    """The cells that have ended, with all that was measured of each."""
    found = []
    for cell in records:
        if cell.task != TASK:
            continue
        digest = cell.details["weights_sha256"]
        scores = [r.metrics for r in records if digest and r.weights_sha256 == digest]
        metrics = {name: value for score in [cell.metrics, *scores] for name, value in score.items()}
        found.append(
            Point(
                method=cell.method, seed=cell.pretrain_seed, config=cell.config, metrics=metrics, details=cell.details
            )
        )
    return found


def _run_cell(recipe: Recipe, tasks: Sequence[str], store: RecordStore, results: Path, *, fresh: bool) -> None:
    records, planned = store.load(), _planned(recipe)
    # Told by the recipe and its data: what else is in a record takes time to find out.
    cell = TASK, digest(planned.pretraining()), recipe.seed
    before = next((r for r in records if (r.task, r.pretraining_sha256, r.pretrain_seed) == cell), None)
    if before is not None and not fresh and _is_complete(before, tasks, records):
        print(f"{recipe.name} seed {recipe.seed}: already there", flush=True)
        return
    try:
        path = train.run(recipe, fresh=fresh)
    except DivergedError as error:
        print(f"{recipe.name} seed {recipe.seed}: {error}", flush=True)
        record = _record(planned, {"diverged": 100.0}, {"diverged": str(error), "weights_sha256": None})
    else:
        state, sha256 = checkpoints.load(path)  # once, for all that follows
        trained = checkpoints.online(path, sha256, state)
        if trained.inputs != planned.inputs:
            raise InputError(f"{path}: an earlier version began it, which did not note its images; add --fresh")
        # A training that was done anew, for want of its checkpoint, replaces its scores.
        again = fresh or before is None
        for task in tasks:
            runs.run(runs.TaskRun(task=task, checkpoint=trained, seeds=[recipe.seed], results=results, fresh=again))
        metrics, details = compare.record_values(measure_run(path, state))
        details |= {"weights_sha256": trained.weights_sha256}
        record = _record(trained, {"diverged": 0.0, **metrics}, details)
    store.replace(record)


def _is_complete(cell: ResultRecord, tasks: Sequence[str], records: Sequence[ResultRecord]) -> bool:
    scored = {r.task for r in records if r.weights_sha256 == cell.details["weights_sha256"]}
    return "diverged" in cell.details or scored >= set(tasks)


def _planned(recipe: Recipe) -> Checkpoint:
    """What a cell's training is to end in, without weights."""
    source = open_source(recipe.data, "train")
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
        inputs=Inputs(data=fingerprint(source)),
        epoch=recipe.epochs,
        details={"images": len(source)},
    )


def _record(checkpoint: Checkpoint, metrics: dict[str, float], details: dict[str, Any]) -> ResultRecord:
    """How a cell has ended."""
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
        weights_sha256=None,  # the same cell of another machine is the same cell
        checkpoint_sha256=checkpoint.sha256 or None,
        config=configs.to_dict(recipe),
        code=provenance.code(),
        libraries=provenance.libraries(),
        hardware=provenance.hardware(),
        wall_time_s=checkpoint.details.get("seconds", 0.0),
        peak_memory_mib=round(provenance.peak_memory_mib(), 1),
        created=runs.now(),
    )
