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
from intl_bench.ablations import fresh
from intl_bench.ablations.cells import EXPERIMENTS, Ablation, recipes, split_scoring
from intl_bench.ablations.figures import DRAWN, FIGURES, Point
from intl_bench.ablations.scoring import (
    Scoring,
    evaluations,
    plan,
    planned_checkpoint,
    planned_checkpoints,
    random_pretraining,
    random_records,
    random_scores,
    scoring_key,
    scorings,
)
from intl_bench.core import config as configs
from intl_bench.core import distributed, files, inputs
from intl_bench.core.distributed import Process
from intl_bench.core.errors import DivergedError, InputError, NotFiniteError
from intl_bench.core.identity import digest
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.spectra.measure import measure_run
from intl_bench.spectra.values import record_values
from intl_bench.tables import render
from intl_bench.tables.ablation import SHOWN, TASK
from pretrain import checkpoint as checkpoints
from pretrain import states, train
from pretrain.checkpoint import Checkpoint
from pretrain.images.data import open_source
from pretrain.recipe import Recipe


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


def run(ablation: Ablation, *, seeds: Iterable[int], results: Path, overrides: Sequence[str] = ()) -> None:
    """Run every cell that has no records, for every seed.

    A cell that diverges counts as a result, and the grid continues. It continues as well if a score diverges.

    Raises:
        DivergedError: scores diverged. The other cells are finished.
        BenchError: a cell failed. The records of finished cells are kept.
    """
    store, diverged = RecordStore(results / "records"), list[DivergedError]()
    for seed in seeds:
        cells = recipes(ablation, seed, overrides)
        for recipe in cells:
            try:
                run_cell(recipe, ablation.tasks, results)
            except DivergedError as error:
                print(error, flush=True)
                diverged.append(error)
        replaced = fresh.listed(store.load(), results)
        for planned, scoring in random_scores(cells, ablation).values():
            for record in random_records(replaced, planned, scoring, [seed]):
                store.remove(record)
            runs.run(dataclasses.replace(plan(scoring, planned, seed), init="random", results=results))
    if diverged:
        raise DivergedError(f"{diverged[0]} ({len(diverged)} of the cells lack a score; all others are finished)")


def start_over(
    cells: Sequence[Recipe], results: Path, *, random: Iterable[tuple[Checkpoint, str]] = (), seeds: Sequence[int] = ()
) -> None:
    """Begin a `--fresh`: list what is finished, which is replaced when its turn comes; discard what is unfinished.

    Args:
        cells: of all seeds.
        random, seeds: scores at random initialization, see `random_scores`, and their seeds.
    """
    store = RecordStore(results / "records")
    records = store.load()
    finished = fresh.listed(records, results)  # of an earlier `--fresh`, which may be of other cells
    for recipe, planned in zip(cells, planned_checkpoints(cells), strict=True):
        own = _of(planned, records)
        ends = [record for record in own if record.task == TASK]
        finished += ends
        if not ends:
            _discard(recipe, own, store)
    for planned, scoring in random:
        finished += random_records(records, planned, scoring, seeds)
    fresh.start(results, finished)


def experiment(ablation: Ablation, results: Path, *, again: bool = False) -> None:
    """Run the experiment of a grid, if it has one, unless its results exist; print its table, if there is one.

    Args:
        again: remove its results first.
    """
    if ablation.also is None:
        return
    folder = results / ablation.also
    ended = folder / f"{ablation.also}.json"  # the file that is written last
    if again:
        ended.unlink(missing_ok=True)
    if not ended.exists():
        importlib.import_module(EXPERIMENTS[ablation.also]).run(folder)
    print(f"{ablation.also}: {folder}", flush=True)
    table = folder / f"{ablation.also}.md"
    if table.exists():
        print(inputs.read_text(table, "the table"))


def finish(ablation: Ablation, results: Path, cells: Iterable[Recipe]) -> str:
    """Write the table and the figure of these cells with all seeds that have records; return the table."""
    planned = planned_checkpoints(cells)
    wanted = {digest(one.pretraining()) for one in planned}
    random = {random_pretraining(one) for one in planned}
    records = RecordStore(results / "records").load()
    ended = [r for r in records if r.task == TASK and r.pretraining_sha256 in wanted]
    scores = [r for r in records if r.task != TASK and r.pretraining_sha256 in wanted | random]
    records = [*ended, *scores]
    if not records:  # none of the cells ran here
        return ""
    table = render(records, tables=["ablation"])
    if others := sorted({record.task for record in scores} - SHOWN):
        table += f"\n\nScores of {', '.join(others)}: intl-bench tables --results {results}"
    files.write_text(results / "table.md", table + "\n")
    if ablation.figure is not None:
        read = dict[str, dict[str, str]]()
        current = {(task, digest(own)) for one in planned for task, own in evaluations(ablation.tasks, one, read)}
        figure = FIGURES[ablation.figure](
            points([*ended, *(r for r in scores if (r.task, r.evaluation_sha256) in current)])
        )
        files.write_stream(results / "figure.png", lambda stream: figure.savefig(stream, format="png", dpi=150))
    fresh.end(results)
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


