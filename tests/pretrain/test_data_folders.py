"""A wrong folder level, and what is said about it."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from intl_bench.core.errors import InputError
from pretrain.images.data import DataConfig, open_source
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig


def images(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "1.png")


def refused(root: Path, split: str = "train", **values: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_source(DataConfig(root=str(root), **values), split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    root = tmp_path / "sets" / "flowers"
    images(*(root / split / name for split in ("train", "val") for name in ("daisy", "rose")))
    assert len(open_source(DataConfig(root=str(root)), "train")) == 2
    return root


@pytest.mark.parametrize("level", ["..", "../..", "train", "train/daisy", "../flwers"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_right_level_is_named(level: str, split: str, flowers: Path) -> None:
    root = Path(flowers / level).resolve()
    assert refused(root, split).endswith(f"did you mean data.root={flowers}?")


def test_a_folder_of_another_split_is_named(tmp_path: Path) -> None:
    images(tmp_path / "train" / "a", tmp_path / "test" / "a")
    assert f"found {tmp_path / 'test'}: rename it, or link it with ln -s test {tmp_path / 'val'}" in refused(
        tmp_path, "test"
    )


def test_classes_without_a_split_are_named(tmp_path: Path) -> None:
    root = tmp_path / "x" / "y" / "flowers"
    images(root / "daisy", root / "rose")
    assert f"its class folders (daisy, rose) are not split: move them into {root / 'train'}" in refused(root)


def test_images_without_class_folders_are_told_where_to_go(tmp_path: Path) -> None:
    root = tmp_path / "x" / "y" / "flat"
    images(root)
    assert f"its images are in no class folders: move them into {root / 'train' / 'CLASS'} and" in refused(root)
    (root / "train" / "all").mkdir(parents=True)
    (root / "1.png").rename(root / "train" / "all" / "1.png")
    assert len(open_source(DataConfig(root=str(root)), "train")) == 1
    assert f"; scores need images that were not trained on: move some images of each class of {root / 'train'}" in (
        refused(root, "test")
    )


def test_a_root_that_is_nowhere_says_what_to_set(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere" / "deep").endswith(f"{tmp_path} has no nowhere; set data.root=PATH")


def test_data_of_another_kind_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_x=np.zeros((1, 2, 2, 3), np.uint8))
    assert "did you mean data.kind=npz?" in refused(tmp_path / "a.npz")
    assert refused(tmp_path, kind="npz").endswith(f"did you mean data.root={tmp_path / 'a.npz'}?")
    (tmp_path / "b" / "VOC2007" / "ImageSets" / "Main").mkdir(parents=True)
    assert f"{tmp_path / 'b'} holds data for intl-bench voc; intl-bench data check" in refused(tmp_path / "b")


def test_cifar_is_read_from_its_folder_and_from_the_one_that_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    folder = tmp_path / "sets" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    batch = {"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))}
    for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list):
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(number) for number in range(10)]}))
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    for root in (folder, folder.parent):
        assert len(open_source(DataConfig(kind="cifar10", root=str(root)), "train")) == 50
    monkeypatch.undo()
    assert f"did you mean data.root={folder.parent}?" in refused(tmp_path, kind="cifar10")


@pytest.mark.parametrize("level", ["..", "images"])
def test_annotations_at_another_level_are_named(level: str, tmp_path: Path) -> None:
    root = tmp_path / "coco"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text("{}")
    config = AnnotatedDataConfig(root=str((root / level).resolve()))
    with pytest.raises(InputError, match=f"did you mean data.root={root}?"):
        read_split(config, "train", masks=False)
