"""The grids of configs/ablation/. Each cell of a grid is a pre-training."""

import dataclasses
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from intl_bench.ablations.figures import DRAWN, FIGURES
from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from intl_bench.core.identity import SCALES, digest, identity, is_runtime_only
from intl_bench.core.inputs import shorten
from intl_bench.core.names import fit_folder_name, require_folder_name
from intl_bench.core.ranges import Checked, Count
from pretrain.recipe import Recipe, decides_the_same, load_recipe
from transfer import TASKS

# Experiments without data and pre-training. `run(folder)` of their modules writes NAME.png, .json and possibly .md.
EXPERIMENTS = {name: f"intl_bench.ablations.{name}" for name in ("toy", "free_embedding")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation(Checked):
    """A grid; see configs/ablation/.

    Attributes:
        name: of the grid and of its folder in results/ablations/.
        recipe: the recipe of each cell.
        overrides: key=value, for all cells.
        cells: the arguments of `intl-bench pretrain` for each cell as typed: overrides, and possibly another recipe.
        words: {word: override} of short words for long overrides, such as a list of views, to use in `cells`.
        seeds: number of seeds, unless the command line gives them.
        tasks: the commands that score each cell, without `intl-bench` and CHECKPOINT: a task, and possibly `--config
            NAME` and overrides, such as "finetune --config default train_percent=10".
        random: whether the backbone is also scored at random initialization.
        figure: one of `figures.FIGURES` to draw, or None.
        also: one of `EXPERIMENTS`, which need no data, to run too, or None.
        scale: of the records. Overrides on the command line make it "reduced".
    """

    name: str
    recipe: str = "cifar10_r18_intl"
    overrides: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    words: dict[str, str] = dataclasses.field(default_factory=dict)
    seeds: Count = 3
    tasks: tuple[str, ...] = ("linear", "knn")
    random: bool = False
    figure: str | None = None
    also: str | None = None
    scale: str = "reduced"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_folder_name(self.name, "name")
        for what in ("overrides", "cells", "tasks"):
            for item in getattr(self, what):
                if not isinstance(item, str):
                    raise ValueError(f"{what}: found {shorten(item)}; expected text such as epochs=100")
        for cell in self.cells:
            split_words(cell, "cells")
        for word, change in self.words.items():
            if "=" in word or not isinstance(change, str) or "=" not in change:
                raise ValueError(f"words.{word}: found {shorten(change)}; expected an override such as epochs=100")
        if self.scale not in SCALES:
            raise ValueError(f"scale={self.scale!r}: expected one of {', '.join(SCALES)}")
        if not (self.cells or self.also):
            raise ValueError("cells: there is none; expected at least one")
        scored = [split_scoring(text)[0] for text in self.tasks]
        choices: list[tuple[str, str | None, Collection[str]]] = [("tasks", task, TASKS) for task in scored]
        choices += [("figure", self.figure, FIGURES), ("also", self.also, EXPERIMENTS)]
        if self.figure is not None and any(scored.count(task) > 1 for task in DRAWN):
            raise ValueError(f"tasks: figure={self.figure} shows {' and '.join(DRAWN)}; expected each at most once")
        for what, name, known in choices:
            if name is not None and name not in known:
                raise ValueError(f"{what}: {name!r} is not one of {', '.join(known)}")


def split_words(text: str, what: str) -> list[str]:
    """Split a text into words as a shell does.

    Raises:
        ValueError: a quotation has no end. The message begins with `what`, the field that has the text.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{what}: {shorten(text)}: {error}; close the quotation, or write a backslash twice") from None


def split_scoring(text: str, what: str = "tasks") -> tuple[str, str | None, list[str]]:
    """Return the task, the name after --config, and the overrides of an entry of `tasks`.

    Raises:
        ValueError: there is another word, or a quotation without an end. The message begins with `what`.
    """
    task, *words = split_words(text, what) or [""]
    config = None
    if words[:1] == ["--config"]:
        _, config, *words = *words, ""
        words = words[:-1]
    if wrong := [word for word in words if "=" not in word.lstrip("=")]:
        raise ValueError(f"{what}: {text!r}: found {wrong[0]}; expected TASK [--config NAME] [key=value ...]")
    return task, config, words


def load(name: str) -> Ablation:
    """Load a grid: a path, or a name in configs/ablation/, where hyphens and underscores are equal.

    Raises:
        InputError: there is no such file, or a key is unknown, or a type or value is wrong.
    """
    return configs.load(Ablation, name if Path(name).suffix else name.replace("-", "_"), "ablation")


def recipes(ablation: Ablation, seed: int, overrides: Sequence[str] = ()) -> list[Recipe]:
    """Return the recipes of the cells for one seed, in order. Each run has its own folder.

    Raises:
        InputError: the recipe of a cell does not exist, or a key is unknown, or a value is wrong.
    """
    for word in overrides:
        if word.startswith(("seed=", "name=")):
            raise InputError(f"{word}: a grid names its runs and seeds itself; choose seeds with --seeds")
    changes_grid = [word for word in overrides if not is_runtime_only(Recipe, word.partition("=")[0])]
    scale = "reduced" if changes_grid else ablation.scale
    made: list[Recipe] = []
    trainings: dict[object, str] = {}
    for cell in ablation.cells:
        words = split_words(cell, "cells")
        own = [word for word in words if re.match(r"[\w.]*=", word) or word in ablation.words]
        other = [word for word in words if word not in own]
        name = other[0] if other else ablation.recipe
        slug = re.sub(r"[^A-Za-z0-9.]+", "_", "_".join([*other, *own, *changes_grid]))
        own = [ablation.words.get(word, word) for word in own]
        run = fit_folder_name(f"{ablation.name}-{slug}")
        changes = [*ablation.overrides, *own, *overrides, f"seed={seed}", f"name={run}"]
        recipe = load_recipe(name, changes)
        if recipe.init is not None:
            raise InputError(
                f"init={recipe.init}: expected no init, because the cells of an ablation start at random; leave it out"
            )
        # A cell of an adapted recipe is adapted too.
        adapted = scale == "paper" and load_recipe(name).scale == "adapted"
        if any(recipe.name == before.name for before in made):
            raise InputError(f"cells: {cell!r} has the name of another cell, {recipe.name}; expected different cells")
        twin = trainings.setdefault((recipe.data.dataset, digest(identity(recipe))), cell)
        if twin is not cell:
            raise InputError(f"{twin} and {cell}: are the same training; expected different ones")
        made.append(dataclasses.replace(recipe, scale="adapted" if adapted else scale))
    return made


def is_cell(recipe: Recipe) -> bool:
    """Return whether a recipe has the settings of a cell of the packaged grid that its name begins with."""
    for path in (configs.CONFIGS / "ablation").glob("*.yaml"):
        if recipe.name.startswith(f"{path.stem}-"):
            cells = recipes(load(str(path)), recipe.seed)
            if any(decides_the_same(cell, recipe) for cell in cells):
                return True
    return False
