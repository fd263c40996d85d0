"""Names of data sets in results. A name of the paper's data sets is allowed only for images of that data set."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import voc_cases
from PIL import Image
from transfer_cases import make_folder

from intl_bench.cli import main
from intl_bench.core.datasets import DATASETS
from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity
from pretrain.images.data import DataConfig, open_source
from transfer.detection.annotations import generated
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig as DetectionData


def wnids(root: Path, classes: int, train: int = 1, side: int = 8) -> Path:
    """Write an image folder whose classes have names as in ImageNet; return its path."""
    for number in range(classes):
        for split, count in (("train", train), ("val", 1)):
            (root / split / f"n{number:08d}").mkdir(parents=True)
            for image in range(count):
                Image.new("RGB", (side, side)).save(root / split / f"n{number:08d}" / f"{image}.png")
    return root


def arrays(path: Path, classes: int, train: int = 200, side: int = 32) -> Path:
    labels: dict[str, Any] = {"train_y": np.arange(train) % classes, "test_y": np.arange(classes)}
    images: dict[str, Any] = {f"{key[:-1]}x": np.zeros((len(y), side, side, 3), np.uint8) for key, y in labels.items()}
    np.savez(path, **labels, **images)
    return path


def error_of(config: DataConfig, split: str = "train") -> str:
    with pytest.raises(InputError) as error:
        open_source(config, split)
    message = str(error.value)
    assert message.isprintable()
    assert message.startswith(f"data.name={config.dataset}: ")
    assert message.endswith("; give these images a name of their own with data.name=NAME")
    return message.removeprefix(f"data.name={config.dataset}: ").partition(";")[0]


# Other names


@pytest.mark.parametrize(
    ("kind", "root", "name"),
    [
        ("imagefolder", "photos/birds", "birds"),
        ("imagefolder", "photos/birds/", "birds"),
        ("imagefolder", "photos/../cats/.", "cats"),
        ("imagefolder", ".", "there"),
        ("imagefolder", "~/dogs", "dogs"),
        ("imagefolder", "~", "home"),
        ("imagefolder", "/", "imagefolder"),
        ("imagefolder", "", "imagefolder"),
        ("npz", "arrays/cells.npz", "cells"),
        ("npz", "", "npz"),
        ("cifar10", "photos", "cifar10"),
        ("shapes", "", "shapes"),
    ],
)
def test_name_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, root: str, name: str) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert DataConfig(kind=kind, root=root).dataset == name
    assert DataConfig(kind=kind, root=root, name="mine").dataset == "mine"


def test_names_and_paths_are_not_part_of_the_identity() -> None:
    """The fingerprint of the data identifies the images."""
    here = DataConfig(root="here", name="a", classes="list.txt")
    assert identity(here) == identity(DataConfig())
    for change in ({"on_bad_image": "skip"}, {"size": 64}):  # `size` has an effect on generated images only
        assert identity(dataclasses.replace(DataConfig(), **change)) == identity(DataConfig())
    for change in ({"kind": "npz"}, {"mean": (0.1, 0.2, 0.3)}, {"kind": "shapes"}):
        assert identity(dataclasses.replace(DataConfig(), **change)) != identity(DataConfig())
    assert identity(DataConfig(kind="shapes", size=64)) != identity(DataConfig(kind="shapes"))
    there = DetectionData(root="r", name="b", train=("t",), test=("s",), train_images="i", test_images="j")
    assert identity(there) == identity(DetectionData()) != identity(DetectionData(kind="voc"))


# Names of the paper's data sets


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("name", "expected"), [("imagenet", "1,000"), ("imagenet100", "100")])
def test_imagenet_needs_all_classes(tmp_path: Path, split: str, name: str, expected: str) -> None:
    root = wnids(tmp_path / "photos", 12)
    config = DataConfig(root=str(root), name=name)
    assert error_of(config, split) == f"{root} has 12 class folders, expected {expected} named as n01440764"
    assert len(open_source(DataConfig(root=str(root)), split)) == 12
    root.rename(tmp_path / name)  # the name of the folder is the name of the data set
    assert "12 class folders" in error_of(DataConfig(root=str(tmp_path / name)), split)


def test_imagenet_needs_wordnet_class_names(tmp_path: Path) -> None:
    root = wnids(tmp_path / "photos", 100)
    config = DataConfig(root=str(root), name="imagenet100")
    assert [len(open_source(config, split)) for split in ("train", "test")] == [100, 100]
    assert error_of(DataConfig(root=str(root), name="imagenet")).startswith(f"{root} has 100 class folders")
    for split in ("train", "val"):
        (root / split / "n00000007").rename(root / split / "n7")
    assert error_of(config) == f"{root} has class folders such as 'n7', expected 100 named as n01440764"


def test_a_part_of_imagenet_with_all_classes_keeps_the_name(tmp_path: Path) -> None:
    root = wnids(tmp_path / "photos", 1000, side=1)
    assert len(open_source(DataConfig(root=str(root), name="imagenet"), "train")) == 1000
    listing = tmp_path / "classes.txt"
    listing.write_text("\n".join(f"n{number:08d}" for number in range(100)))
    part = DataConfig(root=str(root), classes=str(listing), name="imagenet100")
    assert len(open_source(part, "train")) == 100
    assert "100 class folders" in error_of(dataclasses.replace(part, name="imagenet"))


def test_imagenet_in_an_archive(tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", 100)
    expected = f"{path} has classes such as '0', expected 100 named as n01440764"
    assert error_of(DataConfig(kind="npz", root=str(path), name="imagenet100")) == expected


def test_too_many_images_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "imagenet100", dataclasses.replace(DATASETS["imagenet100"], train=150))
    root = wnids(tmp_path / "photos", 100, train=2)
    config = DataConfig(root=str(root), name="imagenet100")
    assert error_of(config) == f"{root} has 200 train images, expected at most 150"
    assert len(open_source(config, "test")) == 100


@pytest.mark.parametrize(
    ("name", "classes", "options", "expected"),
    [
        ("cifar10", 10, {}, ""),
        ("cifar100", 100, {}, ""),
        ("cifar10", 100, {}, "{} has 100 classes, expected 10"),
        ("cifar100", 10, {}, "{} has 10 classes, expected 100"),
        ("cifar10", 10, {"side": 96}, "{} has an image of 96 x 96 pixels, expected 32 x 32"),
        ("cifar10", 10, {"train": 50_001}, "{} has 50,001 train images, expected at most 50,000"),
    ],
)
def test_cifar_in_an_archive(tmp_path: Path, name: str, classes: int, options: dict[str, Any], expected: str) -> None:
    path = arrays(tmp_path / "images.npz", classes, **options)
    config = DataConfig(kind="npz", root=str(path), name=name)
    if expected:
        assert error_of(config) == expected.format(path)
    else:
        assert len(open_source(config, "train")) == 200
    path.rename(path.with_name(f"{name}.npz"))  # the name of the file is the name of the data set
    config = DataConfig(kind="npz", root=str(path.with_name(f"{name}.npz")))
    if expected:
        assert error_of(config) == expected.format(config.root)
    else:
        assert len(open_source(config, "train")) == 200


def test_cifar_cannot_be_generated() -> None:
    expected = "data.kind=shapes has other images, expected data.kind=cifar10, npz or imagefolder"
    assert error_of(DataConfig(kind="shapes", name="cifar10")) == expected


def test_cifar_in_folders(tmp_path: Path) -> None:
    right, wrong = (wnids(tmp_path / f"{side}", 10, side=side) for side in (32, 40))
    assert len(open_source(DataConfig(root=str(right), name="cifar10"), "train")) == 10
    expected = f"{wrong} has an image of 40 x 40 pixels, expected 32 x 32"
    assert error_of(DataConfig(root=str(wrong), name="cifar10")) == expected


def test_an_image_that_cannot_be_decoded_is_no_error_of_the_name(tmp_path: Path) -> None:
    root = wnids(tmp_path / "photos", 10, side=32)
    (root / "train" / "n00000000" / "0.png").write_bytes(b"no image")
    assert len(open_source(DataConfig(root=str(root), name="cifar10"), "train")) == 10


@pytest.mark.data
def test_real_images_under_published_names(test_data: Path) -> None:
    for split in ("train", "test"):
        open_source(DataConfig(kind="npz", root=str(test_data / "cifar10_subset.npz"), name="cifar10"), split)
    photos = DataConfig(root=str(test_data / "imagenette96"), name="imagenet")
    assert "has 10 class folders, expected 1,000" in error_of(photos)


def test_pretrain_with_a_wrong_name_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "photos")
    assert main(["pretrain", "demo", "data.kind=imagefolder", "data.root=photos", "data.name=imagenet"]) == 2
    assert "data.name=imagenet: photos has 3 class folders, expected 1,000" in capsys.readouterr().err
    assert not list(tmp_path.rglob("checkpoint*"))


def test_pack_does_not_check_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "imagenet")
    assert main(["data", "pack", "imagenet", "packed"]) == 0


# Annotated images


def categories(root: Path, names: tuple[str, ...]) -> Path:
    """Write generated data in COCO's layout with these categories; return the path."""
    generated.write(root, train=4, test=2)
    for path in (root / "annotations").iterdir():
        document = json.loads(path.read_text())
        document["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
        path.write_text(json.dumps(document))
    return root


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["coco2017", "coco"])
def test_coco_needs_its_categories(tmp_path: Path, name: str, split: str) -> None:
    own = DATASETS["coco2017"].class_names
    assert len({*own}) == 80
    roots = [categories(tmp_path / f"{n}", names) for n, names in enumerate((own, own[:79], (*own, "cell"), own[:9]))]
    configs = [DetectionData(root=str(root), name=name) for root in roots]
    assert len(read_split(configs[0], split, masks=True)) == (4 if split == "train" else 2)
    found = ["79 categories without 'toothbrush'", "81 categories, such as 'cell'", "9 categories without 'apple'"]
    for config, words in zip(configs[1:], found, strict=True):
        with pytest.raises(InputError) as error:
            read_split(config, split, masks=True)
        file = Path(config.root) / "annotations" / f"instances_{'train' if split == 'train' else 'val'}2017.json"
        assert str(error.value) == (
            f"data.name={name}: {file} has {words}, expected the 80 of {name}; "
            "give these images a name of their own with data.name=NAME"
        )
        read_split(dataclasses.replace(config, name="cells"), split, masks=True)


def test_voc_needs_its_categories(tmp_path: Path) -> None:
    own = DATASETS["voc0712"].class_names
    for name in ("voc0712", "voc"):
        config = DetectionData(root=str(tmp_path), name=name)
        categories(tmp_path, own[::-1])
        assert len(read_split(config, "train", masks=True)) == 4
    with pytest.raises(InputError, match=r"has 20 categories, such as 'aeroplane', expected the 80 of coco2017"):
        read_split(dataclasses.replace(config, name="coco2017"), "train", masks=True)


def test_files_in_voc_format(tmp_path: Path) -> None:
    voc_cases.write(tmp_path)
    config = DetectionData(kind="voc", root=str(tmp_path), name="voc0712", train=voc_cases.LISTS)
    assert len(read_split(config, "train", masks=False)) == 3
    with pytest.raises(InputError, match=r"data\.name=coco2017: .*trainval\.txt has 4 categories"):
        read_split(dataclasses.replace(config, name="coco2017"), "train", masks=False)


@pytest.mark.data
def test_categories_of_real_coco(test_data: Path) -> None:
    found = read_split(DetectionData(root=str(test_data / "coco_tiny")), "train", masks=False)
    assert found.category_names == DATASETS["coco2017"].class_names
