"""Scales and evaluation protocols for different checkpoints."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transfer_cases import make_checkpoint

from intl_bench import protocol, runs
from intl_bench.ablations import cells
from intl_bench.core import config as configs
from intl_bench.core import machine
from intl_bench.core.datasets import DATASETS
from intl_bench.core.errors import InputError
from pretrain.checkpoint import Checkpoint, Origin, Preprocessing
from pretrain.recipe import Inputs, Recipe, load_recipe

TWO, MULTI = "imagenet_r50_intl", "imagenet_r50_intl_multicrop_800ep"
BIRDS = ["data.kind=imagefolder", "data.root=birds"]


def trained(recipe: Recipe | str, **changes: Any) -> Checkpoint:
    """Return the checkpoint of a finished run of a recipe on the images of the paper."""
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    assert recipe.data.mean is not None
    assert recipe.data.std is not None
    values: dict[str, Any] = {
        "origin": Origin.TRAINED,
        "architecture": recipe.backbone,
        "preprocessing": Preprocessing(mean=recipe.data.mean, std=recipe.data.std),
        "recipe": recipe,
        "epoch": recipe.epochs,
        "details": {"images": DATASETS[recipe.data.dataset].train},
        "seed": recipe.seed,
    }
    return dataclasses.replace(make_checkpoint(), **values | changes)


def foreign(**changes: Any) -> Checkpoint:
    return dataclasses.replace(make_checkpoint(), source="moco", **changes)


def scale(checkpoint: Checkpoint, task: str, *overrides: str, config: str | None = None, **counts: int) -> str:
    """Return the scale of a result.

    Args:
        counts: numbers of images if they are not those of the whole data set.
    """
    plan = runs.TaskRun(task=task, checkpoint=checkpoint, overrides=overrides, config=config)
    _, _, resolved = runs.prepare(plan)
    facts = DATASETS[resolved.data.dataset]
    listed = {1: 12_811, 10: 128_116}.get(getattr(resolved, "train_percent", 0), facts.train)
    details = {"train_images": listed, "test_images": facts.test} | counts
    return protocol.scale(task, checkpoint, resolved, details, random=False)


@pytest.mark.parametrize(
    ("recipe", "task", "overrides", "expected"),
    [
        (MULTI, "linear", [], "paper"),
        (MULTI, "linear", ["lr=0.2"], "reduced"),
        (TWO, "linear", [], "paper"),
        (TWO, "linear", ["lr=0.2"], "paper"),
        (TWO, "linear", ["lr=0.4"], "reduced"),
        (TWO, "linear", ["workers=1", "device=cpu", "data.root=/elsewhere"], "paper"),
        (MULTI, "finetune", [], "paper"),
        (MULTI, "finetune", ["train_percent=10", "file_list=mine.txt"], "paper"),
        (MULTI, "finetune", ["train_percent=10", "backbone_lr=0.006"], "reduced"),
        (TWO, "finetune", [], "paper"),
        (TWO, "finetune", ["train_percent=10"], "paper"),
        (TWO, "finetune", ["backbone_lr=0.006"], "paper"),
        (TWO, "finetune", ["backbone_lr=0.004"], "reduced"),
        ("cifar10_r18_intl", "knn", [], "paper"),
        ("cifar10_r18_intl", "knn", ["k=3"], "reduced"),
        ("cifar10_r18_intl", "linear", ["weight_decay=0"], "reduced"),
        ("cifar10_r18_intl", "linear", ["data.std=[0.2,0.2,0.2]"], "reduced"),
        ("cifar100_r18_intl", "linear", [], "paper"),
        ("cifar100_r18_intl", "linear", ["data.mean=[0.5071,0.4865,0.4409]"], "reduced"),
        ("cifar10_r18_cw_rgp", "knn", [], "adapted"),
        ("cifar10_r18_iternorm", "linear", [], "adapted"),
        ("cifar10_r18_cw_rgp", "knn", ["k=3"], "reduced"),
        ("imagenet_r50_dino", "linear", [], "adapted"),
        ("imagenet_r50_intl", "coco", ["data.root=x"], "paper"),
        ("imagenet_r50_intl", "coco", ["engine=builtin", "visualize=3", "eval_every=10"], "paper"),
        ("imagenet_r50_intl", "coco", ["iterations=100", "milestones=[50]"], "reduced"),
        ("imagenet_r50_intl", "coco", ["model.pixel_std=[1,1,1]"], "reduced"),
        ("imagenet_r50_intl", "voc", ["data.root=x"], "paper"),
    ],
)
def test_scale_depends_on_checkpoint_task_and_overrides(
    recipe: str, task: str, overrides: list[str], expected: str
) -> None:
    assert scale(trained(recipe), task, *overrides) == expected


@pytest.mark.parametrize(
    ("recipe", "task", "config"),
    [
        (MULTI, "linear", "default"),
        (MULTI, "linear", "imagefolder"),
        ("cifar10_r18_intl", "linear", "default"),
        ("cifar10_r18_intl", "knn", "dino"),
        ("cifar100_r18_intl", "knn", "solo_learn"),
    ],
)
def test_other_protocols_are_not_of_paper_scale(recipe: str, task: str, config: str) -> None:
    expected = "paper" if (task, config) == ("linear", "default") and recipe == "cifar10_r18_intl" else "reduced"
    assert scale(trained(recipe), task, config=config) == expected


def test_a_recipe_on_another_data_set_is_of_reduced_scale() -> None:
    recipe = load_recipe(TWO, ["data.name=imagenet100", "data.root=x"])
    assert recipe.scale == "reduced"
    assert scale(trained(recipe), "linear") == "reduced"


def test_a_file_overrides_its_base(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {configs.CONFIGS / 'linear' / 'imagenet.yaml'}\nlr: 0.1\n")
    _, _, config = runs.prepare(runs.TaskRun(task="linear", checkpoint=trained(TWO), config=str(own)))
    assert config.lr == 0.1


def test_paper_scale_needs_all_images_and_epochs() -> None:
    recipe = load_recipe("cifar10_r18_intl")
    assert scale(trained(recipe), "knn", train_images=5170) == "reduced"
    assert scale(trained(recipe), "knn", test_images=1017) == "reduced"
    assert scale(trained(recipe, details={"images": 5170}), "knn") == "reduced"
    assert scale(trained(recipe, progress="step 9 of 10"), "knn") == "reduced"
    assert scale(trained(recipe, inputs=Inputs(data="ab", initial_weights="cd")), "knn") == "reduced"
    assert scale(trained(dataclasses.replace(recipe, seed=5, name="other", workers=1)), "knn") == "paper"
    assert scale(trained(dataclasses.replace(recipe, weight_decay=0.5)), "knn") == "reduced"


def test_checkpoints_of_other_projects_may_use_each_published_protocol() -> None:
    words = ["data.kind=imagefolder", "data.name=imagenet", "data.root=x"]
    for lr, expected in (("0.2", "paper"), ("0.4", "paper"), ("0.3", "reduced")):
        assert scale(foreign(), "linear", *words, f"lr={lr}") == expected
    for lr, percent in itertools.product(("0.004", "0.006"), ("1", "10")):
        assert scale(foreign(), "finetune", *words, f"backbone_lr={lr}", f"train_percent={percent}") == "paper"


def test_scale_of_a_file_with_a_base_depends_on_its_changes(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    base = f"base: {configs.CONFIGS / 'pretrain' / 'imagenet_r50_intl.yaml'}\nname: own\n"
    for text, expected in (
        ("", "paper"),
        ("weight_decay: 0.00001\nworkers: 3\ndata: {root: elsewhere}\n", "paper"),
        ("weight_decay: 0.1\n", "reduced"),
        ("views:\n  - {size: 224}\n  - {size: 224}\n", "reduced"),
        ("epochs: 100\n", "reduced"),
        ("scale: demo\n", "reduced"),
        ("scale: reduced\n", "reduced"),
    ):
        own.write_text(base + text)
        assert load_recipe(str(own)).scale == expected
    own.write_text(base)
    assert load_recipe(str(own), ["base_lr=1"]).scale == "reduced"
    assert load_recipe(str(own), ["init=a.pt"]).scale == "reduced"
    own.write_text(f"base: {configs.CONFIGS / 'pretrain' / 'cifar10_r18_cw_rgp.yaml'}\nscale: paper\n")
    assert load_recipe(str(own)).scale == "adapted"


@pytest.mark.slow
def test_cells_of_packaged_grids_have_paper_or_adapted_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = cells.recipes, dict[tuple[str, ...], list[Recipe]]()

    def make_once(ablation: cells.Ablation, seed: int, overrides: Sequence[str] = ()) -> list[Recipe]:
        """Each scale looks at all recipes of the grid, which take a second to make."""
        key = (ablation.name, str(seed), *overrides)
        if key not in made:
            made[key] = make(ablation, seed, overrides)
        return made[key]

    monkeypatch.setattr(cells, "recipes", make_once)
    for name, adapted in (("batch_size", False), ("power", True)):
        for recipe in cells.recipes(cells.load(name), 3):
            assert protocol.pretraining_scale(trained(recipe)) == ("adapted" if adapted else "paper")
            changed = dataclasses.replace(recipe, momentum=0.5)
            assert protocol.pretraining_scale(trained(changed)) == "reduced"
    (first, *_) = cells.recipes(cells.load("batch_size"), 0, ["weight_decay=1"])
    assert first.scale == "reduced"
    (first, *_) = cells.recipes(cells.load("batch_size"), 0, ["data.root=x", "workers=2", "data.name=imagenet"])
    assert first.scale == "paper"
    assert first.name == "batch_size-batch_size_32"


def normalization_of(recipe: str, task: str, *overrides: str, config: str | None = None) -> tuple[Any, ...]:
    """Return the mean and the standard deviation that a task uses for a checkpoint of a recipe."""
    _, _, resolved = runs.prepare(
        runs.TaskRun(task=task, checkpoint=trained(recipe), overrides=overrides, config=config)
    )
    return tuple(resolved.data.mean), tuple(resolved.data.std)


@pytest.mark.parametrize("task", ["knn", "linear"])
def test_the_authors_evaluate_cifar100_with_cifar10s_statistics(task: str) -> None:
    assert normalization_of("cifar100_r18_intl", task) == ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
    # These recipes were trained with other statistics, which the evaluation keeps.
    cw_rgp = load_recipe("cifar100_r18_cw_rgp").data
    assert normalization_of("cifar100_r18_cw_rgp", task) == (cw_rgp.mean, cw_rgp.std)
    shuffled = load_recipe("cifar10_r18_shuffled_dbn").data
    assert normalization_of("cifar10_r18_shuffled_dbn", task) == (shuffled.mean, shuffled.std)
    # An override has priority.
    assert normalization_of("cifar100_r18_intl", task, "data.mean=[0,0,0]")[0] == (0, 0, 0)


def test_other_data_sets_are_normalized_with_the_statistics_of_the_checkpoint() -> None:
    words = ["data.kind=imagefolder", "data.root=photos"]
    assert normalization_of("cifar10_r18_intl", "knn", *words) == normalization_of("cifar10_r18_intl", "knn")


def test_an_unknown_section_for_checkpoints_is_an_error(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("for_checkpoints:\n  three_views: {k: 3}\n")
    with pytest.raises(InputError, match=r"for_checkpoints\.three_views.*two_views"):
        runs.prepare(runs.TaskRun(task="knn", checkpoint=trained("cifar10_r18_intl"), config=str(own)))


@pytest.mark.parametrize("task", ["linear", "knn", "finetune"])
def test_a_folder_of_images_is_scored_at_the_size_of_the_views(task: str, tmp_path: Path) -> None:
    def sizes(recipe: Recipe, *overrides: str, config: str | None = None) -> tuple[int, int]:
        own, words = dataclasses.replace(trained(TWO), recipe=recipe), [*BIRDS, *overrides]
        plan = runs.TaskRun(task=task, checkpoint=own, overrides=words, config=config)
        made = runs.prepare(plan)[2]
        return made.resize, made.crop

    small = load_recipe(TWO, ["views=[{size: 64}, {size: 48}]", *BIRDS, "data.name=birds"])
    assert sizes(small) == (73, 64)  # 256 / 224 of 64
    assert sizes(small, "crop=96") == (73, 96)
    assert sizes(load_recipe(TWO)) == sizes(load_recipe(MULTI)) == (256, 224)
    assert sizes(small, "data.name=imagenet") == (256, 224)  # a published protocol
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {configs.CONFIGS / task / 'imagefolder.yaml'}\ncrop: 160\n")
    assert sizes(small, config=str(own)) == (73, 160)
    stranger = runs.TaskRun(task=task, checkpoint=foreign(), overrides=BIRDS)
    assert runs.prepare(stranger)[2].crop == 224  # the size of its views is not known
    own.write_text("for_checkpoints: {view_size: large}\n")
    with pytest.raises(InputError, match=r"for_checkpoints\.view_size: found 'large'; expected sizes"):
        sizes(small, config=str(own))


def test_workers_are_at_most_one_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 3)

    def workers(*overrides: str) -> int:
        return int(runs.prepare(runs.TaskRun(task="knn", checkpoint=trained(TWO), overrides=overrides))[2].workers)

    assert (workers(), workers("workers=6"), workers("workers=0")) == (3, 6, 0)
    assert [load_recipe(TWO, words).workers for words in ([], ["workers=6"])] == [3, 6]
    assert load_recipe("demo").workers == 0  # the recipe asks for fewer
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (workers(), load_recipe(TWO).workers) == (1, 1)
