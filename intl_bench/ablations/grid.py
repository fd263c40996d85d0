"""`intl-bench ablation NAME`: a grid of pre-trainings and seeds, each scored and measured, resumable cell by cell.

What a cell ended in is a record of the task "pretrain" beside those of its scores: spectra of its embedding, or that it
diverged. A cell with all its records is skipped, whatever has become of its checkpoint.
"""

import dataclasses
import importlib
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from intl_bench import machine, runs, spectra, tables
from intl_bench.ablations.figures import FIGURES, Point
from intl_bench.core import config as configs
from intl_bench.core import files
from intl_bench.core.distributed import Process
from intl_bench.core.errors import DivergedError
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.tables.ablation import TASK
from pretrain import diagnose, methods, train
from pretrain.checkpoint import Checkpoint
from pretrain.data import open_source
from pretrain.recipe import Recipe, identity, load_recipe
from transfer import TASKS
from transfer.convert import read
from transfer.features import RANDOM

# Experiments without data or pre-training: modules with a `run(folder)`, which writes NAME.png, .json and perhaps .md.
EXPERIMENTS = {name: f"intl_bench.ablations.{name}" for name in ("toy", "free_embedding")}
# What a user may override without changing what is measured.
_NEUTRAL = ("data.root=", "device=", "workers=", "save_minutes=", "log_every=", "spectrum_every=")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """A grid; see configs/ablation/.

    Attributes:
        name: also of its folder in results/ablations/.
        recipe: what each cell's pre-training starts from.
        overrides: those of all cells, key=value.
        cells: of each the words that `intl-bench pretrain` would be told: overrides, and perhaps another recipe.
        seeds: how many, unless the command line says otherwise.
        tasks: how each cell is scored.
        random: whether the backbone is scored as initialised, too.
        figure: which of `figures.FIGURES` is drawn, if any.
        also: which of `EXPERIMENTS`, that need no data, is run beside it, if any.
        scale: of its records; with overrides from the command line it is "reduced".
    """

    name: str
    recipe: str = "cifar10_r18_intl"
    overrides: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    seeds: int = 3
    tasks: tuple[str, ...] = ("linear", "knn")
    random: bool = False
    figure: str | None = None
    also: str | None = None
    scale: str = "reduced"

    def __post_init__(self) -> None:
        if not (self.cells or self.also):
            raise ValueError("cells: expected at least one")
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}: expected at least 1")
        choices: list[tuple[str, str | None, Collection[str]]] = [("tasks", name, TASKS) for name in self.tasks]
        choices += [("figure", self.figure, FIGURES), ("also", self.also, EXPERIMENTS)]
        for what, name, known in choices:
            if name is not None and name not in known:
                raise ValueError(f"{what}: {name!r} is not one of {', '.join(known)}")


def load(name: str) -> Ablation:
    """The grid of a file, or of a packaged one in configs/ablation/, whose name may be spelt with hyphens.

    Raises:
        InputError: no such file, an unknown key, a wrong type or value.
    """
    return configs.load(Ablation, name if Path(name).suffix else name.replace("-", "_"), "ablation")


def recipes(ablation: Ablation, seed: int, overrides: Sequence[str] = ()) -> list[Recipe]:
    """The cells' recipes for one seed, in order; each run has a folder of its own.

    Raises:
        InputError: a cell names no recipe, or has an unknown key or a wrong value.
    """
    changes_grid = [word for word in overrides if not word.startswith(_NEUTRAL)]
    scale = "reduced" if changes_grid else ablation.scale
    made = []
    for cell in ablation.cells:
        other = [word for word in cell.split() if "=" not in word]
        own = [word for word in cell.split() if "=" in word]
        slug = re.sub(r"[^A-Za-z0-9.]+", "_", "_".join([*other, *own, *changes_grid]))
        changes = [*ablation.overrides, *own, *overrides, f"seed={seed}", f"name={ablation.name}-{slug}"]
        recipe = load_recipe(other[0] if other else ablation.recipe, changes)
        made.append(dataclasses.replace(recipe, scale=scale))
    return made


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
            train.build(recipe, nowhere, len(source), len(source.class_names))


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
        for recipe in recipes(ablation, seed, overrides):
            _run_cell(recipe, ablation.tasks, store, results, fresh=fresh)
            if ablation.random:
                _score_random(recipe, ablation.tasks, store, results)


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
    wanted = [{**identity(recipe), "seed": None} for recipe in cells]
    records = RecordStore(results / "records").load()
    ended = [r for r in records if r.task == TASK and {**r.config, "seed": None} in wanted]
    checkpoints = {cell.details["checkpoint_sha256"] for cell in ended}
    scores = [r for r in records if r.checkpoint_sha256 in checkpoints or r.method == RANDOM]
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
        digest = cell.details["checkpoint_sha256"]
        scores = [r.metrics for r in records if digest and r.checkpoint_sha256 == digest]
        metrics = {name: value for score in [cell.metrics, *scores] for name, value in score.items()}
        found.append(
            Point(
                method=cell.method, seed=cell.pretrain_seed, config=cell.config, metrics=metrics, details=cell.details
            )
        )
    return found