def run_cell(recipe: Recipe, tasks: Sequence[str], results: Path) -> None:
    """Train a cell, measure it and score it, unless it has all its records.

    Raises:
        DivergedError: a score diverged.
        BenchError: it failed.
    """
    store, planned = RecordStore(results / "records"), planned_checkpoint(recipe)
    records = store.load()
    if fresh.listed(own := _of(planned, records), results):
        if runs.is_main_process():
            _discard(recipe, own, store)
    elif _is_recorded(planned, tasks, records):
        names = {split_scoring(scoring)[0] for scoring in tasks}
        for folder in (recipe.folder.parent, *(base / name for name in names for base in (Path("runs"), store.folder))):
            files.sweep(folder)  # what a failed call could not remove
        print(f"{recipe.name} seed {recipe.seed}: already there", flush=True)
        return
    require_gpu(recipe, scorings(planned, tasks))
    try:
        path = train.run(recipe)
    except DivergedError as error:
        record = _diverged(planned, error, store)
    else:
        try:
            record = _scored(path, planned, tasks, store, results)
        except NotFiniteError as error:  # the last step diverged, or the numbers of the network are too large
            record = _diverged(planned, error, store)
    store.replace(record)


def _of(planned: Checkpoint, records: Iterable[ResultRecord]) -> list[ResultRecord]:
    """Return the record of the end of a cell and those of its scores, whatever their weights are."""
    cell = digest(planned.pretraining()), planned.seed
    return [record for record in records if (record.pretraining_sha256, record.pretrain_seed) == cell]


def _discard(recipe: Recipe, own: Iterable[ResultRecord], store: RecordStore) -> None:
    """Remove the training of a cell and its records. The end is the last, because it is what `fresh` lists."""
    train.discard(recipe)
    for record in sorted(own, key=lambda record: record.task == TASK):
        store.remove(record)


def _remove_scores(planned: Checkpoint, store: RecordStore, *, but: str | None) -> None:
    """Remove the scores of a cell that are of other weights than those with the digest `but`."""
    if not runs.is_main_process():
        return
    gone = [r for r in _of(planned, store.load()) if r.task != TASK and r.weights_sha256 != but]
    for record in gone:
        store.remove(record)
    if gone:
        tasks = ", ".join(sorted({record.task for record in gone}))
        print(f"{planned.path.parent}: removed {len(gone)} scores of earlier weights: {tasks}", flush=True)


def _diverged(planned: Checkpoint, error: Exception, store: RecordStore) -> ResultRecord:
    assert planned.recipe is not None
    print(f"{planned.recipe.name} seed {planned.recipe.seed}: {error}", flush=True)
    _remove_scores(planned, store, but=None)
    return _record(planned, {"diverged": 100.0}, {"diverged": str(error), "weights_sha256": None})


def _scored(path: Path, planned: Checkpoint, tasks: Sequence[str], store: RecordStore, results: Path) -> ResultRecord:
    """Measure and score a finished training; return the record of its end."""
    state, sha256 = states.load(path)  # read once, used several times below
    # The recipe as typed now: since the training, the data may have moved, or have got other test images.
    state = {**state, "config": configs.to_dict(planned.recipe)}
    trained = checkpoints.online(path, sha256, state)
    if trained.inputs != planned.inputs:
        raise InputError(f"{path}: begun by an earlier version, without a fingerprint of its images; add --fresh")
    # A training that was repeated, because its checkpoint was missing, can have other weights.
    _remove_scores(planned, store, but=trained.weights_sha256)
    metrics, details = record_values(measure_run(path, state))
    for scoring in tasks:
        try:
            runs.run(dataclasses.replace(plan(scoring, trained, planned.seed or 0), results=results))
        except DivergedError as error:
            raise DivergedError(f"{path.parent}: {scoring}: {error}") from error
    return _record(trained, {"diverged": 0.0, **metrics}, {**details, "weights_sha256": trained.weights_sha256})


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
    before = next((record for record in _of(planned, records) if record.task == TASK), None)
    if before is None or "diverged" in before.details:
        return before is not None
    scored = {(r.task, r.evaluation_sha256) for r in records if r.weights_sha256 == before.details["weights_sha256"]}
    return scored >= {(task, digest(own)) for task, own in evaluations(tasks, planned)}


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
