"""What a user installs: the wheel holds the recipes and tables, and works in an empty folder."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from intl_bench.core import config as configs
from pretrain.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
SIX = [224, 224, 192, 160, 128, 96]
RECIPES = sorted(path.stem for path in (ROOT / "configs" / "pretrain").glob("*.yaml"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("intl_bench-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-m", "intl_bench", *words], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_recipes_are_found_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "pretrain", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "imagenet_r50_intl, seed 0" in done.stdout
    assert not list(tmp_path.iterdir())


def test_published_tables_are_inside(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "tables", "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert "76.6" in done.stdout
    done = run(installed, tmp_path, "tables", "--format", "bibtex")
    assert "@inproceedings{weng2024modulate," in done.stdout


def test_every_config_is_inside(installed: Path) -> None:
    packed = {path.relative_to(installed / "intl_bench").as_posix() for path in installed.rglob("*.yaml")}
    assert packed == {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_says_where_it_comes_from(path: Path) -> None:
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    for word in ("command:", "source:", "published:", "cost:"):
        assert word in head, f"{path.name} does not say its {word}"


@pytest.mark.slow
def test_every_recipe_loads() -> None:
    assert len(RECIPES) >= 9
    for name in RECIPES:
        assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("imagenet_r50_intl", (800, 256, 0.3, 1e-5, False, 8192, 8192, "fp16", [224, 224], False)),
        ("imagenet_r50_intl_multicrop_100ep", (100, 256, 0.5, 1e-5, False, 8192, 8192, "fp16", SIX, True)),
        ("imagenet_r50_intl_multicrop_200ep", (200, 256, 0.4, 1e-5, False, 8192, 8192, "fp16", SIX, True)),
        ("imagenet_r50_intl_multicrop_400ep", (400, 256, 0.4, 1e-5, False, 8192, 8192, "fp16", SIX, True)),
        ("imagenet_r50_intl_multicrop_800ep", (800, 256, 0.3, 1e-5, False, 8192, 8192, "fp16", SIX, True)),
        ("imagenet100_r18_intl", (400, 128, 0.5, 2.5e-5, False, 4096, 8192, "fp16", [224, 224], False)),
        ("cifar10_r18_intl", (1000, 256, 0.3, 1e-4, True, 2048, 2048, "fp32", [32, 32], False)),
        ("cifar100_r18_intl", (1000, 256, 0.3, 1e-4, True, 2048, 2048, "fp32", [32, 32], False)),
    ],
)  # fmt: skip
def test_recipes_hold_the_published_protocol(name: str, values: tuple[object, ...]) -> None:
    recipe = load_recipe(name)
    assert recipe.scale == "paper"
    assert values == (
        recipe.epochs,
        recipe.batch_size,
        recipe.base_lr,
        recipe.weight_decay,
        recipe.decay_one_dimensional,
        recipe.projector.hidden,
        recipe.projector.out,
        recipe.precision,
        [view.size for view in recipe.views],
        recipe.method["momentum_target"],
    )
    assert (recipe.warmup_epochs, recipe.momentum, recipe.final_lr_ratio) == (2, 0.9, 0.001)
    assert (recipe.method["iterations"], recipe.method["axis"], recipe.method["beta"]) == (4, "channel", None)
    assert recipe.backbone.zero_init_residual == (recipe.backbone.name == "resnet50")


def test_views_hold_the_published_protocol() -> None:
    two = load_recipe("imagenet_r50_intl").views
    assert [(v.blur_p, v.solarize_p, v.min_scale, v.max_scale) for v in two] == [
        (1.0, 0.0, 0.08, 1.0),
        (0.1, 0.2, 0.08, 1.0),
    ]
    six = load_recipe("imagenet_r50_intl_multicrop_800ep").views
    assert [v.min_scale for v in six] == [0.2, 0.2, 0.171, 0.143, 0.114, 0.086]
    assert [v.max_scale for v in six] == [1.0, 1.0, 0.857, 0.714, 0.571, 0.429]
    assert {(v.blur_p, v.solarize_p) for v in six} == {(0.5, 0.1)}
    cifar = load_recipe("cifar10_r18_intl").views
    assert [(v.blur_p, v.solarize_p) for v in cifar] == [(0.0, 0.0), (0.0, 0.2)]
    for view in (*two, *six, *cifar):
        assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.4, 0.4, 0.2, 0.1)
        assert (view.jitter_p, view.grayscale_p, view.flip_p) == (0.8, 0.2, 0.5)
        assert (view.blur_sigma_min, view.blur_sigma_max) == (0.1, 2.0)


def test_overrides_make_a_paper_recipe_reduced() -> None:
    assert load_recipe("imagenet_r50_intl", ["data.root=/x", "workers=3", "seed=2"]).scale == "paper"
    assert load_recipe("imagenet_r50_intl", ["epochs=10"]).scale == "reduced"
    assert load_recipe("imagenet_r50_intl", ["method.beta=0.1"]).scale == "reduced"


def test_texts_name_commands_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^    make (\w+)", (ROOT / "README.md").read_text(), flags=re.M)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M)
    table = (ROOT / "docs" / "pretraining.md").read_text().partition("## Recipes")[2].partition("\n## ")[0]
    recipes = re.findall(r"^\| `(\w+)`", table, flags=re.M)
    assert "imagenet_r50_intl" in recipes
    for recipe in recipes:
        assert configs.find(recipe, "pretrain").is_file()


def test_help_does_not_import_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "intl_bench", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "numpy", "pandas", "omegaconf"}