def _score_random(recipe: Recipe, tasks: Sequence[str], store: RecordStore, results: Path) -> None:
    done = {(r.task, r.transfer_seed, r.backbone) for r in store.load() if r.method == RANDOM}
    for task in tasks:
        if recipe.checkpoint.exists() and (task, recipe.seed, recipe.backbone.name) not in done:
            plan = runs.Plan(
                task=task, checkpoint=recipe.checkpoint, init="random", seeds=[recipe.seed], results=results
            )
            runs.run(plan)


def _run_cell(recipe: Recipe, tasks: Sequence[str], store: RecordStore, results: Path, *, fresh: bool) -> None:
    records = store.load()
    # Told by the recipe, whose digest the record has: what else is in a record takes time to find out.
    cell = TASK, configs.digest(identity(recipe)), recipe.seed
    before = next((r for r in records if (r.task, r.config_sha256, r.pretrain_seed) == cell), None)
    if before is not None and not fresh and _is_complete(before, tasks, records):
        print(f"{recipe.name} seed {recipe.seed}: already there", flush=True)
        return
    try:
        path = train.run(recipe, fresh=fresh)
    except DivergedError as error:
        print(f"{recipe.name} seed {recipe.seed}: {error}", flush=True)
        record = _record(recipe, None, {"diverged": 100.0}, {"diverged": str(error)})
    else:
        for task in tasks:
            runs.run(runs.Plan(task=task, checkpoint=path, seeds=[recipe.seed], results=results, fresh=fresh))
        metrics, details = spectra.record_values(diagnose.measure(path))
        record = _record(recipe, read(path), {"diverged": 0.0, **metrics}, details)
    if before is not None:
        store.remove(before.key)
    store.append(record)


def _is_complete(cell: ResultRecord, tasks: Sequence[str], records: Sequence[ResultRecord]) -> bool:
    scored = {r.task for r in records if r.checkpoint_sha256 == cell.details["checkpoint_sha256"]}
    return "diverged" in cell.details or scored >= set(tasks)


def _record(
    recipe: Recipe, checkpoint: Checkpoint | None, metrics: dict[str, float], details: dict[str, Any]
) -> ResultRecord:
    """How a cell has ended; without a checkpoint if it diverged."""
    if checkpoint is None:
        checkpoint = Checkpoint(
            path=recipe.checkpoint,
            sha256="",
            backbone={},
            config=configs.to_dict(recipe),
            method=methods.find(recipe.method["name"]).DISPLAY,
            epoch=recipe.epochs,
            details={"images": len(open_source(recipe.data, "train"))},
        )
    return ResultRecord(
        task=TASK,
        method=checkpoint.method,
        dataset=recipe.data.dataset,
        backbone=recipe.backbone.name,
        metrics=metrics,
        details={"checkpoint_sha256": checkpoint.sha256, "pretrain": checkpoint.details, **details},
        pretrain_seed=recipe.seed,
        transfer_seed=recipe.seed,
        protocol=runs.pretrain_stamp(checkpoint),
        scale=runs.pretrain_scale(checkpoint),
        checkpoint_sha256=None,  # the same cell of another machine is the same cell
        config=identity(recipe),
        config_sha256=configs.digest(identity(recipe)),
        code=machine.code(),
        libraries=machine.libraries(),
        hardware=machine.hardware(),
        wall_time_s=checkpoint.details.get("seconds", 0.0),
        peak_memory_mib=round(machine.peak_memory_mib(), 1),
        created=runs.now(),
    )
