"""A text in a configuration is kept as it is written, and a path may hold an equals sign."""

from pathlib import Path

import hypothesis
import pytest
import torch
import yaml
from hypothesis import strategies as st

from intl_bench.cli import main
from intl_bench.cli.common import is_override, split_words
from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from pretrain.backbone import build_backbone
from pretrain.recipe import Recipe, load_recipe
from transfer import find_task

Capture = pytest.CaptureFixture[str]

# What YAML would read as something else: a comment, octal, a number, a date, a truth value, base 60, a list, a string.
TEXTS = [
    *("set #2", "0123", "2024_01_01", "2024-01-01", "on", "off", "yes", "true", "True", "1:30", "1e3", "1.10", "0x10"),
    *(
        "[a, b]",
        "{a}",
        "'x'",
        '"x"',
        "a: b",
        "&a",
        "*a",
        "- a",
        "!x",
        "%x",
        "~",
        ".inf",
        "x ",
        " x",
        "a=b",
        "@x",
        "`x`",
    ),
]


@pytest.mark.parametrize("text", TEXTS)
def test_an_override_of_a_text_is_the_text(text: str) -> None:
    assert load_recipe("demo", ["data.kind=npz", f"data.root={text}"]).data.root == text
    assert configs.build(find_task("coco").config, {}, "here", [f"data.root={text}"]).data.root == text
    if text.strip() == text:
        assert configs.build(find_task("coco").config, {}, "here", [f"data.name={text}"]).data.name == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_of_a_file_is_the_text(text: str, tmp_path: Path) -> None:
    quoted = yaml.dump({"root": text}, default_flow_style=True)
    (tmp_path / "a.yaml").write_text(f"name: x\nepochs: 3\ndata: {quoted}")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nbase_lr: 1e-1\ncompile: yes")
    for file in ("a.yaml", "b.yaml"):
        assert load_recipe(str(tmp_path / file)).data.root == text
    recipe = load_recipe(str(tmp_path / "b.yaml"))
    assert (recipe.epochs, recipe.base_lr, recipe.compile) == (3, 0.1, True)


@pytest.mark.parametrize(
    "text", ["0123", "2024_01_01", "2024-01-01", "on", "true", "1:30", "1e3", "1.10", "0x10", ".inf"]
)
def test_a_text_without_quotes_is_the_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"name: {text}\ndata: {{name: {text}}}")
    recipe = load_recipe(str(tmp_path / "a.yaml"))
    assert (recipe.name, recipe.data.name) == (text, text)


@hypothesis.given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
@hypothesis.settings(deadline=None, max_examples=60)
def test_every_text_is_kept(text: str) -> None:
    hypothesis.assume("${" not in text)
    built = configs.build(find_task("coco").config, {}, "here", [f"data.root={text}", "batch_size=8"])
    assert (built.data.root, built.batch_size) == (text, 8)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("*/x_*.jpg", ("*/x_*.jpg",)),
        ("on", ("on",)),
        ("", ()),
        ("a b.txt", ("a b.txt",)),
        ("[a.txt, 0123]", ("a.txt", "0123")),
        ("['*/x.jpg', \"b\"]", ("*/x.jpg", "b")),
    ],
)
def test_an_override_of_a_list_of_texts_is_one_text_or_a_list(text: str, value: tuple[str, ...]) -> None:
    assert load_recipe("demo", ["data.kind=imagefolder", "data.root=x", f"data.skip={text}"]).data.skip == value


def test_null_means_none_where_it_may() -> None:
    for word in ("init=null", "init="):
        assert load_recipe("demo", ["init=x.pt", word]).init is None
    assert load_recipe("demo", ["data.mean=null"]).data.mean is not None  # resolved from the kind of the data


@pytest.mark.parametrize("word", ["epochs=on", "epochs=1:30", "epochs=2024-01-01", "base_lr=yes", "compile=maybe"])
def test_other_fields_refuse_text(word: str) -> None:
    with pytest.raises(InputError, match=f"{word.replace('=', ': found ')}; expected "):
        configs.build(Recipe, {"name": "x"}, "here", [word])


# ---- words of a command line


PATHS = [
    "epoch=99-step=500400.ckpt",
    "lr=0.1,wd=0/last.ckpt",
    "a=b/c=d.pt",
    "./name=x.pt",
    "name=x.pt",
    "~/seed=1/x.pt",
]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_with_an_equals_sign_is_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).touch()
    assert split_words([name, "epochs=3"], "CHECKPOINT") == (name, ["epochs=3"])


def test_words_that_are_no_files() -> None:
    assert not is_override("runs/seed=1/checkpoint.pt")
    assert is_override("data.root=/a/b=c")
    assert is_override("data.root=runs/seed=1")


def test_the_checkpoint_is_scored_not_the_default_run(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1,wd=0").mkdir()
    for name in ("epoch=99-step=500400.ckpt", "lr=0.1,wd=0/last.ckpt"):
        torch.save({"state_dict": build_backbone("resnet18").state_dict()}, name)
        assert main(["coco", name, "--method", "x", "--dry-run"]) == 0
        assert f"checkpoint {name}" in capfd.readouterr().out
        assert main(["convert", name, "out.pth", "--to", "torchvision"]) == 0
        capfd.readouterr()
    assert main(["coco", "lr=0.1,wd=0/lost.ckpt", "--dry-run"]) == 2
    assert "lr=0.1,wd=0/lost.ckpt" in capfd.readouterr().err
    Path("my=recipe.yaml").write_text("name: x=1")
    assert main(["pretrain", "my=recipe.yaml", "data.root=x", "--dry-run"]) == 0
    assert "pretrain   x=1, seed 0" in capfd.readouterr().out


def test_the_home_of_nobody_is_a_missing_folder(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(build_backbone("resnet18").state_dict(), "a.pth")
    for words in (["knn", "a.pth", "data.kind=imagefolder"], ["coco", "a.pth"], ["voc", "a.pth"], ["pretrain"]):
        assert main([*words, "data.root=~nobody-of-this-name/images"]) == 2
        assert "~nobody-of-this-name/images" in capfd.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_file_with_a_byte_order_mark_is_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("name: caf\u00e9\n".encode(encoding))
    assert configs.read(tmp_path / "a.yaml") == {"name": "caf\u00e9"}
    (tmp_path / "b.yaml").write_bytes("name: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 text"):
        configs.read(tmp_path / "b.yaml")
