"""What a first-time user types: the bare command, typos, `ls` and `keys`."""

import subprocess
import sys
from pathlib import Path

import pytest

from intl_bench import catalog
from intl_bench.cli import main
from intl_bench.cli.columns import align
from intl_bench.core import config as configs
from intl_bench.core.datasets import DATASETS

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_bare_command_says_what_it_is_and_what_to_try(capsys: Capture) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [line.split()[1] for line in lines if line.startswith("  intl-bench ")]
    assert lines[0].startswith("intl-bench pre-trains")
    assert commands == ["demo", "ls", "pretrain"]
    assert max(map(len, lines)) <= 80


TYPOS = [
    ("pretrian", "did you mean pretrain?"),
    ("LINEAR", "did you mean linear?"),
    ("cifar10_r18_intl", "it is a recipe; run intl-bench pretrain cifar10_r18_intl"),
    ("qqq", "expected demo, pretrain,"),
    ("--versoin", "did you mean --version?"),
    ("pretrain --dry-rn", "did you mean --dry-run?"),
    ("linear --sedes=3", "did you mean --seeds?"),
    ("data pakc", "did you mean pack?"),
    ("ls recipe", "did you mean recipes?"),
    ("keys lineer", "did you mean linear?"),
    ("convert a b --to tim", "did you mean timm?"),
]


@pytest.mark.parametrize(("words", "hint"), TYPOS)
def test_a_typo_gets_the_nearest_word(words: str, hint: str, capsys: Capture) -> None:
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 1


def test_a_hidden_option_is_never_suggested(capsys: Capture) -> None:
    assert main(["linear", "--only-sed", "3"]) == 2
    assert "--only-seed" not in capsys.readouterr().err


@pytest.mark.parametrize("what", ["recipes", "ablations", "methods", "datasets"])
def test_lists_have_every_entry_and_one_line_each_in_a_pipe(what: str, capsys: Capture) -> None:
    folder, kind = configs.CONFIGS, {"recipes": "pretrain", "ablations": "ablation"}.get(what, "")
    expected = {path.stem for path in (folder / kind).glob("*.yaml")} if kind else set(DATASETS)
    if what == "methods":
        expected = {path.stem for path in (folder.parent / "pretrain" / "methods").glob("[!_]*.py")}
    assert main(["ls", what]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "NAME"
    assert {line.split()[0] for line in lines} == expected
    assert len(lines) == len(expected)


def test_a_recipe_has_its_published_score_and_cost(capsys: Capture) -> None:
    assert main(["ls", "recipes", "multicrop", "800"]) == 0
    (_, line) = capsys.readouterr().out.splitlines()
    for part in ("imagenet_r50_intl_multicrop_800ep", "76.6 linear top-1", "148-246 h on 2 A100", "six crops"):
        assert part in line


@pytest.mark.parametrize("list_of", [catalog.recipes, catalog.tasks, catalog.ablations])
def test_every_packaged_config_has_a_header(list_of: object) -> None:
    assert all(row["what"] for row in list_of())  # type: ignore[operator]


def test_tasks_and_layouts(capsys: Capture) -> None:
    assert main(["ls", "tasks", "knn", "dino"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("knn --config dino")
    assert main(["ls", "layouts", "moco-v3"]) == 0
    assert "query, momentum" in capsys.readouterr().out


def test_words_that_no_row_has_are_said(capsys: Capture) -> None:
    assert main(["ls", "recipes", "vit"]) == 0
    out, error = capsys.readouterr()
    assert (out, error.startswith("none of")) == ("", True)


def test_ls_does_not_import_torch() -> None:
    code = "import sys; from intl_bench.cli import main; main(['ls', 'methods']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_columns_that_do_not_fit_put_the_last_one_below() -> None:
    rows = [{"name": "a", "empty": "", "what": "words " * 10}, {"name": "bbb", "empty": "", "what": ""}]
    wide, narrow = align(rows, None).splitlines(), align(rows, 30).splitlines()
    assert [line.split("  ")[0] for line in wide] == ["NAME", "a", "bbb"]
    assert max(map(len, narrow)) <= 30
    assert narrow[:3] == ["NAME", "    WHAT", "a"]
    assert "EMPTY" not in wide[0]
    path = "some/folder-with-a-long/name.json"
    rows = [
        {"name": "a" * 20, "score": "1" * 9, "file": path, "date": "today"},
        {"name": "b", "score": "2", "file": "", "date": ""},
    ]
    assert align(rows, 30).splitlines()[4:] == ["a" * 20, "    " + "1" * 9, f"    {path}", "    today", "b", "    2"]


def test_keys_shows_the_values_of_a_recipe_or_protocol(capsys: Capture) -> None:
    assert main(["keys", "pretrain", "cifar10_r18_byol"]) == 0
    out = capsys.readouterr().out
    assert "* method.base_momentum=0.99  (number from 0 to 1)  momentum of the moving average" in out
    assert "+ data.root=data  (text)" in out
    assert "\n  workers=" in out
    assert main(["keys", "linear", "imagenet"]) == 0
    assert "* crop=224 " in capsys.readouterr().out
    assert main(["keys", "pretrain", "cifar10_r18_bylo"]) == 2
    assert "did you mean cifar10_r18_byol?" in capsys.readouterr().err
