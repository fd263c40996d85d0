"""Links in folders of images, and folders that cannot be read."""

import errno
import os
from pathlib import Path

import pytest
from image_bytes import saved
from PIL import Image
from torchvision.datasets import ImageFolder

from intl_bench.cli import main
from intl_bench.core.errors import BenchError, InputError
from pretrain.images import folders
from pretrain.images.data import DataConfig, FileSource, open_source

PNG = saved(Image.new("RGB", (5, 5)), "PNG")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folders._note.cache_clear()
    for file in ("train/a/1.png", "train/b/2.png", "train/b/deep/3.PNG", "val/a/4.png", "val/b/5.png"):
        path = Path("data", file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    return Path("data")


def files(root: Path) -> list[str]:
    source = open_source(DataConfig(root=str(root)), "train")
    assert isinstance(source, FileSource)
    return [file.decode() for file in source.files.tolist()]


@pytest.mark.parametrize(
    "links",
    [
        {"a/self": "."},
        {"a/deep/up": "../.."},  # to the class's own folder of images
        {"loop": "../train"},  # a class
        {"a/all": "../../../data"},
        {"b/disk": "/"},
        {"a/x": "../b", "b/y": "../a"},  # neither holds itself
        {"a/x": "../b", "b/deep/y": "../../a", "b/z": ".."},  # in each step two ways, without end
    ],
)
def test_links_in_a_circle_are_refused_in_one_line(
    root: Path, links: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, target in links.items():
        (root / "train" / name).parent.mkdir(exist_ok=True)
        (root / "train" / name).symlink_to(target)
    with pytest.raises(InputError, match=r"data/train/\S+: a link to /\S*, which holds this link; .* remove it$"):
        files(root)
    words = ["pretrain", "demo", "data.kind=imagefolder", "data.root=data", "max_steps=1", "device=cpu"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "which holds this link" in line
    assert not Path("runs").exists()
    assert main(["data", "check", "data"]) == 2
    assert "which holds this link" in " ".join(capsys.readouterr().out.split())


def test_other_links_are_followed_as_torchvision_does(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / "train" / "b").rename(tmp_path / "elsewhere" / "b")
    (root / "train" / "b").symlink_to(tmp_path / "elsewhere" / "b")  # a class on another disk
    (root / "train" / "b" / "deep" / "more").symlink_to(tmp_path / "data" / "train" / "a")
    (root / "train" / ".snapshot").symlink_to(".")  # not ours to judge
    (root / "train" / "a" / ".snapshot").symlink_to(".")
    Path("link").symlink_to("data")
    for place in (root, Path("link"), tmp_path / "link"):
        assert files(place) == ["a/1.png", "b/2.png", "b/deep/3.PNG", "b/deep/more/1.png"]
    (root / "train" / ".snapshot").unlink()
    (root / "train" / "a" / ".snapshot").unlink()
    found = [os.path.relpath(path, root / "train") for path, _ in ImageFolder(str(root / "train")).samples]
    assert files(root) == found


@pytest.mark.parametrize("target", ["/disk/gone", "gone"])  # the second one is a link to itself
def test_a_class_that_is_a_link_to_nowhere_is_not_passed_over(root: Path, target: str) -> None:
    for split in ("train", "val"):
        (root / split / "gone").symlink_to(target)
    (root / "train" / ".snapshot").symlink_to("/disk/gone")
    with pytest.raises(InputError, match=rf"data/train/gone: a link to {target}, .* out with 'data.skip=\[\"gone\"\]'"):
        files(root)
    source = open_source(DataConfig(root=str(root), skip=("gone",)), "train")
    assert source.class_names == ["a", "b"]


def test_a_folder_that_cannot_be_read_is_not_passed_over(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = os.scandir

    def scandir(path: str) -> object:
        if "deep" in str(path) or ".Trash" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return whole(path)

    (root / "train" / "a" / ".Trash-0").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(BenchError, match=r"data/train/b/deep: cannot read this folder of images: Permission denied"):
        files(root)
    assert main(["data", "check", "data"]) == 2  # a report, like that of other faults
    assert "data/train/b/deep: cannot read this folder" in " ".join(capsys.readouterr().out.split())
    (root / "train" / "b" / "deep").rename(root / "train" / "b" / "d")
    assert files(root) == ["a/1.png", "b/2.png", "b/d/3.PNG"]
