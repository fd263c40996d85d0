"""Test the recipes of all methods: their header comments, the values of their sources, and that runs can be built."""

import csv
import functools
import re
from pathlib import Path

import pytest
import torch
from method_cases import marked

from intl_bench.core import config as configs
from intl_bench.core.datasets import DATASETS
from intl_bench.core.distributed import Process
from intl_bench.core.errors import InputError
from pretrain import methods, train
from pretrain.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "pretrain"
METHODS = ["simclr", "mocov2", "byol", "swav", "simsiam", "dino", "barlow_twins", "vicreg", "wmse"]
METHODS += ["spectral", "iternorm", "shuffled_dbn", "cw_rgp", "zero_cl", "supervised"]
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet100": 100, "imagenet": 1000}
PUBLISHED = re.compile(
    r"([\d.]+) linear top-1(?:, ([\d.]+) 5-NN)?(?:, ([\d.]+) top-5)? \(.*; the paper's Table ([12])\)"
)

load = functools.cache(load_recipe)


def name_of(method: str, data: str) -> str:
    return f"{data}_{'r50' if data == 'imagenet' else 'r18'}_{method}"


def head(path: Path) -> dict[str, str]:
    """Read the lines `#   key: text` at the top of a recipe, with their continuation lines."""
    found: dict[str, str] = {}
    key = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if start := re.match(r"#   (\w+): +(.*)", line):
            key = start[1]
            found[key] = start[2]
        elif key:
            found[key] += " " + line.lstrip("# ")
    return found


def table(number: int) -> dict[str, dict[str, str]]:
    """Return a published table by lower-case method, without the marks of the best values."""
    with (ROOT / "intl_bench" / "published" / f"table{number}.csv").open(encoding="utf-8") as stream:
        rows = [{key: value.replace("*", "") for key, value in row.items()} for row in csv.DictReader(stream)]
    return {row["method"].lower(): row for row in rows}


def test_every_recipe_states_its_source() -> None:
    paths = sorted(FOLDER.glob("*.yaml"))
    assert {name_of(method, data) for method in METHODS for data in CLASSES} <= {path.stem for path in paths}
    for path in paths:
        said = head(path)
        assert {"command", "source", "published", "cost"} <= said.keys(), path.name
        assert all(said.values()), path.name
        if path.stem not in ("demo", "imagenet_r50_intl"):  # `demo` has its own command, and the other is the default
            assert f"intl-bench pretrain {path.stem} data.root=" in said["command"]


def test_the_scale_is_that_of_the_paper_only_without_differences() -> None:
    """A recipe counts as adapted if its header states a difference from the source beyond rounding, or no source."""
    scales = {path.stem: load(path.stem).scale for path in sorted(FOLDER.glob("*.yaml"))}
    smaller = {name: scale for name, scale in scales.items() if scale not in ("paper", "adapted")}
    assert smaller == {"cifar10_small_intl": "reduced", "own_images": "reduced", "demo": "demo"}
    for name in scales.keys() - smaller.keys():
        said = head(FOLDER / f"{name}.yaml")
        differs = "differs" in said and not said["differs"].startswith("in rounding only")
        adapted = differs or re.match(r"none\b", said["source"])
        assert scales[name] == ("adapted" if adapted else "paper"), name


def test_a_referenced_difference_exists() -> None:
    """If a header refers to the differences of another recipe, the header of that recipe states them."""
    for path in sorted(FOLDER.glob("*.yaml")):
        if reference := re.match(r"as (\w+)", head(path).get("differs", "")):
            assert "differs" in head(FOLDER / f"{reference[1]}.yaml"), path.name


