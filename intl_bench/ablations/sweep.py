"""`intl-bench sweep RECIPE ...`: the same search of settings for every method, without the test images.

The search is a grid (`intl_bench.ablations.grid`) whose cells hold out a part of the training images, which scores
them. The chosen setting of each recipe is then pre-trained on all training images, and scored once on the test images.
"""

import dataclasses
import math
import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intl_bench.ablations import cells, grid, scoring
from intl_bench.core.errors import DivergedError, InputError
from intl_bench.core.identity import digest, is_runtime_only
from intl_bench.core.names import require_folder_name
from intl_bench.core.ranges import field_type, item_of
from intl_bench.core.seeding import generator
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.tables.ablation import TASK as ENDED
from pretrain.checkpoint import Checkpoint
from pretrain.recipe import Recipe
from transfer import find_task
from transfer.selection import LAST, TEST, VAL

SELECTIONS = (VAL, TEST)
_WHOLE = ("data.holdout=null",)  # also if a recipe holds images out
SCORES = {"linear": "top1", "knn": "knn5"}  # the tasks that can choose, and the metric of each
_LARGEST = 10**6  # settings in a space
_AGAIN = "run the same command again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search.

    Attributes:
        name: of the folder of its results, and of its runs.
        recipes: a recipe for each method.
        space: the values of each setting as they are typed, by dotted key.
        overrides: key=value, for all runs.
        budget: number of pre-trainings for each recipe: settings of the space, drawn if it has more. None tries all.
        select: "val", or "best-on-test" as in papers that choose on the test images.
        score: the task that chooses, one of `SCORES`, possibly with its settings as in `Ablation.tasks`.
        share: of the training images that "val" holds out; see `data.holdout`.
        draw_seed: of the draw of settings.
        seeds: of the pre-trainings with the chosen setting. The search uses the first one.

    The names of its runs have a digest of its overrides and of what it holds out. So sweeps of one name do not share a
    folder of a run.

    Raises:
        InputError: a value is impossible.
    """

    name: str
    recipes: tuple[str, ...]
    space: Mapping[str, tuple[str, ...]]
    overrides: tuple[str, ...] = ()
    budget: int | None = None
    select: str = VAL
    score: str = "linear"
    share: float = 0.1
    draw_seed: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        try:
            require_folder_name(self.name, "--name")
            task, _, _ = cells.split_scoring(self.score, "--score")
        except ValueError as error:
            raise InputError(str(error)) from error
        if len(set(self.recipes)) < len(self.recipes):
            raise InputError(f"sweep: {' '.join(self.recipes)} has a recipe twice; expected different recipes")
        if not self.space:
            without_brackets = [word for word in self.overrides if "," in word]
            found = f" in {without_brackets[0]}" if without_brackets else ""
            raise InputError(f'sweep: no list of values{found}; expected at least one, such as "base_lr=[0.1,0.3,1]"')
        for key, values in self.space.items():
            if is_runtime_only(Recipe, key) or key in ("seed", "init") or key.startswith("data."):
                raise InputError(f"{key}: cannot be searched; expected settings of the training, such as base_lr")
            if key == "method.name":
                raise InputError(
                    "method.name: cannot be searched; name a recipe for each method, such as RECIPE RECIPE"
                )
            if len(set(values)) < len(values) or "" in values:
                raise InputError(f"{key}=[{','.join(values)}]: expected different values")
        for word in self.overrides:
            if word.startswith(("seed=", "name=", "data.holdout")):
                raise InputError(f"{word}: a sweep sets it itself; see --seeds, --name and --share")
        if task not in SCORES:
            raise InputError(f"--score {self.score}: expected {' or '.join(SCORES)}, possibly with its settings")
        if self.budget is not None and self.budget < 1:
            raise InputError(f"--budget {self.budget}: expected at least 1 pre-training for each recipe")
        if not 0 < self.share < 1:
            raise InputError(f"--share {self.share}: expected more than 0 and less than 1")
        if self.size > _LARGEST:
            raise InputError(f"sweep: the space has {self.size:,} settings; expected at most {_LARGEST:,}")

    @property
    def task(self) -> str:
        """The name of the task that chooses."""
        return cells.split_scoring(self.score)[0]

    @property
    def chosen_by(self) -> str:
        """The score that chooses, without settings such as the device, which change no result."""
        task, config, words = cells.split_scoring(self.score)
        kept = [word for word in words if not is_runtime_only(find_task(task).config, word.partition("=")[0])]
        return shlex.join([task, *(["--config", config] if config else []), *kept])

    @property
    def size(self) -> int:
        """Number of settings in the space."""
        return math.prod(map(len, self.space.values()))

    @property
    def tries(self) -> int:
        """Number of settings that are tried."""
        return self.size if self.budget is None else min(self.budget, self.size)

    @property
    def settings(self) -> list[tuple[str, ...]]:
        """The settings to try, the same ones for every recipe, as overrides.

        They are all settings of the space, or as many as the budget, drawn without repetition.
        """
        chosen = np.arange(self.size)
        if self.tries < self.size:
            chosen = np.sort(generator(self.draw_seed, "sweep").choice(self.size, self.tries, replace=False))
        places = zip(*np.unravel_index(chosen, [len(values) for values in self.space.values()]), strict=True)
        return [
            tuple(f"{key}={values[i]}" for (key, values), i in zip(self.space.items(), place, strict=True))
            for place in places
        ]

    @property
    def search(self) -> cells.Ablation:
        """The grid of the search: for each recipe all settings, in the order of `settings`."""
        tried = [(recipe, *setting) for recipe in self.recipes for setting in self.settings]
        if self.select == TEST:
            return self._grid(self.name, tried, _WHOLE)
        return self._grid(f"{self.name}-search", tried, (f"data.holdout={self.share}", "data.holdout_seed=0"))

    def searched(self) -> list[Recipe]:
        """Return the pre-trainings of the search."""
        return cells.recipes(self.search, self.seeds[0])

    def final(self, chosen: Mapping[str, Sequence[str]]) -> cells.Ablation:
        """Return the grid of the chosen setting of each recipe, on all training images."""
        return self._grid(self.name, [(recipe, *chosen[recipe]) for recipe in self.recipes], _WHOLE)

    def final_cells(self, chosen: Mapping[str, Sequence[str]]) -> list[Recipe]:
        """Return the pre-trainings with the chosen settings: all recipes of the first seed, then of the next."""
        return [cell for seed in self.seeds for cell in cells.recipes(self.final(chosen), seed)]

    def first_choice(self) -> list[Recipe]:
        """Return the pre-trainings of the first seed as if the first setting was chosen."""
        return self.final_cells(dict.fromkeys(self.recipes, self.settings[0]))[: len(self.recipes)]

    def _grid(self, name: str, tried: Sequence[Sequence[str]], held: Sequence[str]) -> cells.Ablation:
        overrides = (*self.overrides, *held)
        decisive = [word for word in overrides if not is_runtime_only(Recipe, word.partition("=")[0])]
        return cells.Ablation(
            name=f"{name}-{digest({'overrides': decisive})[:8]}",
            cells=tuple(map(shlex.join, tried)),
            overrides=overrides,
            # The neighbors take seconds. A linear classifier may take longer than the pre-training.
            tasks=(self.score,) if self.task == "knn" else (self.score, "knn"),
        )

    def search_results(self, results: Path) -> Path:
        """Return the folder of the records of the search. Those of "val" do not mix with scores of test images."""
        return results / "search" if self.select == VAL else results


def parse(words: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Separate lists of values to search, `base_lr=[0.1,0.3]`, from overrides, which lists of list settings are."""

    def is_list(key: str) -> bool:
        hint = field_type(Recipe, key)
        return any(item_of(one) is not None for one in (hint, *typing.get_args(hint)))  # also of a list or None

    space, overrides = dict[str, tuple[str, ...]](), list[str]()
    for word in words:
        key, _, text = word.partition("=")
        if text.startswith("[") and text.endswith("]") and not is_list(key):
            if key in space:
                raise InputError(f"{key}: has two lists of values; expected one")
            space[key] = tuple(part.strip() for part in text[1:-1].split(","))
        else:
            overrides.append(word)
    for word in overrides:
        if word.partition("=")[0] in space:
            raise InputError(f"{word}: this setting has a list of values too; expected one of the two")
    return space, overrides


