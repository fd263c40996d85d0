"""The settings as people type them: base files, sections, lists of views, nearest keys, and their reference."""

import dataclasses
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from intl_bench import keys
from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from intl_bench.core.ranges import Natural
from intl_bench.core.settings import settings
from pretrain import methods
from pretrain.recipe import Recipe, load_recipe
from transfer import TASKS, find_task

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS: dict[str, type] = {"pretrain": Recipe, **{name: find_task(name).config for name in TASKS}}
SCHEMAS |= {f"method {name}": methods.find(name).Config for name in methods.names()}


@pytest.mark.parametrize("base", ["cifar10_r18_byol", "cifar10_r18_byol.yaml", "pretrain/cifar10_r18_byol.yaml"])
def test_a_base_is_a_packaged_recipe_by_name(base: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"base: {base}\nname: own\nepochs: 3\n")
    recipe = load_recipe(str(tmp_path / "own.yaml"))
    assert (recipe.method["name"], recipe.epochs, recipe.optimizer) == ("byol", 3, "lars")


def test_a_base_beside_the_file_wins_over_a_packaged_one(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("name: mine\nepochs: 7\n")
    (tmp_path / "own.yaml").write_text("base: demo.yaml\n")
    assert load_recipe(str(tmp_path / "own.yaml")).epochs == 7
    (tmp_path / "demo.yaml").unlink()
    assert load_recipe(str(tmp_path / "own.yaml")).data.kind == "shapes"


def test_a_base_of_the_wrong_name_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("base: cifar10_r18_bylo\n")
    with pytest.raises(InputError, match=r"cifar10_r18_bylo: no such file; did you mean base: cifar10_r18_byol\?"):
        load_recipe(str(tmp_path / "own.yaml"))


def test_a_base_that_two_kinds_of_configs_have_is_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("base: imagenet\n")
    with pytest.raises(InputError, match=r"write base: finetune/imagenet.yaml or knn/imagenet.yaml or "):
        configs.read(tmp_path / "own.yaml")
    assert configs.read(tmp_path / "own.yaml", "linear")["crop"] == "224"


def test_a_path_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "below.yaml").write_text("name: below\nepochs: 7\n")
    (tmp_path / "own.yaml").write_text("base: ~/below.yaml\nname: own\n")
    assert load_recipe("~/own.yaml").epochs == 7


@pytest.mark.parametrize(("stored", "typed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_may_be_composed_differently(stored: Any, typed: Any, tmp_path: Path) -> None:
    name = "prüfung_é.yaml"
    (tmp_path / unicodedata.normalize(stored, name)).write_text("name: a\nepochs: 7\n")
    (tmp_path / "own.yaml").write_text(f"base: {unicodedata.normalize(typed, name)}\n", encoding="utf-8")
    for file in ("own.yaml", unicodedata.normalize(typed, name)):
        assert load_recipe(str(tmp_path / file)).epochs == 7
    folder = tmp_path / unicodedata.normalize(stored, "möbel")
    folder.mkdir()
    (folder / "a.yaml").write_text("name: a\nepochs: 8\n")
    assert load_recipe(str(tmp_path / unicodedata.normalize(typed, "möbel") / "a.yaml")).epochs == 8


@pytest.mark.parametrize(
    ("text", "name"),
    [("!!bool on", "on"), ("!!float 1e3", "1e3"), ("!!int 12", "12"), ("!!timestamp 2024-01-01", "2024-01-01")],
)
def test_a_tag_does_not_change_a_text(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"name: {text}\ncompile: !!bool on\nepochs: !!int 0x1F\nbase_lr: !!float 1e-1\n")
    recipe = load_recipe(str(tmp_path / "a.yaml"))
    assert (recipe.name, recipe.compile, recipe.epochs, recipe.base_lr) == (name, True, 31, 0.1)


@pytest.mark.parametrize(
    ("text", "value"), [("on", ("on",)), ("", ()), ("[a, b]", ("a", "b")), ("'[ab]*'", ("[ab]*",))]
)
def test_a_list_of_texts_in_a_file_is_one_text_or_a_list_or_nothing(text: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"name: a\ndata: {{skip: {text}}}\n")
    assert load_recipe(str(tmp_path / "a.yaml")).data.skip == value


def test_a_setting_of_all_views() -> None:
    recipe = load_recipe("imagenet_r50_intl", ["views.size=64", "views.1.blur_p=0.5"])
    assert [(view.size, view.blur_p) for view in recipe.views] == [(64, 1.0), (64, 0.5)]


HINTS = [
    ("backbone=resnet34", "backbone is a section; write backbone.name=resnet34"),
    ("backbone=cifar", "write backbone.stem=cifar"),
    ("data=/some/images", "data is a section; write data.root=/some/images"),
    ("data=npz", "write data.kind=npz"),
    ("method=vicreg", "method is a section; write method.name=vicreg"),
    ("views=64", "views is a list of sections; write views.size=64"),
    ("views.2.size=64", "views has 2 items; expected views.0 to views.1"),
    ("views.sise=64", "did you mean views.size?"),
    ("root=x", "did you mean data.root?"),
    ("data_root=x", "did you mean data.root?"),
    ("lr=1", "did you mean base_lr or"),
    ("layers=2", "did you mean projector.layers?"),
    ("epohcs=2", "did you mean epochs?"),
    ("method.name=vicreg", "cifar10_r18_vicreg"),
]


@pytest.mark.parametrize(("override", "hint"), HINTS)
def test_a_wrong_setting_says_how_it_is_written(override: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("cifar10_r18_intl", [override])
    assert hint in str(caught.value)


def test_a_section_of_a_file_that_is_one_value_says_how_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nbackbone: resnet34\n")
    with pytest.raises(InputError, match=r"a\.yaml: backbone: .*; write backbone\.name=resnet34"):
        load_recipe(str(tmp_path / "a.yaml"))
    (tmp_path / "a.yaml").write_text("name: a\nviews: {size: 64}\n")
    with pytest.raises(
        InputError, match=r"a\.yaml: views: views is a list of sections; expected lines that begin with -"
    ):
        load_recipe(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_setting_has_a_meaning(name: str) -> None:
    without = [one.key for one in settings(SCHEMAS[name]) if not one.meaning]
    assert not without, f"add them to `Attributes:` of the docstring of their dataclass: {without}"


def test_the_reference_in_docs_is_that_of_the_code() -> None:
    stored = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert stored == keys.page(), "run: intl-bench keys --markdown > docs/settings.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A configuration.

    Attributes:
        first, second: two numbers,
            described together.
        third: None for none.
    """

    first: Natural = 1
    second: float = 2.5
    third: tuple[str, ...] | None = None


def test_a_setting_is_what_its_field_and_docstring_say() -> None:
    first, second, third = settings(Sample, Sample(second=3.0))
    assert (first.kind, first.default) == ("whole number at least 0", 1)
    assert (second.kind, second.default, second.meaning) == ("number", 3.0, "two numbers, described together.")
    assert (third.kind, third.meaning) == ("list, each text or null", "null for none.")


def test_marks_tell_what_changes_the_numbers() -> None:
    marks = {one.key: one.decides for one in settings(Recipe)}
    expected = {
        "epochs": "*",
        "views.N.size": "*",
        "workers": "",
        "name": "",
        "data.root": "+",
        "init": "+",
        "size": "*",
        "monitor.every": "",
    }
    assert {key: marks[key] for key in expected} == expected
