"""The grids of configs/ablation/: which pre-trainings are the cells of each."""

import dataclasses
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from intl_bench.ablations.figures import FIGURES
from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from intl_bench.core.identity import is_runtime_only
from pretrain.recipe import Recipe, decides_the_same, load_recipe
from transfer import TASKS

# Experiments without data or pre-training: modules with a `run(folder)`, which writes NAME.png, .json and perhaps .md.
EXPERIMENTS = {name: f"intl_bench.ablations.{name}" for name in ("toy", "free_embedding")}


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
        random: whether the backbone is scored as initialized, too.
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
    """The grid of a file, or of a packaged one in configs/ablation/, whose name may be spelled with hyphens.

    Raises:
        InputError: no such file, an unknown key, a wrong type or value.
    """
    return configs.load(Ablation, name if Path(name).suffix else name.replace("-", "_"), "ablation")


def recipes(ablation: Ablation, seed: int, overrides: Sequence[str] = ()) -> list[Recipe]:
    """The cells' recipes for one seed, in order; each run has a folder of its own.

    Raises:
        InputError: a cell names no recipe, or has an unknown key or a wrong value.
    """
    changes_grid = [word for word in overrides if not is_runtime_only(Recipe, word.partition("=")[0])]
    scale = "reduced" if changes_grid else ablation.scale
    made = []
    for cell in ablation.cells:
        other = [word for word in cell.split() if "=" not in word]
        name = other[0] if other else ablation.recipe
        own = [word for word in cell.split() if "=" in word]
        slug = re.sub(r"[^A-Za-z0-9.]+", "_", "_".join([*other, *own, *changes_grid]))
        changes = [*ablation.overrides, *own, *overrides, f"seed={seed}", f"name={ablation.name}-{slug}"]
        recipe = load_recipe(name, changes)
        if recipe.init is not None:
            raise InputError(f"init={recipe.init}: expected none in an ablation, whose cells start at random")
        # What a published recipe lacks, its cells lack too.
        adapted = scale == "paper" and load_recipe(name).scale == "adapted"
        made.append(dataclasses.replace(recipe, scale="adapted" if adapted else scale))
    return made


def is_cell(recipe: Recipe) -> bool:
    """Whether a recipe decides the same as a cell of the packaged grid that its name begins with."""
    for path in (configs.CONFIGS / "ablation").glob("*.yaml"):
        if recipe.name.startswith(f"{path.stem}-"):
            cells = recipes(load(str(path)), recipe.seed)
            if any(decides_the_same(cell, recipe) for cell in cells):
                return True
    return False