def check_score(sweep: Sweep, searched: Iterable[Recipe]) -> None:
    """Refuse a score that chooses on its own, or is not of the images of the search, or has another metric.

    Raises:
        InputError: the configuration of the score says so, or it is wrong.
    """
    for recipe in searched:
        ((_, _, config),) = scoring.scorings(scoring.planned_checkpoint(recipe, opened=False), [sweep.score])
        own = dataclasses.replace(config.data, mean=recipe.data.mean, std=recipe.data.std)  # these are the backbone's
        wanted = {"selection": (config.selection, LAST), "k": (getattr(config, "k", 5), 5), "data": (own, recipe.data)}
        for name, (found, expected) in wanted.items():
            if found != expected:
                what = "other images" if name == "data" else f"{name}={found}"
                right = "those of the search" if name == "data" else f"{name}={expected}"
                raise InputError(f"--score {sweep.score}: has {what}; expected {right}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tried:
    """The score of one setting of one recipe.

    Attributes:
        score: None if the pre-training diverged.
        cell: the record of its end.
    """

    setting: tuple[str, ...]
    score: float | None
    cell: ResultRecord


def start_over(sweep: Sweep, results: Path) -> None:
    """Begin a `--fresh` of the search and of the runs with any of its settings; see `grid.start_over`."""
    searched = sweep.searched()
    choices = [sweep.final_cells(dict.fromkeys(sweep.recipes, setting)) for setting in sweep.settings]
    # With "best-on-test", some of these runs are runs of the search, whose folder is the same.
    grid.start_over([cell for final in choices for cell in final if cell not in searched], results)
    grid.start_over(searched, sweep.search_results(results))


def tried(sweep: Sweep, results: Path) -> dict[str, list[Tried]]:
    """Return the scores of the search by recipe, in the order of `Sweep.settings`.

    Raises:
        InputError: a cell of the search has no records yet.
    """
    records = RecordStore(sweep.search_results(results) / "records").load()
    found: dict[str, list[Tried]] = {recipe: [] for recipe in sweep.recipes}
    read = dict[str, dict[str, str]]()
    owners = [(recipe, setting) for recipe in sweep.recipes for setting in sweep.settings]
    for (name, setting), (planned, cell) in zip(owners, ends(sweep.searched(), records), strict=True):
        score = None
        if "diverged" not in cell.details:
            own = dict(scoring.evaluations(sweep.search.tasks, planned, read))
            score = scores_of(cell, own, records)[sweep.task].metrics[SCORES[sweep.task]]
        found[name].append(Tried(setting=setting, score=score, cell=cell))
    return found


def settings_of(chosen: Mapping[str, Tried]) -> dict[str, tuple[str, ...]]:
    """Return the chosen setting of each recipe."""
    return {recipe: option.setting for recipe, option in chosen.items()}


def choose(search: Mapping[str, Sequence[Tried]]) -> dict[str, Tried]:
    """Return the setting of each recipe with the highest score; the first of equal ones.

    Raises:
        DivergedError: every setting of a recipe diverged.
    """
    best = {}
    for recipe, options in search.items():
        scores = [option.score for option in options if option.score is not None]
        if not scores:
            raise DivergedError(f"{recipe}: every setting of the search diverged; search lower learning rates")
        best[recipe] = next(option for option in options if option.score == max(scores))
    return best


def ends(recipes: Sequence[Recipe], records: Sequence[ResultRecord]) -> list[tuple[Checkpoint, ResultRecord]]:
    """Return the planned checkpoint and the record of the end of each pre-training.

    Raises:
        InputError: one has no record yet, or the images cannot be read.
    """
    ended = {(r.pretraining_sha256, r.pretrain_seed): r for r in records if r.task == ENDED}
    found = []
    for planned in scoring.planned_checkpoints(recipes):
        record = ended.get((digest(planned.pretraining()), planned.seed))
        if record is None:
            raise InputError(f"{planned.path.parent}: not finished; {_AGAIN}")
        found.append((planned, record))
    return found


def scores_of(
    cell: ResultRecord, evaluations: Mapping[str, Mapping[str, Any]], records: Sequence[ResultRecord]
) -> dict[str, ResultRecord]:
    """Return the scores of a pre-training by task, of these evaluations and its own seed; none if it diverged.

    Raises:
        InputError: one has no record.
    """
    weights = cell.details["weights_sha256"]
    if not weights:
        return {}
    wanted = {(task, digest(own), weights, cell.pretrain_seed) for task, own in evaluations.items()}
    found = {r.task: r for r in records if (r.task, r.evaluation_sha256, r.weights_sha256, r.transfer_seed) in wanted}
    if missing := [task for task in evaluations if task not in found]:
        raise InputError(f"{cell.config['name']} seed {cell.pretrain_seed}: no score of {missing[0]}; {_AGAIN}")
    return found