@pytest.mark.parametrize("method", METHODS)
def test_the_published_score_is_that_of_the_table(method: str) -> None:
    """A header states exactly the values in the row of the paper, or that there is none."""
    display = methods.find(method).DISPLAY.lower()
    for data in CLASSES:
        number, prefix = (1, "linear/") if data == "imagenet" else (2, f"{data}/")
        said = head(FOLDER / f"{name_of(method, data)}.yaml")["published"]
        row = table(number).get(display)
        if row is None:
            assert said.startswith("none in the paper's tables"), (data, said)
            continue
        found = PUBLISHED.match(said)
        assert found, (data, said)
        expected = [row.get(prefix + column) for column in ("top1", "5nn", "top5")]
        assert list(found.groups()) == [*(None if value == "–" else value for value in expected), str(number)]


@pytest.mark.parametrize("method", marked(METHODS))
def test_a_run_can_be_built_from_every_recipe(method: str) -> None:
    """Build each run on the meta device with the published size of the data set; check the epochs of Table 2."""
    meta = torch.device("meta")
    for data, classes in CLASSES.items():
        recipe = load(name_of(method, data))
        assert recipe.name == name_of(method, data)
        assert (recipe.method["name"], recipe.data.dataset) == (method, data)
        assert recipe.backbone.name == ("resnet50" if data == "imagenet" else "resnet18")
        assert recipe.backbone.stem.startswith("cifar") == data.startswith("cifar")
        assert {view.size for view in recipe.views} <= ({32} if data.startswith("cifar") else {224, 96})
        with meta:
            training = train.build_training(
                recipe, Process(rank=0, world_size=1, device=meta), DATASETS[data].train, classes
            )
        assert training.total_steps == DATASETS[data].train // recipe.batch_size * recipe.epochs
        if data != "imagenet" and training.display.lower() in table(2):
            assert recipe.epochs == (400 if data == "imagenet100" else 1000)


# Values of the sources: learning rate at the batch size of the recipe, weight decay, and values without another test.
SOURCES = {
    # solo-learn's shell scripts
    "cifar10_r18_simclr": {
        "lr": 0.4,
        "weight_decay": 1e-5,
        "optimizer": "lars",
        "trust_coefficient": 0.02,
        "clip_trust": True,
    },
    "cifar10_r18_mocov2": {"lr": 0.3, "weight_decay": 1e-4, "optimizer": "sgd", "decay_one_dimensional": True},
    "cifar10_r18_byol": {"lr": 1.0, "weight_decay": 1e-5, "optimizer": "lars", "decay_one_dimensional": False},
    "cifar100_r18_swav": {"lr": 0.6, "final_lr": 0.0006, "weight_decay": 1e-6, "decay_one_dimensional": True},
    "cifar100_r18_simsiam": {"lr": 0.5, "weight_decay": 1e-5, "optimizer": "sgd", "warmup_epochs": 10},
    "cifar10_r18_wmse": {"lr": 3e-3, "weight_decay": 1e-6, "optimizer": "adam", "warmup_epochs": 2},
    "imagenet100_r18_mocov2": {"lr": 0.3, "weight_decay": 1e-4, "batch_size": 256, "warmup_epochs": 0},
    "imagenet100_r18_byol": {"lr": 0.5, "weight_decay": 1e-5, "batch_size": 256, "optimizer": "lars"},
    "imagenet100_r18_wmse": {"lr": 2e-3, "weight_decay": 1e-6, "optimizer": "adam"},
    # the authors of the methods: papers and code as in the headers of the recipes
    "imagenet_r50_simclr": {
        "lr": 4.8,
        "weight_decay": 1e-6,
        "epochs": 1000,
        "batch_size": 4096,
        "trust_coefficient": 0.001,
    },
    "imagenet_r50_mocov2": {"lr": 0.03, "weight_decay": 1e-4, "epochs": 800, "batch_size": 256, "warmup_epochs": 0},
    "imagenet_r50_byol": {"lr": 3.2, "weight_decay": 1.5e-6, "epochs": 1000, "batch_size": 4096, "optimizer": "lars"},
    "imagenet_r50_swav": {"lr": 4.8, "final_lr": 0.0048, "weight_decay": 1e-6, "epochs": 800, "clip_trust": False},
    "imagenet_r50_simsiam": {"lr": 0.05, "weight_decay": 1e-4, "epochs": 800, "optimizer": "sgd"},
    "imagenet_r50_dino": {"lr": 0.3 * 4080 / 256, "final_lr": 0.0048, "weight_decay": 1e-6, "batch_size": 4080},
    "imagenet_r50_barlow_twins": {"lr": 1.6, "lr_1d": 0.0384, "weight_decay": 1e-6, "epochs": 1000, "batch_size": 2048},
    "imagenet_r50_vicreg": {"lr": 1.6, "lr_1d": 1.6, "final_lr": 0.0016, "weight_decay": 1e-6, "epochs": 1000},
    "imagenet_r50_cw_rgp": {"lr": 0.1, "weight_decay": 1e-4, "epochs": 200, "batch_size": 512, "optimizer": "sgd"},
    "imagenet_r50_shuffled_dbn": {"lr": 0.02, "weight_decay": 5e-4, "epochs": 200, "warmup_epochs": 5},
    # whitening methods on small images
    "cifar10_r18_cw_rgp": {"lr": 3e-3, "weight_decay": 1e-6, "batch_size": 256, "optimizer": "adam"},
    "cifar100_r18_cw_rgp": {"lr": 3e-3, "weight_decay": 1e-6, "batch_size": 512, "optimizer": "adam"},
    "cifar10_r18_shuffled_dbn": {"lr": 0.005, "weight_decay": 1e-3, "epochs": 800, "batch_size": 64},
    "cifar100_r18_zero_cl": {
        "lr": 0.3,
        "lr_1d": 0.005,
        "weight_decay": 1e-4,
        "trust_coefficient": 0.02,
        "clip_trust": False,
    },
}


@pytest.mark.parametrize("name", SOURCES)
def test_optimization_is_as_in_the_source(name: str) -> None:
    recipe = load(name)
    lr = recipe.base_lr * recipe.batch_size / 256
    derived = {"lr": lr, "final_lr": lr * recipe.final_lr_ratio, "lr_1d": lr * recipe.one_dimensional_lr_ratio}
    for key, value in SOURCES[name].items():
        found = derived[key] if key in derived else getattr(recipe, key)
        assert found == (pytest.approx(value, rel=5e-3) if isinstance(value, float) else value), key


# The same for the section "method".
SETTINGS = {
    "cifar100_r18_simclr": {"temperature": 0.2, "batch_norm": False},
    "imagenet_r50_simclr": {"temperature": 0.1, "batch_norm": True},
    "cifar10_r18_mocov2": {"queue": 32768, "base_momentum": 0.99, "final_momentum": 0.999, "symmetric": True},
    "imagenet_r50_mocov2": {"queue": 65536, "base_momentum": 0.999, "final_momentum": 0.999, "symmetric": False},
    "imagenet100_r18_byol": {"predictor_hidden": 8192, "base_momentum": 0.99},
    "imagenet_r50_byol": {"predictor_hidden": 4096, "base_momentum": 0.996},
    "cifar10_r18_swav": {"prototypes": 3000, "queue": 3840, "queue_from_epoch": 50, "freeze_prototypes_epochs": 2},
    "imagenet_r50_swav": {"prototypes": 3000, "queue": 0, "freeze_prototypes_epochs": 1, "sinkhorn_epsilon": 0.05},
    "cifar10_r18_dino": {
        "outputs": 4096,
        "batch_norm": True,
        "warmup_epochs": 50,
        "teacher_temperature": 0.07,
        "base_momentum": 0.9995,
    },
    "cifar100_r18_barlow_twins": {"off_diagonal_weight": 0.005, "scale": 0.1},
    "imagenet100_r18_barlow_twins": {"scale": 0.1 / 2},  # of two GPUs, and of 16
    "imagenet_r50_barlow_twins": {"off_diagonal_weight": 0.0051, "scale": 1 / 16},
    "imagenet100_r18_vicreg": {"invariance_weight": 25.0, "variance_weight": 2 * 25.0, "covariance_weight": 1.0},
    "imagenet_r50_vicreg": {"invariance_weight": 25.0, "variance_weight": 25.0, "covariance_weight": 1.0},
    "cifar10_r18_wmse": {"sub_batch": 128, "iterations": 1, "epsilon": 0.0},
    "cifar10_r18_cw_rgp": {"groups": 4, "sub_batch": 64, "iterations": 4, "epsilon": 0.0},
    "cifar100_r18_cw_rgp": {"groups": 4, "sub_batch": 64, "iterations": 1, "epsilon": 0.0},
    "imagenet_r50_cw_rgp": {"groups": 2, "sub_batch": 128, "iterations": 1, "epsilon": 0.0},
    "cifar10_r18_shuffled_dbn": {"groups": 16},
    "cifar10_r18_zero_cl": {"shrinkage": 0.1},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_method_settings_are_as_in_the_source(name: str) -> None:
    method = load(name).method
    assert {key: method[key] for key in SETTINGS[name]} == SETTINGS[name]


def changed(a: Recipe, b: Recipe) -> set[str]:
    """Return the keys in which two recipes differ, down to the second level."""
    return {line.split(":")[0] for line in configs.differences(configs.to_dict(a), configs.to_dict(b))}


@pytest.mark.parametrize("method", METHODS)
def test_cifar_100_is_cifar_10_with_other_images(method: str) -> None:
    one, other = (load(name_of(method, data)) for data in ("cifar10", "cifar100"))
    own = {"cw_rgp": {"batch_size", "base_lr", "warmup_epochs", "method.iterations"}}.get(method, set())
    assert {"name", "data.kind"} <= changed(one, other) <= {"name", "data.kind", "data.mean", "data.std"} | own


@pytest.mark.parametrize("method", ["spectral", "iternorm"])
@pytest.mark.parametrize("data", CLASSES)
def test_only_the_loss_differs_from_intl(method: str, data: str) -> None:
    ours = load(name_of(method, data))
    intl = load(name_of("intl", data))
    different = changed(ours, intl)
    assert all(key in ("name", "scale") or key.startswith("method.") for key in different), different


def test_views_are_as_in_the_source() -> None:
    """Check the strengths of the three families of augmentation, and the small crops of SwAV and DINO."""

    def jitter(name: str) -> list[tuple[float, ...]]:
        return [(v.brightness, v.contrast, v.saturation, v.hue) for v in load(name).views]

    assert jitter("imagenet_r50_simclr") == jitter("cifar10_r18_simclr") == 2 * [(0.8, 0.8, 0.8, 0.2)]
    assert jitter("imagenet_r50_mocov2") == jitter("cifar10_r18_simsiam") == 2 * [(0.4, 0.4, 0.4, 0.1)]
    assert jitter("imagenet_r50_byol") == jitter("cifar100_r18_vicreg") == 2 * [(0.4, 0.4, 0.2, 0.1)]
    for name, blurs in {"imagenet_r50_barlow_twins": (1.0, 0.1), "cifar10_r18_byol": (0.0, 0.0)}.items():
        first, second = load(name).views
        assert (first.blur_p, first.solarize_p, second.blur_p, second.solarize_p) == (blurs[0], 0.0, blurs[1], 0.2)
    for name in ("imagenet_r50_swav", "imagenet_r50_dino"):
        views = load(name).views
        assert [(v.size, v.min_scale, v.max_scale) for v in views] == 2 * [(224, 0.14, 1.0)] + 6 * [(96, 0.05, 0.14)]
    assert [len(load(f"imagenet_r50_{method}").views) for method in ("wmse", "cw_rgp", "supervised")] == [
        4,
        4,
        1,
    ]


def test_a_mistyped_method_setting_is_named() -> None:
    with pytest.raises(InputError, match=r"section method: unknown key 'temprature'; did you mean temperature\?"):
        load_recipe("cifar10_r18_simclr", ["method.temprature=0.5"])
